"""Goldens of the schedulers: noise levels, timesteps and trajectories.

The diffusers grids are read from diffusers' own schedulers. The official grid follows the published
FlowUniPCMultistepScheduler of Wan2.2 (wan/utils/fm_solvers_unipc.py), whose solver equals diffusers' one, so its
trajectories run diffusers' solver on the official levels.

Run from the repository root:  python xtask/goldens/schedule.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file

OUT = Path("crates/wan/tests/goldens/schedule")
STEPS = [1, 2, 3, 4, 8, 20, 40, 50]
SHIFTS = [3.0, 5.0, 12.0]


def official_levels(steps, shift):
    alphas = np.linspace(1, 1 / 1000, 1000)[::-1].copy()
    table = torch.from_numpy(1.0 - alphas).to(torch.float32)
    sigmas = np.linspace(table[0].item(), table[-1].item(), steps + 1).copy()[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
    sigmas = torch.from_numpy(np.concatenate([sigmas, [0]]).astype(np.float32))
    return timesteps, sigmas


def scheduler(solver, grid, steps, shift):
    if solver == "unipc":
        made = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        )
    else:
        made = FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(steps)
    if grid == "official":
        made.timesteps, made.sigmas = official_levels(steps, shift)
    made.set_begin_index(0)
    return made


def velocity(x, t):
    return torch.sin(3 * x) * 0.7 + 0.1 * x + float(t) / 1000


def trajectory(made, start):
    x, samples = start, []
    for t in made.timesteps:
        # Euler refuses whole timesteps, but with a begin index it does not look at their values.
        x = made.step(velocity(x, t), t.float() if t.dtype == torch.int64 else t, x, return_dict=False)[0]
        samples.append(x)
    return torch.stack(samples)


def stored(steps):
    """Which steps' samples are kept: all of short runs, each fifth of longer ones (the last among them)."""
    return list(range(steps)) if steps <= 8 else list(range(4, steps, 5))


def main():
    start = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    tensors = {"start": start}
    for solver in ("unipc", "euler"):
        for grid in ("diffusers", "official"):
            for shift in SHIFTS:
                for steps in STEPS:
                    made = scheduler(solver, grid, steps, shift)
                    name = f"{solver}/{grid}/{shift:g}/{steps}"
                    tensors[f"{name}/timesteps"] = made.timesteps.double()
                    tensors[f"{name}/sigmas"] = made.sigmas.float()
                    tensors[f"{name}/samples"] = trajectory(made, start)[stored(steps)].reshape(-1, 32).contiguous()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT / "schedules.safetensors")


if __name__ == "__main__":
    main()
