"""Trains the autoencoder from nothing on clips of the wide range, and writes it in diffusers' layout.

Clips of 25 frames (seven latent frames: shorter ones drift in colour later on), two at a time. The loss weighs the moving
shape and its edge five times as much as the background. Resumes from `last.pt` in its directory.
"""

import argparse
import copy
import math
import os
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

import data
import muon
import video_vae

FRAMES, CLIPS = 25, 2
KL_WEIGHT, SQUARE_WEIGHT, SHAPE_WEIGHT = 1e-4, 3.0, 4.0


def draw_batch(rng):
    """Rendered clips, the loss weight of each pixel (mean one) and the mask of the shape."""
    clips = [data.sample_wide(rng) for _ in range(CLIPS)]
    pixels = torch.stack([data.render(clip, FRAMES, rng.randrange(40)) for clip in clips])
    backgrounds = torch.stack([data.background_picture(clip.background) for clip in clips])[:, :, None]
    shape = ((pixels - backgrounds).abs().amax(1) > 0.08).float()
    weight = 1 + SHAPE_WEIGHT * torch.nn.functional.max_pool2d(shape, 5, 1, 2)[:, None]
    return pixels.contiguous(memory_format=torch.channels_last_3d), weight / weight.mean(), shape[:, None]


def reconstruction_loss(vae, encoder, decoder, rng, bfloat16):
    """The training loss and the two mean squared errors worth watching: everywhere and inside the shape."""
    pixels, weight, shape = draw_batch(rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        mean, log_variance = vae.quant_conv(encoder(pixels)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-20, 5)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = decoder(vae.post_quant_conv(latents)).float() - pixels
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    square = error * error
    loss = (weight * error.abs()).mean() + SQUARE_WEIGHT * (weight * square).mean() + KL_WEIGHT * kl
    return loss, square.mean().item(), ((square.mean(1, keepdim=True) * shape).sum() / shape.sum()).item()


def rate_at(progress, step, peak):
    """Short warm-up, flat for a tenth of the budget, then a cosine to 1.5 % of the peak."""
    fall = min(1, max(0, progress - 0.1) / 0.9)
    return peak * min(1, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * fall)) * 0.985 + 0.015)


def decibels(mean_square):
    """Peak signal-to-noise ratio for pixels in [-1, 1]."""
    return 10 * math.log10(4 / mean_square)


def train(vae, args):
    """Trains `vae` for the budget and returns the running average of its weights."""
    path = Path(args.out) / "last.pt"
    average = copy.deepcopy(vae)
    parameters = list(vae.parameters())
    is_kernel = lambda p: p.ndim >= 4 and p.shape[0] >= 8 and min(p.shape[0], p.numel() // p.shape[0]) >= 16
    optimiser = muon.Muon([p for p in parameters if is_kernel(p)], [p for p in parameters if not is_kernel(p)], betas=(0.9, 0.99))
    step = 0
    if path.exists():
        state = torch.load(path)
        vae.load_state_dict(state["running"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    encoder, decoder = torch.compile(vae.encoder, dynamic=False), torch.compile(vae.decoder, dynamic=False)
    rng, watched = random.Random(2024 + step), []
    started = time.time()
    while step < args.steps:
        loss, everywhere, inside = reconstruction_loss(vae, encoder, decoder, rng, args.bfloat16)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step(rate_at(step / args.steps, step, args.rate))
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - min(0.996, step / (step + 20)))
        watched.append((everywhere, inside))
        if step % 50 == 0:
            psnr, inner = (decibels(sum(column) / len(watched)) for column in zip(*watched, strict=True))
            print(f"{step} {time.time() - started:.0f}s psnr {psnr:.2f} dB, inside the shape {inner:.2f} dB", flush=True)
            watched = []
        if step % 300 == 0 or step == args.steps:
            torch.save({"running": vae.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict(),
                        "step": step}, f"{path}.part")
            os.replace(f"{path}.part", path)
    return average


def with_statistics(vae, clips=48, frames=45):
    """The same autoencoder, its config holding mean and standard deviation of the latents of fresh training clips."""
    rng, latents = random.Random(7), []
    with torch.no_grad():
        for _ in range(clips):
            moments = video_vae.encode_moments(vae, data.render(data.sample_wide(rng), frames)[None])
            latents.append(moments[:, : video_vae.LATENT_CHANNELS])
    stacked = torch.cat(latents)
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    measured = AutoencoderKLWan(**config | {"latents_mean": stacked.mean((0, 2, 3, 4)).tolist(),
                                            "latents_std": stacked.std((0, 2, 3, 4)).tolist()})
    measured.load_state_dict({name: value.contiguous() for name, value in vae.state_dict().items()})
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="directory; the result is its subdirectory `vae`")
    parser.add_argument("--steps", type=int, default=3050)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs and GPUs that multiply bfloat16 in hardware")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    average = train(video_vae.use_channels_last(video_vae.build()), args)
    with_statistics(average.eval()).save_pretrained(Path(args.out) / "vae", safe_serialization=True)


if __name__ == "__main__":
    main()
