"""The cache's words: kinds, keys, lifetimes, sizes."""

import os
import re
from typing import NamedTuple

from ._native import ContentKey

KINDS = ("text_embedding", "cross_kv", "self_kv", "step_residual", "latent", "vae_feature", "weights")

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}
_UNITS |= {prefix: 1024**power for power, prefix in enumerate("kmgt", 1)}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)}


class Key(NamedTuple):
    """The name of an entry inside its job. Two jobs may use equal keys and never meet.

    `part` is the expert, branch or component, `index` the layer or slot, as the caller numbers them; `frame` is the latent frame,
    by which `Window` counts. All are whole numbers from 0 to 2**32 - 1.
    """

    kind: str
    part: int = 0
    index: int = 0
    frame: int = 0


class Steps(NamedTuple):
    """A lifetime: until the end of the n-th `Job.step` after the put; n is 1 at least."""

    n: int


class Window(NamedTuple):
    """A lifetime: while the frame is below `sink`, or among the `recent` highest frames of its series (equal keys but for the frame)."""

    sink: int
    recent: int


def lifetime_words(lifetime):
    """What the native part calls a lifetime: `Steps`, `Window`, "stage" or "job"."""
    match lifetime:
        case Steps(n):
            return ("steps", n, 0)
        case Window(sink, recent):
            return ("window", sink, recent)
        case "stage" | "job":
            return (lifetime, 0, 0)
    raise ValueError(f'lifetime {lifetime!r} is not known; use Steps(n), Window(sink, recent), "stage" or "job"')


def content_key(kind, *parts):
    """The name of a shared entry: its kind, and everything that its bytes depend on, as text or bytes."""
    return ContentKey(kind, [part.encode() if isinstance(part, str) else bytes(part) for part in parts])


def size_bytes(size):
    """`8GiB`, `400MB`, `1.5 GiB` or a number: bytes. KiB, MiB, GiB, TiB count in 1024s; kB, MB, GB, TB in 1000s."""
    if isinstance(size, int) and not isinstance(size, bool):
        number, unit = size, ""
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*", size) if isinstance(size, str) else None
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"{size!r} is no size; write it as 8GiB, 400MB or a number of bytes")
        number, unit = float(match[1]) if "." in match[1] else int(match[1]), match[2].lower()
    size = int(number * _UNITS[unit])
    if not 0 <= size <= 10**15:
        raise ValueError(f"{size} bytes are no size; it lies between 0 and 1000 TB")
    return size


def disk_words(disk):
    """`DIR:64GiB`, or a directory and a size: the directory and bytes."""
    if disk is None:
        return None
    if isinstance(disk, str):
        directory, colon, size = disk.rpartition(":")
        if not colon or not directory:
            raise ValueError(f"{disk!r} is no disk; write a directory and a size, such as DIR:64GiB")
        return (directory, size_bytes(size))
    directory, size = disk
    return (os.fspath(directory), size_bytes(size))
