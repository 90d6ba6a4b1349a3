"""What the calls cost: medians of the process's CPU time, beside NumPy's own copy.

    RAYON_NUM_THREADS=1 python crates/py/examples/costs.py
"""

import statistics
import time

import numpy as np

import evanesce
from evanesce import Key, Steps

ENTRY = Key("self_kv")


def median_seconds(work, calls, rounds=9):
    work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            work()
        taken.append((time.process_time() - start) / calls)
    return statistics.median(taken)


def main():
    small, large = np.zeros(1024, np.float32), np.random.default_rng(1).standard_normal((4096, 4096)).astype(np.float32)
    copy = np.empty_like(large)
    with evanesce.Cache(device="256MiB") as cache, cache.job() as job:

        def put(data, **spec):
            job.put(ENTRY, data, lifetime=Steps(1), **spec).release()
            job.step()

        print(f"put 4 KiB, release, step: {1e6 * median_seconds(lambda: put(small), 1000):.1f} us")
        job.put(ENTRY, small).release()
        print(f"get, view, release: {1e6 * median_seconds(lambda: job.get(ENTRY).numpy(), 1000):.1f} us")
        job.remove(ENTRY)
        gigabytes = large.nbytes / 1e9
        print(f"NumPy copies 64 MiB at {gigabytes / median_seconds(lambda: np.copyto(copy, large), 3):.1f} GB/s")
        for codec in ("exact", "bf16", "int8", "int4"):
            print(f"put 64 MiB as {codec}: {gigabytes / median_seconds(lambda: put(large, codec=codec), 3):.1f} GB/s")
            job.put(ENTRY, large, codec=codec).release()
            print(f"copy_to from {codec}: {gigabytes / median_seconds(lambda: job.get(ENTRY).copy_to(copy), 3):.1f} GB/s")
            job.remove(ENTRY)


if __name__ == "__main__":
    main()
