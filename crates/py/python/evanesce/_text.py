"""Embeddings of prompts by content, across the calls of a pipeline, under a budget of their own."""

import hashlib
import inspect
import itertools
import json
import weakref
from collections import OrderedDict

import torch

from ._native import Exists, OutOfBudget
from ._words import content_key

# Each side of `encode_prompt`: what it is made from, and where a finished one is given.
SIDES = {"prompt": "prompt_embeds", "negative_prompt": "negative_prompt_embeds"}
# What of `encode_prompt`'s arguments decides an embedding, whatever else a pipeline's takes.
PLACES = (*SIDES, *SIDES.values(), "do_classifier_free_guidance", "device", "dtype")


class Texts:
    """Embeddings that `encode_prompt` of one pipeline gives, in the shared pool of a cache."""

    def __init__(self, cache, pipeline, limit_bytes):
        self._cache, self._pipeline = cache, pipeline
        self._pool = _pool_of(cache)
        self._pool.limit_bytes = limit_bytes
        self._counts = {"hits": 0, "computed": 0}

    def encode(self, original, *args, **kwargs):
        """`encode_prompt`, computing what the cache has not got."""
        given = inspect.signature(original).bind(*args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        keys = self._keys(given)
        if not keys:
            return original(*args, **kwargs)
        device = given.get("device") or self._pipeline._execution_device
        found = {side: self._pool.get(key, device) for side, key in keys.items()}
        self._counts["hits"] += sum(embedding is not None for embedding in found.values())
        finished = {SIDES[side]: embedding for side, embedding in found.items() if embedding is not None}
        results = original(**{**given, **finished})
        for side, embedding in zip(SIDES, results, strict=True):
            if side in keys and found[side] is None and embedding is not None:
                self._counts["computed"] += 1
                self._pool.put(keys[side], embedding)
        return results

    def _keys(self, given):
        """The content keys of the sides that are to be encoded; none where what decides them cannot be said."""
        encoder = getattr(self._pipeline, "text_encoder", None)
        prompts, others = given.get("prompt"), {name: value for name, value in given.items() if name not in PLACES}
        prompts = [prompts] if isinstance(prompts, str) else prompts
        plain = all(value is None or isinstance(value, str | int | float | bool) for value in others.values())
        known = set(SIDES) | set(SIDES.values()) <= set(given)
        if encoder is None or encoder.training or torch.is_grad_enabled() or not (plain and known and _are_texts(prompts)):
            return {}
        negatives = given["negative_prompt"] or ""
        negatives = [negatives] * len(prompts) if isinstance(negatives, str) else negatives
        texts = {"prompt": prompts}
        if given.get("do_classifier_free_guidance") and _are_texts(negatives) and len(negatives) == len(prompts):
            texts["negative_prompt"] = negatives
        device = torch.device(given.get("device") or self._pipeline._execution_device)
        same = (
            "encode_prompt 1",
            _fingerprint(encoder),
            str(_number(getattr(self._pipeline, "tokenizer", None))),
            type(self._pipeline).__qualname__,
            str(given.get("dtype") or encoder.dtype),
            device.type,
            json.dumps(others, sort_keys=True),
        )
        wanted = {side: listed for side, listed in texts.items() if given[SIDES[side]] is None}
        return {side: content_key("text_embedding", *same, json.dumps(listed)) for side, listed in wanted.items()}

    def report(self):
        """Counts so far, and what the pool holds."""
        return {**self._counts, "entries": len(self._pool.sizes), "bytes": sum(self._pool.sizes.values())}


class _Pool:
    """Embeddings of one cache in the order of their last use, as many as the limit holds."""

    def __init__(self, cache):
        self._cache = weakref.ref(cache)
        self.limit_bytes = 0
        self.sizes = OrderedDict()

    def get(self, key, device):
        """An embedding in memory of its own, or `None`."""
        lease = self._cache().get(key) if key in self.sizes else None
        if lease is None:
            self.sizes.pop(key, None)
            return None
        self.sizes.move_to_end(key)
        rows, length = lease.torch()
        embedding = rows.new_zeros(rows.shape[0], int(length), rows.shape[2])
        embedding[:, : rows.shape[1]] = rows
        return embedding.to(device)

    def put(self, key, embedding):
        """Keeps an embedding `[batch, length, width]` without the rows of zeros that pad it."""
        if embedding.ndim != 3:
            return
        cache = self._cache()
        filled = embedding.ne(0).any(-1).any(0).nonzero()
        rows = embedding[:, : int(filled.max()) + 1 if len(filled) else 0]
        if rows.nbytes > self.limit_bytes:
            return
        tier = "host" if cache.counters()["tiers"]["host"]["budget_bytes"] else "device"
        try:
            lease = cache.put(key, (rows, torch.tensor(embedding.shape[1])), tier=tier)
        except (OutOfBudget, MemoryError, Exists):
            return
        self.sizes[key] = lease.nbytes
        while sum(self.sizes.values()) > self.limit_bytes:
            cache.remove(self.sizes.popitem(last=False)[0])


_POOLS = weakref.WeakKeyDictionary()
_NUMBERS = weakref.WeakKeyDictionary()
_next_number = itertools.count(1)


def _pool_of(cache):
    return _POOLS.setdefault(cache, _Pool(cache))


def _number(thing):
    """A number for an object that no other object of this process ever has."""
    if thing is None:
        return 0
    number = _NUMBERS.get(thing)
    return number if number is not None else _NUMBERS.setdefault(thing, next(_next_number))


def _fingerprint(module):
    """What names the weights of a module: the object, and what PyTorch counts of changes to its parameters."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        version = 0 if parameter.is_inference() else parameter._version
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {version}\n".encode())
    return f"{_number(module)} {digest.hexdigest()}"


def _are_texts(texts):
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
