"""Scores the autoencoder alone: held-out clips encoded and decoded, read by the detector.

Whole clips at once, which gives what diffusers' chunked walk gives (see `check.py`) in a third of the time; `--chunked` walks
as diffusers does.
"""

import argparse
import json
import math
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

import data
import detect
import evaluate
import video_vae


def through(vae, chunked, frames, clip):
    """What the detector reads after the autoencoder, and the error in dB."""
    torch.set_num_threads(1)
    vae = video_vae.load(vae) if chunked else video_vae.use_channels_last(video_vae.load(vae))
    pixels = data.render(clip, frames)
    with torch.no_grad():
        if chunked:
            out = vae.decode(vae.encode(pixels[None]).latent_dist.mean).sample[0]
        else:
            latents = video_vae.encode_moments(vae, pixels[None])[:, : video_vae.LATENT_CHANNELS]
            out = video_vae.decode_whole(vae, latents)[0].clamp(-1, 1)
    return detect.detect(out), 10 * math.log10(4 / (out - pixels).pow(2).mean().item())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--chunked", action="store_true", help="with diffusers' own chunked encode and decode")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="where to write the scores")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    clips = [data.sample_clip(rng, held_out=True) for _ in range(args.count)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context) as pool:
        results = list(pool.map(partial(through, args.vae, args.chunked, args.frames), clips, chunksize=4))
    seen, decibels = zip(*results, strict=True)
    result = evaluate.score(clips, seen)
    result |= {"psnr_mean_db": sum(decibels) / len(decibels), "psnr_least_db": min(decibels)}
    for name, right in result["right"].items():
        low, high = evaluate.wilson(right, args.count)
        print(f"{name:>10} {right}/{args.count} = {right / args.count:.3f} [{low:.3f}, {high:.3f}]")
    print(f"PSNR mean {result['psnr_mean_db']:.2f} dB, least {result['psnr_least_db']:.2f} dB; {result['mistakes']}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
