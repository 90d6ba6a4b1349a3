"""evanesce's linear layers and attention against PyTorch's in f32, both held to one instruction set.

    python bench/kernels.py --evanesce target/release/evanesce --isa avx512 --threads 2 --rounds 5

Every round measures each operation once with either side, in turning order, each in a process of its own; a ratio is
PyTorch's median time over evanesce's in one round, above 1 where evanesce is faster. `--weights bf16` is what evanesce
runs on (PyTorch computes the same layer in f32 from f32 weights); `--weights f32` gives both the same bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

LINEAR = ["4680x5120x13824", "1560x5120x5120", "512x384x1536", "1x5120x5120"]
ATTENTION = ["40x1560x10920x128"]
SMALL_LINEAR = ["512x384x1536", "1x5120x5120", "390x1024x1024"]
SMALL_ATTENTION = ["4x390x1092x128", "6x336x336x32"]
# How each side's libraries are told.
HELD_TO = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evanesce", type=Path, help="the evanesce binary")
    parser.add_argument("--isa", choices=sorted(HELD_TO), default="avx512")
    parser.add_argument("--weights", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for one operation in one round")
    parser.add_argument("--small", action="store_true", help="operations that take milliseconds")
    parser.add_argument("--torch", nargs=2, metavar=("OP", "SHAPE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def torch_median(op, shape, threads, seconds):
    """Median seconds of the operation in PyTorch; runs in a process of its own."""
    import time

    import torch
    import torch.nn.functional as functional

    torch.set_num_threads(threads)
    sizes = [int(size) for size in shape.split("x")]
    with torch.no_grad():
        if op == "linear":
            rows, inputs, outputs = sizes
            x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
            work = lambda: functional.linear(x, weight, bias)
        else:
            heads, queries, keys, head_dim = sizes
            q, k, v = (torch.randn(1, heads, length, head_dim) for length in (queries, keys, keys))
            work = lambda: functional.scaled_dot_product_attention(q, k, v)
        work()
        times, started = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - started < seconds:
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def run_torch(arguments, op, shape):
    command = [sys.executable, __file__, "--torch", op, shape, "--threads", str(arguments.threads)]
    command += ["--seconds", str(arguments.seconds)]
    environment = os.environ | HELD_TO[arguments.isa]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def run_evanesce(arguments, op, shape):
    command = [arguments.evanesce, "bench", "--json", "--threads", str(arguments.threads)]
    command += ["--seconds", str(arguments.seconds), op]
    if op == "linear":
        command += [shape, "--weights", arguments.weights]
    else:
        for flag, size in zip(["--heads", "--queries", "--keys", "--head-dim"], shape.split("x")):
            command += [flag, size]
    environment = os.environ | {"EVANESCE_ISA": arguments.isa}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)["median_s"]


def main():
    arguments = parse_arguments()
    if arguments.torch:
        print(json.dumps(torch_median(*arguments.torch, arguments.threads, arguments.seconds)))
        return
    if arguments.evanesce is None:
        sys.exit("kernels.py: name the binary with --evanesce")
    linear, attention = (SMALL_LINEAR, SMALL_ATTENTION) if arguments.small else (LINEAR, ATTENTION)
    operations = [("linear", shape) for shape in linear] + [("attention", shape) for shape in attention]
    print(f"{arguments.isa}, {arguments.threads} threads, {arguments.weights} weights, {arguments.rounds} rounds")
    print(f"{'operation':<30}{'evanesce ms':>12}{'PyTorch ms':>12}   ratio min / median / max")
    for op, shape in operations:
        times = {run_evanesce: [], run_torch: []}
        for turn in range(arguments.rounds):
            for side in sorted(times, key=lambda side: (side is run_torch) ^ (turn % 2 == 1)):
                times[side].append(side(arguments, op, shape))
        ratios = sorted(theirs / ours for ours, theirs in zip(times[run_evanesce], times[run_torch]))
        ours, theirs = (1e3 * statistics.median(times[side]) for side in (run_evanesce, run_torch))
        spread = f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}"
        print(f"{op + ' ' + shape:<30}{ours:>12.2f}{theirs:>12.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
