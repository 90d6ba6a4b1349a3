#!/bin/sh
# Makes models/shapes from nothing: autoencoder, latents, base, two experts, export, scores.
# Usage: models/train_all.sh [working directory]. Every stage resumes where it stopped; finished stages are skipped.
# PYTHON names the interpreter (torch, diffusers, transformers, safetensors, pillow). THREADS is per training process;
# BASE_STEPS and EXPERT_STEPS set how long the transformers train.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../out/shapes}
python=${PYTHON:-python3}
threads=${THREADS:-1}
# what the shipped checkpoint was given; more is better
base_steps=${BASE_STEPS:-800}
expert_steps=${EXPERT_STEPS:-600}
mkdir -p "$work"
cd "$here"

# glibc otherwise maps and unmaps every large tensor
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=20000000000

$python check.py
[ -d "$work/autoencoder/vae" ] || $python vae.py --out "$work/autoencoder" --threads "$((threads * 2))"
$python evaluate_vae.py --vae "$work/autoencoder/vae" --threads "$threads"
$python encode.py --vae "$work/autoencoder/vae" --out "$work/latents" --chunks 0 30 --threads "$threads"

common="--latents $work/latents --layers 5 --threads $threads"
torchrun="$python -m torch.distributed.run --nproc_per_node 2"
$torchrun train.py $common --out "$work/base" --steps "$base_steps" --stages 1:7 --flat 0.83 --least 0.66

experts="$common --init $work/base/last.pt --freeze-text --steps $expert_steps --rate 2e-3 --flat 0.3 --warm-up 40 --stages 0.9:7 1:21"
$python train.py $experts --out "$work/high" --range 0.875 1 --seed 1 &
high=$!
$python train.py $experts --out "$work/low" --range 0 0.875 --seed 2
wait "$high"

$python export.py --high "$work/high/last.pt" --low "$work/low/last.pt" --vae "$work/autoencoder/vae" --out "$work/checkpoint"
$python evaluate.py --model "$work/checkpoint" --count 128 --threads "$threads" --sheet "$work/contact-sheet.png" --json "$work/scores.json"
