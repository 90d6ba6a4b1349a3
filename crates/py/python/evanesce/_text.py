"""Embeddings of prompts by content, across the calls of a pipeline, under a budget of their own."""

import hashlib
import inspect
import itertools
import json
import weakref
from collections import OrderedDict

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ._native import Exists, Lost, OutOfBudget
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
        state = _fingerprint(encoder)
        if state is None:
            return {}
        negatives = given["negative_prompt"] or ""
        negatives = [negatives] * len(prompts) if isinstance(negatives, str) else negatives
        texts = {"prompt": prompts}
        if given.get("do_classifier_free_guidance") and _are_texts(negatives) and len(negatives) == len(prompts):
            texts["negative_prompt"] = negatives
        device = torch.device(given.get("device") or self._pipeline._execution_device)
        same = (
            "encode_prompt 2",
            state,
            _tokenizing(getattr(self._pipeline, "tokenizer", None)),
            type(self._pipeline).__qualname__,
            str(given.get("dtype") or encoder.dtype),
            device.type,
            _autocast({device.type, encoder.device.type}),
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
        if key not in self.sizes:
            return None
        try:
            lease = self._cache().get(key)
        except (Lost, OutOfBudget):
            lease = None
        if lease is None:
            # Gone, or it is on disk and finds no room; nothing is kept that this does not know of.
            self._cache().remove(key)
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
_NUMBERS = WeakIdKeyDictionary()
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
    """What names the weights of a module: which objects they are, and what PyTorch counts of changes to each.

    `None` where that does not say what it computes: with tensors whose changes PyTorch does not count, or that lie elsewhere between
    passes, and with adapters of PEFT, whose switches and factors are no tensors.
    """
    if any(_is_adapted(part) for part in module.modules()):
        return None
    digest = hashlib.blake2b(f"{_number(module)}\n".encode(), digest_size=16)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_inference() or tensor.is_meta:
            return None
        digest.update(f"{name} {_number(tensor)} {tuple(tensor.shape)} {tensor.dtype} {tensor._version}\n".encode())
    return digest.hexdigest()


def _is_adapted(module):
    """Whether it is a layer of PEFT. (Models of transformers have methods of the names that are properties there.)"""
    return any(not callable(getattr(module, name, callable)) for name in ("disable_adapters", "active_adapters"))


def _tokenizing(tokenizer):
    """What names a tokenizer: the object, and what is changed on it most."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    sides = [getattr(tokenizer, name, None) for name in ("truncation_side", "padding_side")]
    return f"{_number(tokenizer)} {size} {sides}"


def _autocast(devices):
    """What PyTorch casts by itself on devices of these types."""
    cast = [kind for kind in sorted(devices) if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)]
    return str([(kind, torch.get_autocast_dtype(kind)) for kind in cast])


def _are_texts(texts):
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
