"""Trains the autoencoder, or only its decoder on encoded clips, and writes it in diffusers' layout.

Clips of 25 frames (seven latent frames: shorter ones drift in colour later on), two at a time, one for each rank if there
are two. The loss weighs the moving shape and its edge five times as much as the background. Resumes from `last.pt` in its
directory. Run two ranks with `torchrun --nproc_per_node 2 vae.py ...`.
"""

import argparse
import copy
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan

import data
import muon
import train as transformer_training
import video_vae

FRAMES, CLIPS = 25, 2
KL_WEIGHT, SQUARE_WEIGHT, SHAPE_WEIGHT = 1e-4, 3.0, 4.0


# most noise, in standard deviations, that the decoder's latents get when it is trained alone: what a transformer makes is not exact
DECODER_NOISE = 0.05


def pixel_losses(clips, pixels, got, counted=None):
    """The reconstruction loss, and the two mean squared errors worth watching: everywhere and inside the shape.

    `counted` [B, 1, T, 1, 1] says which frames count (all if it is None).
    """
    backgrounds = torch.stack([data.background_picture(clip.background) for clip in clips])[:, :, None]
    shape = ((pixels - backgrounds).abs().amax(1) > 0.08).float()
    weight = 1 + SHAPE_WEIGHT * torch.nn.functional.max_pool2d(shape, 5, 1, 2)[:, None]
    counted = torch.ones(len(clips), 1, FRAMES, 1, 1) if counted is None else counted
    weight = weight * counted
    weight = weight / weight.mean()
    error = got.float() - pixels
    square = error * error
    loss = (weight * error.abs()).mean() + SQUARE_WEIGHT * (weight * square).mean()
    inside = (shape[:, None] * counted).expand_as(square)
    everywhere = (square * counted).mean() / counted.mean()
    return loss, everywhere.item(), ((square * inside).sum() / inside.sum().clamp(min=1)).item()


class WholeTask:
    """Clips through encoder and decoder."""

    def __init__(self, vae):
        self.vae, self.parameters = vae, list(vae.parameters())
        self.encoder, self.decoder = (torch.compile(part, dynamic=False) for part in (vae.encoder, vae.decoder))

    def losses(self, rng, count):
        clips = [data.sample_clip(rng) for _ in range(count)]
        pixels = torch.stack([data.render(clip, FRAMES, 4 * rng.randrange(8)) for clip in clips])
        pixels = pixels.contiguous(memory_format=torch.channels_last_3d)
        mean, log_variance = self.vae.quant_conv(self.encoder(pixels)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-20, 5)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        loss, *watched = pixel_losses(clips, pixels, self.decoder(self.vae.post_quant_conv(latents)))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return loss + KL_WEIGHT * kl, *watched


class DecoderTask:
    """Encoded clips through the decoder: their beginning, or a part whose first frames do not count, for lack of history."""

    def __init__(self, vae, latents, weights):
        self.vae, self.pool = vae, transformer_training.LatentPool(latents, weights=weights)
        self.weights = self.pool.captioned.tolist()
        self.mean, self.std = video_vae.latent_statistics(vae)
        self.parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        self.decoder = torch.compile(vae.decoder, dynamic=False)

    def losses(self, rng, count):
        picked = rng.choices(range(len(self.pool.clips)), self.weights, k=count)
        length = (FRAMES + 3) // 4
        starts = [rng.choice((0, rng.randrange(self.pool.latents.shape[2] - length + 1))) for _ in picked]
        clips = [self.pool.clips[i] for i in picked]
        pixels = torch.stack([data.render(clip, FRAMES, 4 * start) for clip, start in zip(clips, starts, strict=True)])
        # autocast cannot stack the pool's halves
        latents = torch.stack([self.pool.latents[i, :, s : s + length].float() for i, s in zip(picked, starts, strict=True)])
        latents = latents + DECODER_NOISE * torch.rand(count, 1, 1, 1, 1) * torch.randn_like(latents)
        latents = (latents * self.std + self.mean).contiguous(memory_format=torch.channels_last_3d)
        without_history = torch.arange(FRAMES)[None] < torch.tensor([0 if s == 0 else 9 for s in starts])[:, None]
        counted = (~without_history).float()[:, None, :, None, None]
        return pixel_losses(clips, pixels, self.decoder(self.vae.post_quant_conv(latents)), counted)


def rate_at(progress, step, peak):
    """Short warm-up, flat for a tenth of the budget, then a cosine to 1.5 % of the peak."""
    fall = min(1, max(0, progress - 0.1) / 0.9)
    return peak * min(1, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * fall)) * 0.985 + 0.015)


def decibels(mean_square):
    """Peak signal-to-noise ratio for pixels in [-1, 1]."""
    return 10 * math.log10(4 / mean_square)


def average_gradients(parameters, ranks):
    """Leaves the mean over all ranks in every gradient."""
    flat = torch.cat([p.grad.flatten() for p in parameters]) / ranks
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def train(vae, args, rank, ranks):
    """Trains `vae` for the budget and returns the running average of its weights."""
    task = DecoderTask(vae, args.decoder_on, args.weights) if args.decoder_on else WholeTask(vae)
    path = Path(args.out) / "last.pt"
    average = copy.deepcopy(vae)
    parameters = task.parameters
    is_kernel = lambda p: p.ndim >= 4 and p.shape[0] >= 8 and min(p.shape[0], p.numel() // p.shape[0]) >= 16
    optimiser = muon.Muon([p for p in parameters if is_kernel(p)], [p for p in parameters if not is_kernel(p)], betas=(0.9, 0.99),
                          rank=rank, ranks=ranks)
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path)
        vae.load_state_dict(state["running"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds = state["step"], state["seconds"]
    rng, watched = random.Random((2024 + step) * 64 + rank), []
    torch.manual_seed(step * 64 + rank)
    done = lambda: step / args.steps if args.steps else seconds / (60 * args.minutes)
    first = step
    while done() < 1:
        started = time.time()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            loss, everywhere, inside = task.losses(rng, CLIPS // ranks)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        if ranks > 1:
            average_gradients(parameters, ranks)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step(rate_at(done(), step, args.rate))
        step += 1
        # compilation takes no minutes
        seconds += min(time.time() - started, 30) if step - first > 2 else 0
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - min(0.996, step / (step + 20)))
        watched.append((everywhere, inside))
        if step % 50 == 0 and rank == 0:
            psnr, inner = (decibels(sum(column) / len(watched)) for column in zip(*watched, strict=True))
            print(f"{step} {seconds:.0f}s psnr {psnr:.2f} dB, inside the shape {inner:.2f} dB", flush=True)
            watched = []
        if rank == 0 and (step % 300 == 0 or done() >= 1):
            torch.save({"running": vae.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict(),
                        "step": step, "seconds": seconds}, f"{path}.part")
            os.replace(f"{path}.part", path)
    return average


def with_statistics(vae, clips=48, frames=45):
    """The same autoencoder, its config holding mean and standard deviation of the latents of fresh training clips."""
    rng, latents = random.Random(7), []
    with torch.no_grad():
        for _ in range(clips):
            moments = video_vae.encode_moments(vae, data.render(data.sample_clip(rng), frames)[None])
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
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget in minutes of training, for one rank")
    budget.add_argument("--steps", type=int, help="budget in steps")
    parser.add_argument("--init", help="directory of an autoencoder to start from instead of from nothing")
    parser.add_argument("--decoder-on", metavar="LATENTS", help="train only the decoder, on the clips encoded there")
    parser.add_argument("--weights", nargs="*", default=[], metavar="SHAPE:WEIGHT", help="draw encoded clips of these shapes more or less often")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs and GPUs that multiply bfloat16 in hardware")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.weights = transformer_training.parse_weights(args.weights)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        if args.minutes:
            parser.error("--minutes is for one rank: the clocks of several differ; give --steps")
        dist.init_process_group("gloo")
    start = video_vae.load(args.init).train() if args.init else video_vae.build()
    average = train(video_vae.use_channels_last(start), args, rank, ranks)
    if rank == 0:
        average = average.eval() if args.decoder_on else with_statistics(average.eval())
        average.save_pretrained(Path(args.out) / "vae", safe_serialization=True)


if __name__ == "__main__":
    main()
