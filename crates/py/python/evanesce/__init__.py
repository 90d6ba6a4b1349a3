"""evanesce: the life of cached blocks in a diffusion pipeline.

Every cached byte has an owner, a place, a lifetime and a next use, and comes back the moment it dies. `Cache` and `Job` are the cache;
`attach` lends it to a diffusers `WanPipeline` from outside. PyTorch and diffusers are imported when something asks for them, not before.
"""

from ._cache import Cache, Job, Lease, Stage
from ._native import CacheError, ContentKey, Ended, Exists, Lost, OutOfBudget
from ._words import KINDS, Key, Steps, Window, content_key

__version__ = "0.1.0"

__all__ = [
    "KINDS",
    "Cache",
    "CacheError",
    "ContentKey",
    "Ended",
    "Exists",
    "Job",
    "Key",
    "Lease",
    "Lost",
    "OutOfBudget",
    "Stage",
    "Steps",
    "Window",
    "attach",
    "content_key",
]


def __getattr__(name):
    if name == "attach":
        from .wan import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
