"""evanesce against diffusers: the same checkpoint, noise and steps, run alternately, each in a process of its own.

    python bench/compare.py --model DIR --evanesce target/release/evanesce --frames 81 --size 64x64 --steps 20 --runs 3

Prints time per stage, peak memory and parity. This process imports nothing large before the last run has ended: on
Linux a child's peak memory is never reported below its parent's.
"""

import argparse
import array
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

LATENT_CHANNELS = 16
FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
SIDES = ("evanesce", "diffusers")


@dataclass
class Run:
    """One generation: seconds by stage, wall clock of the process, its peak memory."""

    seconds: dict
    wall_s: float
    peak_bytes: int


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="diffusers-layout checkpoint directory")
    parser.add_argument("--evanesce", type=Path, required=True, help="the evanesce binary")
    parser.add_argument("--prompt", default="a large red ball rolls to the right over a white floor")
    parser.add_argument("--negative", default="blurry, grey")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-high", type=float)
    parser.add_argument("--guidance-low", type=float)
    parser.add_argument("--fps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--own-noise", action="store_true", help="no noise file: each side draws from the seed itself")
    parser.add_argument("--text-tokens", type=int, default=512, help="diffusers' max_sequence_length")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of diffusers' transformers and text encoder")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write every measurement to this JSON file")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    complete_from_checkpoint(arguments)
    return arguments


def complete_from_checkpoint(arguments):
    """What the command line leaves open comes from the checkpoint's own defaults, else from Wan2.2's."""
    index = json.loads((arguments.model / "model_index.json").read_text())
    defaults = index.get("evanesce", {}).get("defaults", {})
    arguments.size = arguments.size or "x".join(str(edge) for edge in defaults.get("size", [832, 480]))
    arguments.width, arguments.height = (int(edge) for edge in arguments.size.split("x"))
    wan = {"frames": 81, "steps": 40, "guidance_high": 4.0, "guidance_low": 3.0, "fps": 16}
    for name, value in wan.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, defaults.get(name, value))


def write_noise(path, arguments):
    """`noise` [16, T, h, w] f32 as safetensors, by hand: see the note on imports above."""
    shape = [
        LATENT_CHANNELS,
        (arguments.frames - 1) // FRAMES_PER_LATENT + 1,
        arguments.height // PIXELS_PER_LATENT,
        arguments.width // PIXELS_PER_LATENT,
    ]
    draw = random.Random(arguments.seed)
    values = array.array("f", (draw.gauss(0.0, 1.0) for _ in range(math.prod(shape))))
    if sys.byteorder == "big":
        values.byteswap()
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(values) * values.itemsize]}
    header = json.dumps({"noise": entry}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())


def warm_page_cache(model):
    """So that the first run does not pay for the disk."""
    for path in sorted(model.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass


def run_process(command, stdin, threads):
    """(stdout, wall seconds, peak bytes) of a child; exits with the child's own words if it fails."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        start = time.perf_counter()
        child = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            sys.exit(f"{command[0]} failed with exit code {child.returncode}:\n{err.read().decode()[-4000:]}")
        kibibytes = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss // 1024
        return out.read(), wall_s, kibibytes * 1024


def run_evanesce(arguments, noise, scratch):
    command = [
        str(arguments.evanesce), "generate", arguments.prompt,
        "--output", str(scratch / "evanesce.mp4"),
        "--model", str(arguments.model),
        "--weights", "stored" if arguments.dtype == "f32" else "bf16",
        "--negative", arguments.negative,
        "--size", arguments.size,
        "--frames", str(arguments.frames),
        "--fps", str(arguments.fps),
        "--steps", str(arguments.steps),
        "--guidance-high", str(arguments.guidance_high),
        "--guidance-low", str(arguments.guidance_low),
        "--seed", str(arguments.seed),
        "--threads", str(arguments.threads),
        "--latents-out", str(scratch / "evanesce-latents.safetensors"),
        "--frames-out", str(scratch / "evanesce-frames.safetensors"),
        "--json",
    ]  # fmt: skip
    if noise is not None:
        command += ["--noise-in", str(noise)]
    out, wall_s, peak_bytes = run_process(command, b"", arguments.threads)
    seconds = json.loads(out)["seconds"]
    seconds.pop("total")
    return Run(seconds, wall_s, peak_bytes)


def run_diffusers(arguments, noise, scratch):
    job = {
        "model": str(arguments.model),
        "prompt": arguments.prompt,
        "negative": arguments.negative,
        "noise": None if noise is None else str(noise),
        "video": str(scratch / "diffusers.mp4"),
        "latents": str(scratch / "diffusers-latents.safetensors"),
        "frames_file": str(scratch / "diffusers-frames.safetensors"),
    }
    names = "width height frames steps guidance_high guidance_low fps seed text_tokens threads dtype"
    job |= {name: getattr(arguments, name) for name in names.split()}
    worker = Path(__file__).with_name("run_diffusers.py")
    out, wall_s, peak_bytes = run_process(
        [sys.executable, str(worker)], json.dumps(job).encode(), arguments.threads
    )
    return Run(json.loads(out)["seconds"], wall_s, peak_bytes)


def run_all(arguments, scratch):
    """Runs by side; the order turns round every time, so that a drift of the machine hits both sides alike."""
    noise = None
    if not arguments.own_noise:
        noise = scratch / "noise.safetensors"
        write_noise(noise, arguments)
    warm_page_cache(arguments.model)
    run = {"evanesce": run_evanesce, "diffusers": run_diffusers}
    runs = {side: [] for side in SIDES}
    for number in range(arguments.runs):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            runs[side].append(run[side](arguments, noise, scratch))
            print(f"run {number + 1} of {arguments.runs}: {side} {runs[side][-1].wall_s:.2f} s", file=sys.stderr)
    return runs


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="evanesce-compare-") as directory:
        scratch = Path(directory)
        runs = run_all(arguments, scratch)

        import report

        parity = report.parity(scratch)
    print(report.text(arguments, runs, parity))
    if arguments.output is not None:
        arguments.output.write_text(report.as_json(arguments, runs, parity))


if __name__ == "__main__":
    main()
