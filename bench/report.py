"""Tables and parity of a comparison. Imported after the last run: numpy is not small."""

import json
import platform
import statistics
from pathlib import Path

import numpy
from safetensors.numpy import load_file

STAGES = ("load", "text", "denoise", "decode", "encode")
MEBIBYTE = 1 << 20


def parity(scratch):
    """How far evanesce's latents and frames are from diffusers'."""
    sides = {}
    for side in ("evanesce", "diffusers"):
        latents = load_file(scratch / f"{side}-latents.safetensors")["latents"].astype(numpy.float64)
        frames = load_file(scratch / f"{side}-frames.safetensors")["frames"].astype(numpy.float64)
        sides[side] = (latents, frames)
    (latents, frames), (expected_latents, expected_frames) = sides["evanesce"], sides["diffusers"]
    for got, expected in ((latents, expected_latents), (frames, expected_frames)):
        if got.shape != expected.shape:
            raise SystemExit(f"shapes differ: evanesce {got.shape}, diffusers {expected.shape}")
    error = numpy.linalg.norm(latents - expected_latents) / numpy.linalg.norm(expected_latents)
    by_frame = [psnr_db(a, b) for a, b in zip(frames, expected_frames)]
    return {
        "latents_relative_error": float(error),
        "frames_psnr_db": psnr_db(frames, expected_frames),
        "worst_frame_psnr_db": min(by_frame),
        "finite": bool(numpy.isfinite(latents).all() and numpy.isfinite(frames).all()),
    }


def psnr_db(got, expected):
    """Peak 1; infinite where the two are equal."""
    error = float(numpy.mean((got - expected) ** 2))
    return float("inf") if error == 0.0 else -10.0 * numpy.log10(error).item()


def rows(run):
    """Seconds of a run by row of the table. `other` is what no stage claims: process start, imports, dumps."""
    staged = {stage: run.seconds.get(stage) for stage in STAGES}
    other = run.wall_s - sum(seconds for seconds in staged.values() if seconds is not None)
    return staged | {"other": other, "total": run.wall_s}


def spread(values):
    return min(values), statistics.median(values), max(values)


def text(arguments, runs, parity):
    by_side = {side: [rows(run) for run in of_side] for side, of_side in runs.items()}
    lines = [
        f"{processor()}, {arguments.threads} threads, evanesce with f32 activations, diffusers in {arguments.dtype}",
        f"{arguments.model.name}: {arguments.frames} frames of {arguments.size}, {arguments.steps} steps, "
        f"guidance {arguments.guidance_high:g}/{arguments.guidance_low:g}, "
        f"{'noise drawn by each side from one seed' if arguments.own_noise else 'noise from one file'}, "
        f"{arguments.runs} alternating runs",
        "",
        "min / median / max   evanesce                   diffusers                  diffusers / evanesce, by run",
    ]
    for row in (*STAGES, "other", "total"):
        pair = [[run[row] for run in by_side[side]] for side in ("evanesce", "diffusers")]
        lines.append(line(f"{row}, s", *pair, scale=1.0))
    peaks = [[run.peak_bytes for run in runs[side]] for side in ("evanesce", "diffusers")]
    lines.append(line("peak memory, MiB", *peaks, scale=MEBIBYTE))
    lines += ["", *parity_lines(parity)]
    return "\n".join(lines)


def line(name, evanesce, diffusers, scale):
    ratios = "-"
    if all(value is not None for value in (*evanesce, *diffusers)) and all(evanesce):
        ratios = "{:.2f} / {:.2f} / {:.2f}".format(*spread([d / e for e, d in zip(evanesce, diffusers)]))
    return f"{name:20} {cells(evanesce, scale):26} {cells(diffusers, scale):26} {ratios}"


def cells(values, scale):
    if any(value is None for value in values):
        return "-"
    digits = 3 if max(values) / scale < 100 else 0
    return " / ".join(f"{value / scale:.{digits}f}" for value in spread(values))


def parity_lines(parity):
    return [
        f"latents: relative error {parity['latents_relative_error']:.2e}",
        f"frames: PSNR {parity['frames_psnr_db']:.1f} dB, worst frame {parity['worst_frame_psnr_db']:.1f} dB",
        *([] if parity["finite"] else ["evanesce's output holds numbers that are not finite"]),
    ]


def processor():
    """The processor's name where the system tells it."""
    try:
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def as_json(arguments, runs, parity):
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    measured = {side: [vars(run) for run in of_side] for side, of_side in runs.items()}
    return json.dumps({"arguments": given, "processor": processor(), "runs": measured, "parity": parity}, indent=1)
