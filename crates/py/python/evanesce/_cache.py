"""The cache, its jobs and leases, over the native part."""

import weakref

from . import _native
from ._arrays import array_words, copy_into, to_numpy, to_torch
from ._words import Key, disk_words, lifetime_words, size_bytes


class Cache:
    """Cached blocks of all jobs of one process, under hard budgets.

    `device` and `host` are sizes ("2GiB" or bytes), `disk` is "DIR:64GiB" or `(directory, size)`. All tiers lie in the machine's main
    memory and on its disk: `device` is what arithmetic on the CPU reads from, and entries that must make room sink from there to
    `host` and `disk` by their next use. Safe to use from several threads; a forked child makes its own. Use it in a `with` block, or
    `close` it; its disk file goes then, or with the last job and lease.
    """

    def __init__(self, device="1GiB", host=0, disk=None):
        self._native = _native.Cache(size_bytes(device), size_bytes(host), disk_words(disk))
        self._jobs = weakref.WeakSet()

    def job(self):
        """Opens a job: a context manager that owns what is put into it, and gives all of it back when it ends, whatever ends it."""
        job = Job(self._native.open_job())
        self._jobs.add(job)
        return job

    def put(self, key, data, *, tier="device", codec="exact", cost=1):
        """Puts an entry into the shared pool: by a `content_key`, immutable, until it is removed or makes room. Returns its lease.

        `data`, `codec` and what is raised are as for `Job.put`. `cost` is the price of bringing 1 KiB of it back, relative to others.
        """
        words = (tier, ("persistent", 0, 0), "recompute", cost)
        return Lease(self._native.put(key, words, *array_words(data, codec)))

    def get(self, key):
        """Leases a shared entry; `None` where there is none. Counted as a hit or miss.

        Raises `OutOfBudget` for one that is on disk and finds no room in memory; it stays there.
        """
        return _leased(self._native.get(key))

    def remove(self, key):
        """Removes a shared entry. Whether there was one."""
        return self._native.remove(key)

    def __contains__(self, key):
        return self._native.contains(key)

    def tier_of(self, key):
        """The tier that a shared entry is in; `None` where there is none."""
        return self._native.tier_of(key)

    def counters(self):
        """All counters at one moment: `tiers` and `kinds` by name, what the `shared` pool and each of the `jobs` holds."""
        return self._native.counters()

    def used_bytes(self):
        """Bytes in use by tier."""
        return {name: tier["used_bytes"] for name, tier in self.counters()["tiers"].items()}

    def set_budget(self, tier, size):
        """Changes what "device" or "host" may hold, as far as what must stay there allows. What it may hold then."""
        return self._native.set_budget(tier, size_bytes(size))

    def trim(self):
        """Gives idle memory back to the system. Its bytes."""
        return self._native.trim()

    def verify(self):
        """Checks every invariant of the cache by walking all of it; raises `CacheError` for a bug."""
        self._native.verify()

    def close(self):
        """Ends all jobs and gives the cache up. Leases and views that are still held keep their own entries alive."""
        for job in list(self._jobs):
            job.close()
        self._native.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Job:
    """One job's part of the cache. It reads and writes its own entries and the shared pool, and nothing else."""

    def __init__(self, native):
        self._native = native

    def put(self, key, data, *, lifetime="job", tier="device", codec="exact", recover="never", cost=1):
        """Puts an entry and returns its lease.

        `data` is a tensor, an array or a buffer, or a tuple of them, such as keys and values, which live and move together. It is copied
        once, straight into the entry; tensors of an accelerator come to the CPU for it. `lifetime` is `Steps(n)`, `Window(sink, recent)`,
        "stage" or "job". `codec` is "exact", "bf16", "int8", "int4" or "int2", in groups along the last dimension, one for each of a
        tuple's arrays, or "k8v4". `recover` says what may become of it when its room is wanted: "never" dropped, but demoted; "recompute":
        demoted if it will be read, else dropped; "reload": dropped.

        Raises `OutOfBudget` if the tier cannot make the room, `Exists` if the key is taken, `Ended` if the job is closed.
        """
        words = (tier, lifetime_words(lifetime), recover, cost)
        return Lease(self._native.put(Key(*key), words, *array_words(data, codec)))

    def get(self, key):
        """Leases an entry of this job by its `Key`, or a shared one by its content key; `None` where there is none.

        A demoted entry is brought home first if room can be made. Counted as a hit or miss, and taken off what was announced. Raises `Lost`
        for an entry that was on disk and did not come back as it was, `OutOfBudget` for one that finds no room in memory.
        """
        if isinstance(key, _native.ContentKey):
            return _leased(self._native.shared_get(key))
        return _leased(self._native.get(Key(*key)))

    def take(self, key):
        """As `get`, and ends the entry if no later read of it is announced: its bytes come back with the lease."""
        return _leased(self._native.take(Key(*key)))

    def __contains__(self, key):
        return self._native.contains(Key(*key))

    def tier_of(self, key):
        """The tier that an entry is in; `None` where there is none."""
        return self._native.tier_of(Key(*key))

    def remove(self, key):
        """Removes an entry. Whether there was one."""
        return self._native.remove(Key(*key))

    def demote(self, key):
        """Sends an entry to the tier below. The tier it is in then; `None` where there is no such entry."""
        return self._native.demote(Key(*key))

    def prune_old(self, member, keep):
        """Ends what a series of `Window` entries holds beyond its `keep` highest frames; `member` is any key of the series."""
        return self._native.prune_old(Key(*member), keep)

    def step(self):
        """Ends the step, and the entries whose last step it was: how many, the bytes that are back, and those that leases still hold."""
        return self._native.step()

    def stage(self):
        """Opens a stage, for a `with` block: entries that are put in it with the lifetime "stage" end with it."""
        return Stage(self._native.stage())

    def announce(self, key, first, every=1, count=1):
        """Says when an entry will be read: `count` reads, `every` ticks apart, the first at tick `first`. Announce all of them or none."""
        if isinstance(key, _native.ContentKey):
            self._native.announce_shared(key, first, every, count)
        else:
            self._native.announce(Key(*key), first, every, count)

    def tick(self, now):
        """Moves the job's position forward, in ticks of its own: announced reads before it are past."""
        self._native.tick(now)

    def usage(self):
        """What the job holds now and the most it held, by tier."""
        return self._native.usage()

    @property
    def closed(self):
        """Whether the job has ended."""
        return self._native.closed

    def close(self):
        """Ends the job. What is left of it: bytes under leases and views that are still held."""
        return self._native.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Stage:
    """A stretch of a job; entries with the lifetime "stage" end with it."""

    def __init__(self, native):
        self._native = native

    def close(self):
        """Ends the stage, and says what ended with it."""
        return self._native.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Lease:
    """Keeps an entry alive and in place, until it is released or collected and the last view of it has gone.

    `numpy` and `torch` give what was put. Arrays that are stored as they are ("exact") are views of the entry's own memory, and hold it:
    releasing the lease does not pull it away from under them. Encoded arrays are decoded into fresh memory.
    """

    def __init__(self, native):
        self._native = native

    @property
    def tier(self):
        """Where the bytes are."""
        return self._native.tier

    @property
    def nbytes(self):
        """Bytes of the entry, with a line of 64 before each array."""
        return self._native.nbytes

    @property
    def parts(self):
        """Element type, shape and codec of each array."""
        return self._native.parts

    def numpy(self):
        """The array, or the tuple of arrays, that was put. Views are read-only."""
        return self._each(to_numpy)

    def torch(self, device=None):
        """As `numpy`, as tensors; on a `device` they are copies. PyTorch knows no read-only tensors: `clone` before writing to them."""
        if device is None:
            return self._each(to_torch)
        # What is decoded is in memory of its own already.
        return self._each(lambda native, at: to_torch(native, at).to(device, copy=native.parts[at][2] == "exact"))

    def copy_to(self, *arrays):
        """Copies or decodes what was put into arrays or CPU tensors of the same types and shapes, such as pinned or reused ones."""
        if len(arrays) != len(self._native.parts):
            raise ValueError(f"{len(arrays)} arrays for an entry of {len(self._native.parts)}")
        for at, array in enumerate(arrays):
            copy_into(self._native, at, array)

    def view(self, at=0):
        """The stored bytes of an array, as a read-only memoryview that holds the entry."""
        return memoryview(self._native.view(at))

    def _each(self, convert):
        arrays = tuple(convert(self._native, at) for at in range(len(self._native.parts)))
        return arrays if self._native.is_tuple else arrays[0]

    @property
    def released(self):
        """Whether this lease was given up."""
        return self._native.released

    def release(self):
        """Gives the entry up; views that were taken keep it."""
        self._native.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def __repr__(self):
        arrays = ", ".join(f"{dtype}{shape}" + (f" as {codec}" if codec != "exact" else "") for dtype, shape, codec in self.parts)
        return f"Lease({arrays} in {self.tier}{', released' if self.released else ''})"


def _leased(native):
    return None if native is None else Lease(native)
