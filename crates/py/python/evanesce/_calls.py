"""One call of a pipeline after the other: its job, its steps, and which entries are read when."""

import threading

import torch

from ._native import Lost, OutOfBudget
from ._words import Key, Steps

# Embeddings that one call may read: two branches. A pipeline that makes new ones all the time is better off without a cache.
BRANCHES_MAX = 8
# Element types that codecs take.
CODED = (torch.float16, torch.bfloat16, torch.float32)


class Calls:
    """Keys and values of cross-attention of the pipeline call under way. Each call is a job, of the thread that began it."""

    def __init__(self, cache, pipeline, experts, codecs):
        self._cache, self._pipeline, self._codecs = cache, pipeline, codecs
        self._experts = experts
        self._job, self._reading, self._scheduler, self._thread = None, None, None, None
        self._expert_of_step, self._step, self._seen, self._announced = [], 0, [], set()
        self._counts = dict.fromkeys(("calls", "steps", "hits", "computed", "refused", "peak_bytes"), 0)

    def begin(self):
        """A call begins: the scheduler has its timesteps."""
        self.close()
        self._scheduler, self._thread = self._pipeline.scheduler, threading.get_ident()
        self._expert_of_step = _experts_of_steps(self._pipeline, self._experts)
        self._step, self._seen, self._announced = 0, [], set()
        self._job = self._cache.job()
        self._counts["calls"] += 1

    def end_step(self):
        """A step ends: what it read for the last time leaves, and with the last step the job."""
        if self._job is None or not self._is_ours():
            return
        self._job.step()
        self._step += 1
        self._counts["steps"] += 1
        if self._step >= len(self._expert_of_step):
            self.close()

    def finish(self):
        """The call needs its keys and values no more."""
        if self._is_ours():
            self.close()

    def close(self):
        """The call has ended, or was given up."""
        job, self._job, self._reading, self._seen = self._job, None, None, []
        if job is not None and not job.closed:
            peak_bytes = sum(job.usage()["peak_bytes"].values())
            job.close()
            self._counts["peak_bytes"] = max(self._counts["peak_bytes"], peak_bytes)

    def enter(self, expert, text):
        """A forward pass of an expert begins that reads the embedding `text`."""
        # Without its scheduler nobody says where the call begins; entries of another one would be taken for its own.
        if self._job is None or not self._is_ours() or self._pipeline.scheduler is not self._scheduler:
            return
        branch = self._branch(text)
        if branch is not None:
            self._reading = (expert, branch)

    def leave(self):
        """The pass has ended, or failed."""
        if self._is_ours():
            self._reading = None

    def reads(self):
        """Whether the pass under way may read from the cache."""
        return self._reading is not None and self._is_ours()

    def _is_ours(self):
        """Whether the call under way is this thread's: another one may run the same transformers for a pipeline of its own."""
        return threading.get_ident() == self._thread

    def pair(self, layer, layers, device, compute):
        """Key and value of one layer for the pass under way, from the cache or by `compute`."""
        expert, branch = self._reading
        key = Key("cross_kv", expert * BRANCHES_MAX + branch, layer)
        ticks_per_step = 2 * layers
        now = self._step * ticks_per_step + min(branch, 1) * layers + layer
        self._job.tick(now)
        # On the CPU, attention reads them where they are.
        device = None if device.type == "cpu" else device
        lease = self._find(key)
        if lease is not None:
            self._counts["hits"] += 1
            return lease.torch(device)
        pair = compute()
        self._counts["computed"] += 1
        left = max(1, self._expert_of_step[self._step :].count(expert))
        if left > 1 and key not in self._announced:
            self._announced.add(key)
            self._job.announce(key, now + ticks_per_step, ticks_per_step, left - 1)
        lease = self._keep(key, pair, Steps(left))
        # What later steps will read is what this one reads, also where the codec rounds.
        return pair if lease is None or self._codecs == ("exact", "exact") else lease.torch(device)

    def _find(self, key):
        try:
            return self._job.get(key)
        except (Lost, OutOfBudget):
            return None

    def _keep(self, key, pair, lifetime):
        if key in self._job:
            # It is on disk and finds no room.
            self._counts["refused"] += 1
            return None
        codecs = [codec if part.dtype in CODED else "exact" for codec, part in zip(self._codecs, pair, strict=True)]
        try:
            return self._job.put(key, pair, lifetime=lifetime, recover="recompute", codec=codecs)
        except (OutOfBudget, MemoryError):
            self._counts["refused"] += 1
            return None

    def _branch(self, text):
        """The number of an embedding in this call: the same only if it is the same numbers."""
        for at, seen in enumerate(self._seen):
            if seen.holds(text):
                return at
        if len(self._seen) == BRANCHES_MAX:
            return None
        self._seen.append(_Seen(text))
        return len(self._seen) - 1

    def report(self):
        """Counts of all calls so far."""
        return dict(self._counts)


class _Seen:
    """A tensor that entries follow from. Held, so that no other one takes its place in memory."""

    def __init__(self, tensor):
        self._version = _version(tensor)
        self._kept = tensor if self._version is not None else tensor.clone()

    def holds(self, tensor):
        """Whether `tensor` has the numbers that this one had."""
        if self._version is not None:
            if _version(self._kept) != self._version:
                return False
            if tensor is self._kept:
                return True
        kept = self._kept
        alike = tensor.shape == kept.shape and tensor.dtype == kept.dtype and tensor.device == kept.device
        return alike and bool((tensor == kept).all())


def _version(tensor):
    """PyTorch's count of changes in place; `None` where it keeps none."""
    return None if tensor.is_inference() else tensor._version


def _experts_of_steps(pipeline, experts):
    """The expert of each step, by the rule of `WanPipeline.__call__`."""
    timesteps = [float(timestep) for timestep in pipeline.scheduler.timesteps]
    ratio = getattr(pipeline.config, "boundary_ratio", None)
    if ratio is None:
        return [0 if experts[0] is not None else 1] * len(timesteps)
    boundary = ratio * pipeline.scheduler.config.num_train_timesteps
    return [0 if timestep >= boundary else 1 for timestep in timesteps]
