"""Scores the autoencoder alone: held-out clips through diffusers' chunked encode and decode, read by the detector."""

import argparse
import math
import random

import torch

import data
import detect
import evaluate
import video_vae


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--wide", action="store_true", help="clips of the autoencoder's own range")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae, rng = video_vae.load(args.vae), random.Random(args.seed)
    sample = data.sample_wide if args.wide else data.sample_clip
    ranges = {"shapes": data.WIDE_SHAPES, "radii": data.WIDE_RADII} if args.wide else {}
    clips, seen, errors = [sample(rng, held_out=True) for _ in range(args.count)], [], []
    with torch.no_grad():
        for clip in clips:
            pixels = data.render(clip, args.frames)
            out = vae.decode(vae.encode(pixels[None]).latent_dist.mean).sample[0]
            errors.append(10 * math.log10(4 / (out - pixels).pow(2).mean().item()))
            seen.append(detect.detect(out, **ranges))
    result = evaluate.score(clips, seen)
    print({name: f"{right}/{args.count}" for name, right in result["right"].items()}, result["mistakes"])
    print(f"PSNR mean {sum(errors) / len(errors):.2f} dB, least {min(errors):.2f} dB")


if __name__ == "__main__":
    main()
