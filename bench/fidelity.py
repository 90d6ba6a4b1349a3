"""How far videos from encoded pages are from videos from bf16 pages, over many prompts, with the floor beside them.

    python bench/fidelity.py --evanesce target/release/evanesce --model models/shapes-causal --prompts 12
    python bench/fidelity.py --evanesce target/release/evanesce --model models/shapes-causal --prompts 12 --ground-truth

Every codec is compared with evanesce's own bf16 run of the same prompt and seed by `evanesce compare`; means and standard
deviations over the prompts. Two floors say what a difference means: bf16 pages again, from initial noise whose every number
is moved by one unit in the last place, of f32 (what another order of additions does) and of bf16 (what rounding it once
does). Below a floor a PSNR says nothing.

`--ground-truth` goes on from the data set's own clips (`models/data.py`): their first frames are encoded and committed, the
rest is generated, and what is generated is compared with the rest of the clip. What counts is how much less PSNR a
codec has there than bf16.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
import data  # noqa: E402

PARTS = ("first_block", "seconds_0_to_2", "seconds_2_to_5", "whole")
# as the engine draws the noise of later blocks
BLOCK_STRIDE = 0x9E3779B97F4A7C15
EQUAL_DB = 120.0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evanesce", type=Path, required=True, help="the evanesce binary")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint that makes a video block by block")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--codecs", default="int8,int4,int2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ground-truth", action="store_true", help="compare continuations of the data set's clips with the clips")
    parser.add_argument("--start-frames", type=int, default=33, help="with --ground-truth: frames of each clip that are given")
    parser.add_argument("--output", type=Path, help="also write every measurement to this JSON file")
    return parser.parse_args()


class Evanesce:
    """The command over one checkpoint, with files in one folder."""

    def __init__(self, arguments, folder):
        self.binary, self.model, self.frames, self.folder = arguments.evanesce, arguments.model, arguments.frames, folder

    def generate(self, name, prompt, seed, codec, *more):
        frames = self.folder / f"{name}.safetensors"
        command = [self.binary, "generate", "--model", self.model, "--frames", str(self.frames), "--seed", str(seed), "--kv-codec", codec]
        command += ["-o", self.folder / f"{name}.mp4", "--frames-out", frames, *more, "--", prompt]
        self.run(command)
        return frames

    def compare(self, ours, reference):
        return json.loads(self.run([self.binary, "compare", ours, reference, "--fps", "16", "--json"]))

    @staticmethod
    def run(command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout


def initial_noise(model, frames, seed):
    """The noise that the engine draws, [16, T, 8, 8]: each block from a seed of its own."""
    causal = json.loads((model / "model_index.json").read_text())["evanesce"]["causal"]
    other = causal["block_frames"]
    first = causal.get("first_block_frames", other)
    latents = (frames - 1) // 4 + 1
    blocks, made = [], 0
    while made < latents:
        count = other if blocks else first
        generator = torch.Generator("cpu").manual_seed((seed + len(blocks) * BLOCK_STRIDE) % 2**64)
        blocks.append(torch.randn(16, count, data.SIDE // 8, data.SIDE // 8, generator=generator))
        made += count
    return torch.cat(blocks, 1).contiguous()


def moved(noise, mantissa_bits):
    """Every number moved by one unit in the last place of so many bits of mantissa, up or down by chance."""
    signs = torch.randint(0, 2, noise.shape, generator=torch.Generator("cpu").manual_seed(0)) * 2 - 1
    exponent = torch.floor(torch.log2(noise.abs().clamp_min(1e-30)))
    return noise + signs * torch.exp2(exponent - mantissa_bits)


def fidelity(evanesce, arguments, prompts):
    """By run and part: PSNR and SSIM against the bf16 run, one of each for every prompt."""
    codecs = arguments.codecs.split(",")
    runs = {name: [] for name in ("floor, 1 ulp of f32", "floor, 1 ulp of bf16", *codecs)}
    for at, prompt in enumerate(prompts):
        seed = arguments.seed + at
        noise = initial_noise(arguments.model, arguments.frames, seed)
        reference = evanesce.generate("bf16", prompt, seed, "bf16")
        for name, bits in (("floor, 1 ulp of f32", 23), ("floor, 1 ulp of bf16", 7)):
            file = evanesce.folder / "noise.safetensors"
            save_file({"noise": moved(noise, bits)}, file)
            runs[name].append(evanesce.compare(evanesce.generate("moved", prompt, seed, "bf16", "--noise-in", file), reference))
        for codec in codecs:
            runs[codec].append(evanesce.compare(evanesce.generate(codec, prompt, seed, codec), reference))
    return runs


def ground_truth(evanesce, arguments, clips, prompts):
    """By codec: PSNR of what was generated against the rest of the clip, one for every clip."""
    codecs = ["bf16", *arguments.codecs.split(",")]
    psnr = {codec: [] for codec in codecs}
    for at, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        truth = (data.render(clip, arguments.frames).permute(1, 2, 3, 0) / 2 + 0.5).contiguous()
        start = evanesce.folder / "start.safetensors"
        save_file({"frames": truth[: arguments.start_frames].contiguous()}, start)
        for codec in codecs:
            made = load_file(evanesce.generate(codec, prompt, arguments.seed + at, codec, "--start-from", start))["frames"]
            error = (made - truth)[arguments.start_frames :].square().mean().item()
            psnr[codec].append(-10 * math.log10(error))
    return psnr


def spread(values):
    """Mean and standard deviation; what is equal counts as 120 dB."""
    return f"{statistics.mean(values):8.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:<6.2f}"


def print_fidelity(runs):
    print(f"{'against bf16':<24}" + "".join(f"{part:>36}" for part in PARTS))
    for name, measured in runs.items():
        row = f"{name:<24}"
        for part in PARTS:
            of_part = [one[part] for one in measured if part in one]
            if not of_part:
                continue
            psnr = [EQUAL_DB if one["psnr_db"] is None else one["psnr_db"] for one in of_part]
            text = "equal" if min(psnr) == EQUAL_DB else f"{spread(psnr)} dB, SSIM {statistics.mean(one['ssim'] for one in of_part):.4f}"
            row += f"{text:>36}"
        print(row)


def print_ground_truth(psnr):
    print(f"{'against the clip':<24}{'PSNR':>20}{'drop against bf16':>24}")
    for codec, values in psnr.items():
        drop = [ours - theirs for ours, theirs in zip(psnr["bf16"], values, strict=True)]
        print(f"{codec:<24}{spread(values):>20}{spread(drop):>24} dB")


def main():
    arguments = parse_arguments()
    rng = random.Random(arguments.seed)
    clips = [data.sample_clip(rng, True) for _ in range(arguments.prompts)]
    prompts = [data.caption(rng, clip) for clip in clips]
    with tempfile.TemporaryDirectory() as folder:
        evanesce = Evanesce(arguments, Path(folder))
        if arguments.ground_truth:
            result = ground_truth(evanesce, arguments, clips, prompts)
            print_ground_truth(result)
        else:
            result = fidelity(evanesce, arguments, prompts)
            print_fidelity(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
