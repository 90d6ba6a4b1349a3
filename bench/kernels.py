"""evanesce's linear layers and attention against PyTorch's in f32, both held to one instruction set.

    python bench/kernels.py --evanesce target/release/evanesce --threads 2 --rounds 5

Every round measures each operation once with either side, in turning order, each in a process of its own; a ratio is
PyTorch's median time over evanesce's in one round, above 1 where evanesce is faster. `--weights f32` gives both the same
bytes; `--weights bf16` is what evanesce runs on (PyTorch computes the same layer in f32 from f32 weights). `--isa` takes one
instruction set; without it all are measured. `--peers BINARY` (see bench/peers) measures other crates' linear layers in the
same rounds: they take the best that the machine has, whatever `--isa` says.

    python bench/kernels.py --evanesce target/release/evanesce --pages --threads 2 --rounds 5

compares attention over pages instead: evanesce's int8 pages with its own bf16 pages and with PyTorch's
scaled_dot_product_attention over one contiguous bf16 window, and encoding a page in int8 with PyTorch's plain
`(k / scale).to(int8)`, one scale for all. PyTorch may use all that the machine has there; nor is it held back by `--block`,
which compares one transformer block of Wan2.2-T2V-A14B (bf16 weights, f32 activations) with diffusers' in bf16 and in f32.
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
# One layer of Wan2.2-T2V-A14B at 832 x 480: a block of 3 latent frames before 12 cached ones; and a page of it.
PAGES, SMALL_PAGES = "40x4680x18720x128", "4x390x4680x128"
# Tokens of one transformer block.
BLOCK, SMALL_BLOCK = "4680", "390"
ENCODE, SMALL_ENCODE = "1560x5120", "390x1024"
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
    parser.add_argument("--isa", choices=sorted(HELD_TO), help="default: all of them, one after the other")
    parser.add_argument("--weights", choices=["bf16", "f32"], default="f32")
    parser.add_argument("--peers", type=Path, help="the binary of bench/peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for one operation in one round")
    parser.add_argument("--pages", action="store_true", help="attention over pages, and encoding them")
    parser.add_argument("--block", action="store_true", help="one transformer block of A14B, against diffusers'")
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
        elif op.startswith("block"):
            work = diffusers_block(sizes[0], torch.bfloat16 if op.endswith("bf16") else torch.float32)
        elif op.startswith("encode"):
            k = torch.randn(*sizes).to(torch.bfloat16 if op.endswith("bf16") else torch.float32)
            work = lambda: (k / (k.abs().amax() / 127)).to(torch.int8)
        else:
            heads, queries, keys, head_dim = sizes
            dtype = torch.bfloat16 if op.endswith("bf16") else torch.float32
            q, k, v = (torch.randn(1, heads, length, head_dim).to(dtype) for length in (queries, keys, keys))
            work = lambda: functional.scaled_dot_product_attention(q, k, v)
        work()
        times, started = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - started < seconds:
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def diffusers_block(tokens, dtype):
    """One block of Wan2.2-T2V-A14B with drawn weights, over tokens and the 512 rows that a prompt is padded to."""
    import torch
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    block = WanTransformerBlock(dim=5120, ffn_dim=13824, num_heads=40, cross_attn_norm=True).to(dtype).eval()
    x, text = torch.randn(1, tokens, 5120, dtype=dtype), torch.randn(1, 512, 5120, dtype=dtype)
    time, turns = torch.randn(1, 6, 5120), [torch.randn(1, tokens, 1, 128) for _ in range(2)]
    return lambda: block(x, text, time, turns)


def run_torch(arguments, op, shape):
    command = [sys.executable, __file__, "--torch", op, shape, "--threads", str(arguments.threads)]
    command += ["--seconds", str(arguments.seconds)]
    held_to = {} if arguments.pages or arguments.block else HELD_TO[arguments.isa]
    environment = os.environ | held_to
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def run_evanesce(arguments, op, shape, *more):
    command = [arguments.evanesce, "bench", "--json", "--threads", str(arguments.threads)]
    command += ["--seconds", str(arguments.seconds), op]
    if op == "linear":
        command += [shape, "--weights", arguments.weights]
    elif op == "block":
        command += ["--model", "wan2.2-t2v-a14b", "--tokens", shape]
    elif op == "encode":
        for flag, size in zip(["--rows", "--width"], shape.split("x")):
            command += [flag, size]
    else:
        for flag, size in zip(["--heads", "--queries", "--keys", "--head-dim"], shape.split("x")):
            command += [flag, size]
    environment = os.environ | {"EVANESCE_ISA": arguments.isa}
    output = subprocess.run(command + list(more), env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def median_of_evanesce(arguments, op, shape, *more):
    return run_evanesce(arguments, op, shape, *more)["median_s"]


def run_peer(arguments, library, shape):
    command = [arguments.peers, library, shape, str(arguments.threads), str(arguments.seconds)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def show(name, ratios):
    ratios = sorted(ratios)
    print(f"{name:<52}{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}", flush=True)


def compare_pages(arguments):
    attention, encode = (SMALL_PAGES, SMALL_ENCODE) if arguments.small else (PAGES, ENCODE)
    sides = {
        "int8 pages": lambda: median_of_evanesce(arguments, "attention", attention, "--codec", "int8"),
        "bf16 pages": lambda: median_of_evanesce(arguments, "attention", attention, "--codec", "bf16"),
        "PyTorch bf16": lambda: run_torch(arguments, "attention bf16", attention),
        "encode int8": lambda: run_evanesce(arguments, "encode", encode, "--codec", "int8"),
        "PyTorch f32 to int8": lambda: run_torch(arguments, "encode f32", encode),
        "PyTorch bf16 to int8": lambda: run_torch(arguments, "encode bf16", encode),
    }
    print(f"{arguments.isa}, {arguments.threads} threads, {arguments.rounds} rounds, {attention}, {encode}")
    results = {name: [] for name in sides}
    for turn in range(arguments.rounds):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            results[name].append(sides[name]())
    encoded = [line["median_s"] for line in results["encode int8"]]
    for name in ("int8 pages", "bf16 pages", "PyTorch bf16"):
        print(f"{name:<52}{statistics.median(results[name]):.3f} s")
    print(f"{'ratio':<52}min / median / max")
    for name in ("bf16 pages", "PyTorch bf16"):
        show(f"attention: {name} over int8 pages", [a / b for a, b in zip(results[name], results["int8 pages"])])
    for name in ("PyTorch f32 to int8", "PyTorch bf16 to int8"):
        show(f"encoding: {name} over int8", [a / b for a, b in zip(results[name], encoded)])
    show("encoding int8: part of copying's bandwidth", [line["fraction_of_copy"] for line in results["encode int8"]])


def compare_block(arguments):
    tokens = SMALL_BLOCK if arguments.small else BLOCK
    sides = {name: lambda name=name: run_torch(arguments, name, tokens) for name in ("block bf16", "block f32")}
    print(f"{arguments.isa}, {arguments.threads} threads, {arguments.rounds} rounds, {tokens} tokens")
    print(f"{'operation':<30}{'other':<14}{'evanesce ms':>12}{'other ms':>12}   ratio min / median / max")
    compare_operation(arguments, "block", tokens, sides)


def main():
    arguments = parse_arguments()
    if arguments.torch:
        print(json.dumps(torch_median(*arguments.torch, arguments.threads, arguments.seconds)))
        return
    if arguments.evanesce is None:
        sys.exit("kernels.py: name the binary with --evanesce")
    if arguments.pages or arguments.block:
        arguments.isa = arguments.isa or "avx512"
        (compare_pages if arguments.pages else compare_block)(arguments)
        return
    for isa in [arguments.isa] if arguments.isa else ["avx512", "avx2"]:
        compare_operations(arguments, isa)


def compare_operations(arguments, isa):
    arguments.isa = isa
    linear, attention = (SMALL_LINEAR, SMALL_ATTENTION) if arguments.small else (LINEAR, ATTENTION)
    print(f"{isa}, {arguments.threads} threads, {arguments.weights} weights, {arguments.rounds} rounds")
    print(f"{'operation':<30}{'other':<14}{'evanesce ms':>12}{'other ms':>12}   ratio min / median / max")
    for shape in linear:
        peers = ["gemm", "numkong-f32", "numkong-bf16"] if arguments.peers else []
        sides = {"PyTorch f32": lambda: run_torch(arguments, "linear", shape)}
        sides |= {name: lambda name=name: run_peer(arguments, name, shape) for name in peers}
        compare_operation(arguments, "linear", shape, sides)
    for shape in attention:
        sides = {"PyTorch f32": lambda: run_torch(arguments, "attention", shape)}
        compare_operation(arguments, "attention", shape, sides)


def compare_operation(arguments, op, shape, peers):
    """One operation by evanesce and by others, in turning order."""
    sides = {"evanesce": lambda: median_of_evanesce(arguments, op, shape)} | peers
    times = {name: [] for name in sides}
    for turn in range(arguments.rounds):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            times[name].append(sides[name]())
    ours = times.pop("evanesce")
    for name, theirs in times.items():
        ratios = sorted(other / our for our, other in zip(ours, theirs))
        spread = f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}"
        medians = [1e3 * statistics.median(side) for side in (ours, theirs)]
        print(f"{op + ' ' + shape:<30}{name:<14}{medians[0]:>12.2f}{medians[1]:>12.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
