"""A stock WanPipeline with and without the cache: the same latents, the CPU time of both, and what was kept.

    python crates/py/examples/wan.py [--model models/shapes] [--frames 81] [--steps 20] [--rounds 3]
"""

import argparse
import pathlib
import statistics
import time

import torch
from diffusers import WanPipeline

import evanesce

ROOT = pathlib.Path(__file__).parents[3]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--model", default=ROOT / "models" / "shapes")
    options.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("WIDTH", "HEIGHT"))
    options.add_argument("--frames", type=int, default=81)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()

    pipeline = WanPipeline.from_pretrained(options.model, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def generate():
        start = time.process_time()
        latents = pipeline(
            "a red circle moves right",
            negative_prompt="a video",
            width=options.size[0],
            height=options.size[1],
            num_frames=options.frames,
            num_inference_steps=options.steps,
            guidance_scale=2.0,
            guidance_scale_2=2.5,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type="latent",
            return_dict=False,
        )[0]
        return latents, time.process_time() - start

    generate()  # what PyTorch sets up once
    plain_seconds, cached_seconds = [], []
    with evanesce.Cache(device="256MiB") as cache:
        for _ in range(options.rounds):
            plain, seconds = generate()
            plain_seconds.append(seconds)
            with evanesce.attach(pipeline, cache) as run:
                cached, seconds = generate()
            cached_seconds.append(seconds)
            assert torch.equal(plain, cached), "the latents differ"
        print("the same latents, bit for bit")
        print(run.report())
        print("in use at the end:", cache.used_bytes())
    without, with_cache = statistics.median(plain_seconds), statistics.median(cached_seconds)
    ratios = sorted(plain / cached for plain, cached in zip(plain_seconds, cached_seconds, strict=True))
    print(f"text and denoising, CPU time, medians of {options.rounds} rounds: {without:.2f} s without, {with_cache:.2f} s with")
    print(f"by round, {ratios[0]:.2f} to {ratios[-1]:.2f} times, {statistics.median(ratios):.2f} in the median")


if __name__ == "__main__":
    main()
