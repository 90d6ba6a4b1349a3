import gc
import os
import signal
import sys
import threading
import traceback

import numpy as np
import pytest
from conftest import used

import evanesce
from evanesce import Key, Steps, Window

LATENT = Key("latent")
ARRAY = np.arange(1024, dtype=np.float32)
# 1024 numbers of 4 bytes, and the line that says what they are.
ENTRY_BYTES = 4096 + 64


def test_steps_end_an_entry_by_themselves(cache):
    with cache.job() as job:
        job.put(LATENT, ARRAY, lifetime=Steps(2)).release()
        assert job.step() == {"entries": 0, "returned_bytes": 0, "quiescing_bytes": 0}
        assert LATENT in job
        assert job.step() == {"entries": 1, "returned_bytes": ENTRY_BYTES, "quiescing_bytes": 0}
        assert LATENT not in job and job.get(LATENT) is None
        assert used(cache) == 0
    kind = cache.counters()["kinds"]["latent"]
    assert (kind["puts"], kind["expired"], kind["misses"], kind["returned_bytes"]) == (1, 1, 1, ENTRY_BYTES)


def test_a_window_keeps_its_sink_and_the_newest_frames(cache):
    with cache.job() as job:
        for frame in range(8):
            job.put(Key("self_kv", index=3, frame=frame), ARRAY, lifetime=Window(sink=1, recent=3))
        assert [frame for frame in range(8) if Key("self_kv", 0, 3, frame) in job] == [0, 5, 6, 7]
        assert job.prune_old(Key("self_kv", index=3), 1)["entries"] == 2
        assert used(cache) == 2 * ENTRY_BYTES


def test_a_stage_ends_what_was_put_in_it(cache):
    with cache.job() as job:
        with job.stage():
            job.put(Key("vae_feature"), ARRAY, lifetime="stage")
            assert used(cache) == ENTRY_BYTES
        assert used(cache) == 0
        with pytest.raises(ValueError, match="has none open"):
            job.put(Key("vae_feature"), ARRAY, lifetime="stage")


def test_all_of_a_job_is_back_when_its_block_ends_also_by_an_exception(cache):
    with pytest.raises(ZeroDivisionError), cache.job() as job:
        job.put(LATENT, ARRAY, lifetime="job")
        job.put(Key("cross_kv"), (ARRAY, ARRAY), lifetime=Steps(9))
        assert used(cache) == 3 * ENTRY_BYTES
        1 / 0
    assert used(cache) == 0 and cache.counters()["jobs"] == []
    cache.verify()
    with pytest.raises(evanesce.Ended, match="the job is closed; open another one"):
        job.get(LATENT)


def test_what_is_collected_gives_its_bytes_back(cache):
    job = cache.job()
    lease = job.put(LATENT, ARRAY, lifetime=Steps(1))
    job.step()
    assert used(cache) == ENTRY_BYTES, "the lease holds the entry that has ended"
    del lease
    gc.collect()
    assert used(cache) == 0
    job.put(LATENT, ARRAY)
    del job
    gc.collect()
    assert used(cache) == 0


def test_a_view_holds_its_entry_whatever_becomes_of_lease_and_job(cache):
    with cache.job() as job:
        with job.put(LATENT, ARRAY) as lease:
            view = lease.numpy()
        assert lease.released
        job.step()
    assert cache.counters()["tiers"]["device"]["quiescing_bytes"] == ENTRY_BYTES
    assert np.array_equal(view, ARRAY) and not view.flags.writeable
    with pytest.raises(evanesce.Ended, match="the lease is closed"):
        lease.numpy()
    del view
    gc.collect()
    assert used(cache) == 0


def test_what_cannot_fit_is_refused_with_what_would():
    with evanesce.Cache(device="64KiB") as cache, cache.job() as job:
        job.put(LATENT, ARRAY)
        with pytest.raises(evanesce.OutOfBudget, match="the device tier cannot hold 65600 bytes more") as refused:
            job.put(Key("cross_kv"), bytes(1 << 16))
        error = refused.value
        assert (error.tier, error.needed_bytes, error.budget_bytes) == ("device", 65600, 65536)
        assert (error.used_bytes, error.fits_bytes) == (ENTRY_BYTES, 65536 - ENTRY_BYTES)
        job.put(Key("cross_kv"), bytes(error.fits_bytes - 64))
        assert used(cache) == 65536 and isinstance(error, evanesce.CacheError)
        with pytest.raises(evanesce.Exists, match="cached already"):
            job.put(LATENT, ARRAY)


def test_room_is_made_below_and_entries_come_home_from_the_disk(tmp_path):
    with evanesce.Cache(device=4 * ENTRY_BYTES, host=4 * ENTRY_BYTES, disk=f"{tmp_path}:1MiB") as cache, cache.job() as job:
        keys = [Key("self_kv", index=index) for index in range(16)]
        for at, key in enumerate(keys):
            job.announce(key, first=100 + at)
            job.put(key, ARRAY + at)
        assert {job.tier_of(key) for key in keys} == {"device", "host", "disk"}
        for at, key in enumerate(keys):
            job.tick(100 + at)
            with job.take(key) as lease:
                assert np.array_equal(lease.numpy(), ARRAY + at)
        assert used(cache) == 0
        tiers = cache.counters()["tiers"]
        assert tiers["disk"]["demoted"] >= 8 and tiers["device"]["peak_bytes"] <= 4 * ENTRY_BYTES
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


def test_shared_entries_outlive_jobs_and_are_found_by_content(cache):
    key = evanesce.content_key("text_embedding", "encoder 1", "a red fox")
    assert key == evanesce.content_key("text_embedding", b"encoder 1", "a red fox")
    assert key != evanesce.content_key("text_embedding", "encoder 1a", " red fox")
    with cache.job() as job:
        cache.put(key, ARRAY)
        assert np.array_equal(job.get(key).numpy(), ARRAY)
    assert key in cache and used(cache) == ENTRY_BYTES
    assert cache.remove(key) and cache.get(key) is None and used(cache) == 0


def test_a_shared_entry_that_finds_no_room_says_so_and_is_not_absent(tmp_path):
    key = evanesce.content_key("text_embedding", "a red fox")
    with evanesce.Cache(device=ENTRY_BYTES, host=ENTRY_BYTES, disk=(tmp_path, "1MiB")) as cache, cache.job() as job:
        job.announce(key, first=9)
        cache.put(key, ARRAY, tier="host").release()
        leases = [job.put(Key("self_kv", index=index), ARRAY, tier=tier) for index, tier in enumerate(("host", "device"))]
        assert cache.tier_of(key) == "disk"
        for owner in (cache, job):
            with pytest.raises(evanesce.OutOfBudget, match="is on disk and finds no room in memory"):
                owner.get(key)
        del leases
        assert key in cache and np.array_equal(cache.get(key).numpy(), ARRAY)


def test_jobs_do_not_see_each_other(cache):
    with cache.job() as one, cache.job() as other:
        one.put(LATENT, ARRAY)
        assert other.get(LATENT) is None
        other.put(LATENT, -ARRAY)
        assert np.array_equal(one.get(LATENT).numpy(), ARRAY)


def test_threads_share_a_cache(cache):
    def work(seed):
        with cache.job() as job:
            for step in range(50):
                job.put(LATENT, ARRAY + seed + step, lifetime=Steps(1), codec="int8")
                assert abs(job.get(LATENT).numpy()[5] - (5 + seed + step)) < 2
                job.step()
        done.append(seed)

    done = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(done) == [0, 1, 2, 3] and used(cache) == 0
    cache.verify()


def test_the_interpreter_is_let_go_while_bytes_are_encoded():
    go, went = threading.Event(), []
    waiting = threading.Thread(target=lambda: go.wait() and went.append(True), daemon=True)
    waiting.start()
    before = sys.getswitchinterval()
    with evanesce.Cache(device="64MiB") as cache, cache.job() as job:
        array = np.zeros((4096, 1024), np.float32)
        # From here on the other thread runs only if this one lets it.
        sys.setswitchinterval(1000)
        try:
            go.set()
            for index in range(1000):
                job.put(Key("self_kv"), array, codec="int4").release()
                if went:
                    break
                job.remove(Key("self_kv"))
        finally:
            sys.setswitchinterval(before)
    assert went


def test_the_interpreter_is_let_go_while_what_is_collected_gives_its_memory_back():
    go, went = threading.Event(), []
    array = np.zeros(40 << 20, np.uint8)
    caches = [evanesce.Cache(device="41MiB") for _ in range(8)]
    for at, cache in enumerate(caches):
        cache.put(evanesce.content_key("weights", str(at)), array).release()
    del cache
    waiting = threading.Thread(target=lambda: go.wait() and went.append(True), daemon=True)
    waiting.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        go.set()
        while caches and not went:
            caches.pop()
        assert went
    finally:
        sys.setswitchinterval(before)


def test_a_closed_cache_says_so_and_leases_of_it_live_on():
    cache = evanesce.Cache(device="1MiB")
    lease = cache.job().put(LATENT, ARRAY)
    view = lease.numpy()
    cache.close()
    with pytest.raises(evanesce.Ended, match="the cache is closed"):
        cache.job()
    assert np.array_equal(view, ARRAY)


def in_a_fork(work):
    """Whether `work` raises nothing in a forked child."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_that_the_cache_is_its_parents(tmp_path):
    shared = evanesce.content_key("text_embedding", "a red fox")
    cache = evanesce.Cache(device=4 * ENTRY_BYTES, host=ENTRY_BYTES, disk=(tmp_path, "1MiB"))
    job = cache.job()
    stage = job.stage()
    lease = job.put(LATENT, ARRAY, lifetime="stage")
    view = lease.numpy()
    sentence = f"the cache belongs to process {os.getpid()}; make one in this process"
    files = list(tmp_path.iterdir())
    assert len(files) == 1

    def asking():
        for ask in (
            lambda: cache.put(shared, ARRAY),
            lambda: cache.get(shared),
            cache.counters,
            cache.job,
            lambda: job.get(LATENT),
            lambda: job.put(Key("self_kv"), ARRAY),
            job.step,
            lease.numpy,
        ):
            with pytest.raises(evanesce.Ended, match=sentence):
                ask()
        assert np.array_equal(view, ARRAY) and job.closed
        stage.close(), lease.release(), job.close(), cache.close()
        forgetting()
        with evanesce.Cache(device="1MiB") as own, own.job() as ours:
            ours.put(LATENT, ARRAY)

    def forgetting():
        nonlocal cache, job, stage, lease, view
        del cache, job, stage, lease, view
        gc.collect()
        assert list(tmp_path.iterdir()) == files

    assert in_a_fork(asking) and in_a_fork(forgetting)
    assert np.array_equal(job.get(LATENT).numpy(), ARRAY) and list(tmp_path.iterdir()) == files
    stage.close()
    cache.verify()
    cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not_got(cache):
    def child():
        with evanesce.Cache(device="1MiB") as own, own.job() as job:
            with pytest.raises(evanesce.CacheError, match=f"encode belong to process {parent}, which this one was forked from"):
                job.put(LATENT, ARRAY, codec="int8")
            assert np.array_equal(job.put(LATENT, ARRAY).numpy(), ARRAY)

    parent = os.getpid()
    with cache.job() as job:
        job.put(LATENT, ARRAY, codec="int8")
        assert in_a_fork(child)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda job: job.put(Key("kv"), ARRAY), 'kind "kv" is not known; use one of text_embedding, cross_kv'),
        (lambda job: job.put(LATENT, ARRAY, lifetime="forever"), "lifetime 'forever' is not known; use Steps"),
        (lambda job: job.put(LATENT, ARRAY, lifetime=Steps(0)), "use at least 1"),
        (lambda job: job.put(LATENT, ARRAY, tier="gpu"), 'tier "gpu" is not known; use one of device, host, disk'),
        (lambda job: job.put(LATENT, ARRAY, tier="disk"), "put it into the host tier"),
        (lambda job: job.put(LATENT, ARRAY, codec="int3"), 'codec "int3" is not known; use one of exact, bf16, int8'),
        (lambda job: job.put(LATENT, ARRAY, codec="k8v4"), "is for 2 arrays"),
        (lambda job: job.put(LATENT, ()), "an entry of no arrays"),
        (lambda job: evanesce.Cache(device="8 parsecs"), "write it as 8GiB"),
        (lambda job: evanesce.Cache(disk="64GiB"), "write a directory and a size"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(cache, wrong, sentence):
    with cache.job() as job, pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        wrong(job)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("400MB", 400_000_000), ("1.5 GiB", 3 << 29), (4096, 4096), ("64k", 65536)]
)
def test_sizes_are_read_as_on_the_command_line(text, size):
    from evanesce._words import size_bytes

    assert size_bytes(text) == size


def test_budgets_can_be_cut_and_idle_memory_given_back(cache):
    with cache.job() as job:
        job.put(LATENT, ARRAY)
        assert cache.set_budget("device", 0) in (0, ENTRY_BYTES)
        assert cache.set_budget("device", "1MiB") == 1 << 20
    assert cache.trim() >= 0 and cache.counters()["tiers"]["device"]["free_listed_bytes"] == 0
    assert cache.used_bytes() == {"device": 0, "host": 0, "disk": 0}
