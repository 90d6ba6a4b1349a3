import numpy as np
import pytest

from evanesce import Key

ENTRY = Key("self_kv")
KINDS = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64"]


def kept(cache, data, **spec):
    with cache.job() as job:
        return job.put(ENTRY, data, **spec)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 0, 2), (2, 3, 4, 5, 6)])
def test_arrays_come_back_as_they_were(cache, dtype, shape):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    got = kept(cache, array).numpy()
    assert (got.dtype, got.shape) == (array.dtype, shape) and np.array_equal(got, array)


def test_any_buffer_is_taken_and_strided_arrays_are_made_contiguous(cache):
    assert bytes(kept(cache, b"abc").numpy()) == b"abc"
    assert bytes(kept(cache, memoryview(bytearray(b"abcd"))[::2]).numpy()) == b"ac"
    array = np.arange(24, dtype=np.int32).reshape(2, 3, 4)

    class Exporter:
        __dlpack__, __dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    assert np.array_equal(kept(cache, Exporter()).numpy(), array)
    assert np.array_equal(kept(cache, array.transpose(2, 0, 1)).numpy(), array.transpose(2, 0, 1))


def test_a_tuple_lives_in_one_entry_on_aligned_lines(cache):
    lease = kept(cache, (np.ones(3, np.uint8), np.full((2, 2), 7, np.float64)))
    one, two = lease.numpy()
    assert one.tolist() == [1, 1, 1] and two.tolist() == [[7, 7], [7, 7]]
    assert one.ctypes.data % 64 == 0 and two.ctypes.data % 64 == 0
    assert lease.nbytes == 4 * 64 and [codec for _, _, codec in lease.parts] == ["exact", "exact"]


def test_views_are_the_memory_of_the_entry_and_cannot_be_written(cache):
    lease = kept(cache, np.arange(8, dtype=np.float32))
    assert lease.numpy().ctypes.data == lease.numpy().ctypes.data
    assert lease.view().readonly and lease.view().nbytes == 32
    with pytest.raises(ValueError, match="read-only"):
        lease.numpy()[0] = 1


@pytest.mark.parametrize("data", [np.array(["text"]), np.array([object()]), np.zeros(2, ">f4"), np.zeros((1,) * 7)])
def test_what_is_no_plain_memory_is_refused(cache, data):
    with pytest.raises((TypeError, ValueError), match="is not known|no plain memory|up to 6"):
        kept(cache, data)


def relative_error(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)


# The bounds of crates/kernels/tests/operations/codec.rs.
@pytest.mark.parametrize(("codec", "expected", "bits"), [("int8", 0.0052, 8.5), ("int4", 0.088, 4.5), ("int2", 0.444, 2.4)])
def test_codecs_lose_what_a_uniform_grid_loses(cache, codec, expected, bits):
    array = np.random.default_rng(3).standard_normal((64, 640)).astype(np.float32)
    lease = kept(cache, array, codec=codec)
    assert 0.9 * expected < relative_error(lease.numpy(), array) < 1.15 * expected
    assert lease.view().nbytes == pytest.approx(array.size * bits / 8, rel=0.02)
    counters = cache.counters()["kinds"]["self_kv"]
    assert counters["raw_bytes"] == array.nbytes and counters["encoded_bytes"] == lease.nbytes


@pytest.mark.parametrize(("codec", "top"), [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
def test_every_number_is_off_by_half_a_step_at_most(cache, codec, top, width):
    array = (np.random.default_rng(width).random((37, width), np.float32) * 2 + 3).astype(np.float32)
    got = kept(cache, array, codec=codec).numpy()
    for start in range(0, width, 64):
        group, back = array[:, start : start + 64], got[:, start : start + 64]
        least, greatest = group.min(1), group.max(1)
        bound = ((greatest - least) * 1.01 + abs(least) * 0.008) / top * 0.51 + np.maximum(abs(least), abs(greatest)) * 1e-6
        assert (abs(group - back) <= bound[:, None]).all()


def test_many_rows_are_encoded_as_few_are(cache):
    """More numbers than are widened at once."""
    array = np.random.default_rng(5).standard_normal((5000, 70)).astype(np.float16)
    got = kept(cache, array, codec="int8").numpy()
    assert got.dtype == np.float16 and np.array_equal(got[:9], kept(cache, array[:9], codec="int8").numpy())
    assert np.array_equal(got[-9:], kept(cache, array[-9:], codec="int8").numpy())


def test_keys_and_values_may_have_codecs_of_their_own(cache):
    key, value = np.random.default_rng(7).standard_normal((2, 16, 128)).astype(np.float32)
    lease = kept(cache, (key, value), codec="k8v4")
    assert [codec for _, _, codec in lease.parts] == ["int8", "int4"]
    assert relative_error(lease.numpy()[0], key) < 0.006 and 0.06 < relative_error(lease.numpy()[1], value) < 0.11


def test_arrays_are_copied_and_decoded_into_given_memory(cache):
    array = np.random.default_rng(9).standard_normal((6, 70)).astype(np.float32)
    lease = kept(cache, (array, array), codec=("exact", "int8"))
    plain, coded = np.zeros_like(array), np.zeros_like(array)
    lease.copy_to(plain, coded)
    assert np.array_equal(plain, array) and np.array_equal(coded, lease.numpy()[1])
    with pytest.raises(ValueError, match=r"array 1 is float32 of shape \[6, 70\], and what is to take it is float64"):
        lease.copy_to(plain, coded.astype(np.float64))
    with pytest.raises(ValueError, match="has gaps"):
        lease.copy_to(plain, np.zeros((6, 140), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="read-only"):
        lease.copy_to(lease.numpy()[0], coded)
    with pytest.raises(ValueError, match="1 arrays for an entry of 2"):
        lease.copy_to(plain)


def test_codecs_say_what_they_take(cache):
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16, not int32"):
        kept(cache, np.zeros(4, np.int32), codec="int8")
    with pytest.raises(ValueError, match="the array has none"):
        kept(cache, np.float32(1), codec="int4")


def test_tensors_come_back_as_they_were_and_hold_their_entry(cache):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn):
        tensor = torch.randn(3, 4, 5).mul(10).to(dtype)
        got = kept(cache, tensor.transpose(0, 2)).torch()
        assert got.dtype == dtype and got.shape == (5, 4, 3)
        assert torch.equal(got.contiguous().view(torch.uint8), tensor.transpose(0, 2).contiguous().view(torch.uint8))
    with cache.job() as job:
        given = torch.zeros(6)
        job.put(Key("latent"), torch.arange(6.0)).copy_to(given)
        assert given.tolist() == [0, 1, 2, 3, 4, 5]
        got = job.put(ENTRY, torch.arange(6.0)).torch()
    assert cache.counters()["tiers"]["device"]["quiescing_bytes"] == 128
    assert got.tolist() == [0, 1, 2, 3, 4, 5]
    del got
    assert cache.used_bytes()["device"] == 0


def test_tensors_on_a_device_are_copies_also_on_the_cpu(cache):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    lease = kept(cache, (torch.arange(64.0), torch.arange(64.0)), codec=("exact", "int8"))
    for tensor, again in zip(lease.torch("cpu"), lease.torch(torch.device("cpu")), strict=True):
        tensor.fill_(-1)
        assert abs(again[9] - 9) < 0.2
    exact, coded = lease.numpy()
    assert exact[9] == 9 and abs(coded[9] - 9) < 0.2


def test_bfloat16_is_rounded_as_pytorch_rounds(cache):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.randn(33, 70)
    lease = kept(cache, tensor, codec="bf16")
    assert torch.equal(lease.torch(), tensor.bfloat16().float())
    half = tensor.bfloat16()
    of_half, of_float = (kept(cache, data, codec="int8").torch() for data in (half, half.float()))
    assert of_half.dtype == torch.bfloat16 and torch.equal(of_half, of_float.bfloat16())
    with pytest.raises(TypeError, match="NumPy has no bfloat16; use torch"):
        kept(cache, tensor.bfloat16()).numpy()
