"""Goldens of the initial noise: torch.randn on a seeded CPU generator.

Run from the repository root, on an x86-64 machine with AVX2:  python xtask/goldens/noise.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path("crates/wan/tests/goldens/noise")
SMALL = [1, 2, 3, 15, 16, 17, 31, 32, 100]
LARGE = [16 * 21 * 8 * 8, 16 * 21 * 60 * 104 - 5]
SEEDS = [0, 7, 42, 2**31, 2**32 + 5, 2**63, 2**64 - 1]


def randn(seed, length):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(length, generator=generator, dtype=torch.float32)


def digest(noise):
    """A position-dependent sum of the bits, modulo 2^63: sum of (i + 1) * bits[i]."""
    bits = noise.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    weights = torch.arange(1, len(bits) + 1, dtype=torch.int64)
    return (bits * weights).sum() & 0x7FFF_FFFF_FFFF_FFFF


def main():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"), "the goldens are those of the AVX2 kernel"
    assert torch.equal(randn(-1, 32), randn(2**64 - 1, 32)), "negative seeds are two's complements"
    tensors = {f"{seed}/{length}": randn(seed, length) for seed in SEEDS for length in SMALL}
    for length in LARGE:
        noise = randn(7, length)
        tensors[f"large/{length}/first"] = noise[:64].clone()
        tensors[f"large/{length}/last"] = noise[-64:].clone()
        tensors[f"large/{length}/digest"] = digest(noise).reshape(1)
    generator = torch.Generator("cpu").manual_seed(11)
    calls = [torch.randn(n, generator=generator) for n in (3, 20, 4, 16)]
    tensors["calls"] = torch.cat(calls)
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT / "randn.safetensors", metadata={"torch": torch.__version__})


if __name__ == "__main__":
    main()
