"""Arrays and tensors as buffers, and back. PyTorch is looked for only where it has been imported already, or is asked for."""

import sys
import warnings

import numpy as np

CODECS = ("exact", "bf16", "int8", "int4", "int2")
PAIRS = {"k8v4": ("int8", "int4")}


def pair_codecs(codec):
    """The two codecs of keys and values, by one name for both or a name for each."""
    codecs = PAIRS.get(codec, (codec, codec)) if isinstance(codec, str) else codec
    if not isinstance(codecs, tuple | list) or len(codecs) != 2 or not all(name in CODECS for name in codecs):
        known = ", ".join((*CODECS, *PAIRS))
        raise ValueError(f"codec {codec!r} is not known for keys and values; use one of {known}, or a pair such as ('int8', 'bf16')")
    return tuple(codecs)


def array_words(data, codec):
    """What an entry is made of, as the native part takes it: buffers with element type, shape and codec; and whether it is a tuple."""
    together = isinstance(data, tuple | list)
    arrays = tuple(data) if together else (data,)
    codecs = PAIRS.get(codec, (codec,) * len(arrays)) if isinstance(codec, str) else codec
    if len(codecs) != len(arrays):
        raise ValueError(f"codec {codec!r} is for {len(codecs)} arrays, such as (key, value), and {len(arrays)} are given")
    return [(*_buffer(array), name) for array, name in zip(arrays, codecs, strict=True)], together


def _buffer(data):
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.Tensor):
        return _tensor_buffer(data.detach(), torch)
    if isinstance(data, bytes | bytearray):
        array = np.frombuffer(data, np.uint8)
    elif hasattr(data, "__dlpack__") and not hasattr(data, "__array__"):
        array = np.from_dlpack(data)
    else:
        array = np.asarray(data)
    if array.dtype.hasobject or not array.dtype.isnative:
        raise TypeError(f"an array of {array.dtype} is no plain memory; convert it first")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8), array.dtype.name, list(array.shape)


def _tensor_buffer(tensor, torch):
    if tensor.layout != torch.strided:
        raise TypeError(f"a tensor of layout {tensor.layout} is no plain memory; make it dense first")
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def to_numpy(native, at):
    """Array `at` of a lease: where it lies if it is stored as it is, read-only; else a decoded copy."""
    dtype, shape, codec = native.parts[at]
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"NumPy has no {dtype}; use torch(), or view() for the stored bytes") from error
    if codec == "exact":
        return np.frombuffer(native.view(at), dtype).reshape(shape) if 0 not in shape else np.empty(shape, dtype)
    array = np.empty(shape, dtype)
    native.decode(at, array.reshape(-1).view(np.uint8))
    return array


def to_torch(native, at):
    """As `to_numpy`, as a tensor on the CPU. PyTorch knows no read-only tensors: what is stored as it is must not be written to."""
    import torch

    dtype, shape, codec = native.parts[at]
    dtype = getattr(torch, dtype)
    if codec != "exact":
        tensor = torch.empty(shape, dtype=dtype)
        native.decode(at, tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    _say_once(torch)
    return torch.frombuffer(native.view(at), dtype=dtype).reshape(shape)


def copy_into(native, at, array):
    """Copies or decodes array `at` of a lease into another of its type and shape."""
    buffer, dtype, shape = _buffer(array)
    wanted = native.parts[at][:2]
    if (dtype, shape) != wanted:
        raise ValueError(f"array {at} is {wanted[0]} of shape {wanted[1]}, and what is to take it is {dtype} of shape {shape}")
    own = array.data_ptr() if hasattr(array, "data_ptr") else np.asarray(array).ctypes.data
    if buffer.ctypes.data != own and buffer.size:
        raise ValueError("what is to take the array has gaps or is not in main memory; give one that is contiguous and on the CPU")
    native.decode(at, buffer)


_said = False


def _say_once(torch):
    """PyTorch warns once in a process that a buffer cannot be written; our documentation says it, so here that is not news."""
    global _said
    if not _said:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.frombuffer(bytes(1), dtype=torch.uint8)
        _said = True
