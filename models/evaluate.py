"""Generates clips from prompts never trained on, through evanesce or diffusers, and scores what the detector sees in them.

Both are given the same noise seeds, so they should make the same clips.

Prints one line per attribute with a 95 % interval (Wilson), the same for wrong prompts (each clip against all other clips'
descriptions), and writes the scores and a contact sheet if asked. Of a clip longer than 81 frames the first 81 and the last 81
are scored, and the last ones' sharpness is compared with the first ones'.
"""

import argparse
import json
import math
import multiprocessing
import random
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

import data
import detect


def draw_prompts(count, seed, held_out):
    """`count` clips to ask for and a caption of each."""
    rng = random.Random(seed)
    clips = [data.sample_clip(rng, held_out) for _ in range(count)]
    return clips, [data.caption(rng, clip) for clip in clips]


class Diffusers:
    """A WanPipeline in this process, with the settings to use."""

    def __init__(self, model, settings, threads):
        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        self.settings = settings
        self.pipeline = WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
        scheduler = self.pipeline.scheduler
        self.pipeline.scheduler = UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=settings["shift"])
        self.pipeline.set_progress_bar_config(disable=True)

    def clips(self, prompts, seeds):
        """One clip [3, T, 64, 64] in [-1, 1] per prompt; each has a noise seed of its own, so batches do not matter."""
        settings = self.settings
        out = self.pipeline(
            prompt=prompts, negative_prompt=[settings["negative_prompt"]] * len(prompts), width=settings["size"][0],
            height=settings["size"][1], num_frames=settings["frames"], num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_high"], guidance_scale_2=settings["guidance_low"],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="pt").frames
        return [video.permute(1, 0, 2, 3).float().numpy() * 2 - 1 for video in out]


class Evanesce:
    """The command, run once for each clip."""

    def __init__(self, model, settings, threads, binary):
        self.command = [binary, "generate", "--model", model, "--threads", str(threads), "--json"]
        names = {"frames": "frames", "steps": "steps", "guidance_high": "guidance-high", "guidance_low": "guidance-low", "shift": "shift"}
        for name, option in names.items():
            self.command += [f"--{option}", str(settings[name])]

    def clips(self, prompts, seeds):
        """One clip [3, T, 64, 64] in [-1, 1] per prompt."""
        made = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                frames = Path(folder) / "frames.safetensors"
                outputs = ["--seed", str(seed), "-o", f"{folder}/clip.mp4", "--frames-out", str(frames)]
                asked = ["--", prompt] if prompt else ["--unconditional"]
                done = subprocess.run([*self.command, *outputs, *asked], capture_output=True, text=True)
                if done.returncode != 0:
                    raise SystemExit(f"evanesce failed on {prompt!r}: {done.stderr}")
                made.append(load_file(frames)["frames"].permute(3, 0, 1, 2).numpy() * 2 - 1)
        return made


WINDOW = 81


def windows(video):
    """What of [3, T, H, W] is scored: all of it, or the first 81 frames and the last 81 that begin at the same point of the motion."""
    if video.shape[1] <= WINDOW:
        return [video]
    start = (video.shape[1] - WINDOW) // data.PERIOD * data.PERIOD
    return [video[:, :WINDOW], video[:, start : start + WINDOW]]


_generator = None


def _start_worker(binary, *arguments):
    global _generator
    torch.set_num_threads(1)
    _generator = Evanesce(*arguments, binary) if binary else Diffusers(*arguments)


def _work(batch):
    return [windows(video) for video in _generator.clips(*batch)]


def generate(model, prompts, settings, args):
    """The windows of a clip for each prompt, by several worker processes."""
    seeds = [args.seed * 1_000_000 + i for i in range(len(prompts))]
    batches = [(prompts[i : i + args.batch], seeds[i : i + args.batch]) for i in range(0, len(prompts), args.batch)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, _start_worker, (args.evanesce, model, settings, args.threads)) as pool:
        made = [parts for batch in pool.map(_work, batches) for parts in batch]
    return [[torch.from_numpy(part) for part in parts] for parts in made]


def wilson(right, count):
    """The 95 % interval of a rate."""
    z, rate = 1.96, right / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def score(clips, seen):
    """Right readings and wrong-prompt agreement per attribute, overlap of shapes, and the commonest mistakes."""
    verdicts = [detect.agreement(clip, s) for clip, s in zip(clips, seen, strict=True)]
    right = {name: sum(v[name] for v in verdicts) for name in detect.ATTRIBUTES}
    right["all"] = sum(all(v.values()) for v in verdicts)
    pairs = [detect.agreement(clip, s) for i, clip in enumerate(clips) for j, s in enumerate(seen) if i != j]
    chance = {name: sum(p[name] for p in pairs) / len(pairs) for name in detect.ATTRIBUTES}
    mistakes = Counter(f"{name}: {getattr(clip, name)} read as {s[name]}" for clip, s, v in zip(clips, seen, verdicts, strict=True)
                       for name in detect.ATTRIBUTES if not v[name])
    overlap = sum(s["overlap"] for s in seen) / len(seen)
    return {"count": len(clips), "right": right, "chance": chance, "overlap": overlap, "mistakes": mistakes.most_common(15)}


def sharpness(video):
    """The mean difference between neighbouring pixels of [3, T, H, W]."""
    return (video.diff(dim=2).abs().mean() + video.diff(dim=3).abs().mean()).item()


def is_plausible(video):
    """Whether a clip that nobody described shows one thing of this world all the time, moving in one of its ways."""
    halves = [detect.detect(half) for half in video.chunk(2, 1)]
    whole = detect.detect(video)
    steady = all(halves[0][name] == halves[1][name] for name in ("colour", "shape", "background"))
    return steady and whole["motion"] in data.MOTIONS and min(half["overlap"] for half in halves) > 0.8


def print_score(result):
    """One line per attribute, then the commonest mistakes."""
    count = result["count"]
    for name, right in result["right"].items():
        low, high = wilson(right, count)
        wrong = f", wrong prompts {result['chance'][name]:.2f}" if name in result["chance"] else ""
        print(f"{name:>10} {right}/{count} = {right / count:.3f} [{low:.2f}, {high:.2f}]{wrong}")
    print(f"mean overlap with the best shape {result['overlap']:.2f}; {result['mistakes']}")


def score_windows(clips, videos):
    """Prints and returns the scores of the first frames, and if there are later ones, of those and of their sharpness."""
    columns = list(zip(*videos, strict=True))
    results = [score(clips, [detect.detect(part) for part in column]) for column in columns]
    for result, title in zip(results, ("first frames:", "last frames:"), strict=False):
        if len(results) > 1:
            print(title)
        print_score(result)
    if len(results) == 1:
        return results[0]
    kept = [sharpness(last) / sharpness(first) for first, last in videos]
    mean = sum(kept) / len(kept)
    print(f"sharpness of the last frames, the first ones' being 1: {mean:.3f} on average, {min(kept):.3f} at least")
    return results[0] | {"last": results[1], "sharpness": mean, "sharpness_least": min(kept)}


def contact_sheet(videos, path, columns=11, colours=255):
    """One row per clip, `columns` frames spread over it."""
    rows = []
    for video in videos:
        picked = video[:, torch.linspace(0, video.shape[1] - 1, columns).round().long()]
        rows.append(torch.nn.functional.pad(((picked.clamp(-1, 1) + 1) * 127.5).byte(), (1, 1, 1, 1)).permute(2, 1, 3, 0).flatten(1, 2))
    Image.fromarray(torch.cat(rows).numpy()).quantize(colours).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--evanesce", metavar="BINARY", help="generate with this program instead of with diffusers")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--trained", action="store_true", help="ask for combinations that were trained on")
    parser.add_argument("--empty", action="store_true", help="give empty prompts and count the clips that show something plausible")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("HIGH", "LOW"))
    parser.add_argument("--shift", type=float)
    parser.add_argument("--batch", type=int, default=8, help="clips generated together")
    parser.add_argument("--workers", type=int, default=2, help="processes that generate")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--sheet", help="where to write a contact sheet of the first 24 clips")
    parser.add_argument("--json", help="where to write the scores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = json.loads((Path(args.model) / "model_index.json").read_text())["evanesce"]["defaults"]
    settings["frames"] = args.frames or settings["frames"]
    settings["steps"] = args.steps or settings["steps"]
    settings["shift"] = args.shift or settings["shift"]
    settings["guidance_high"], settings["guidance_low"] = args.guidance or (settings["guidance_high"], settings["guidance_low"])
    clips, prompts = draw_prompts(args.count, args.seed, held_out=not args.trained)
    if args.empty:
        prompts = [""] * args.count
    videos = generate(args.model, prompts, settings, args)
    if args.empty:
        result = {"count": args.count, "plausible": sum(is_plausible(parts[0]) for parts in videos)}
        print(f"plausible {result['plausible']}/{args.count}")
    else:
        result = score_windows(clips, videos) | {"held_out": not args.trained}
    result["settings"] = settings
    if args.sheet:
        contact_sheet([part for video in videos[:24] for part in video], args.sheet)
        Path(args.sheet).with_suffix(".txt").write_text("\n".join(prompts[:24]) + "\n")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
