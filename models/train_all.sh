#!/bin/sh
# Makes models/shapes from nothing: autoencoder, latents, base, two experts, decoder, export, scores.
# Usage: models/train_all.sh [working directory]. Every stage resumes where it stopped; finished stages are skipped.
# PYTHON names the interpreter (torch, diffusers, transformers, safetensors, pillow). Two processes of one thread each.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../out/shapes}
python=${PYTHON:-python3}
mkdir -p "$work"
cd "$here"

# glibc otherwise maps and unmaps every large tensor
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=20000000000
two="$python -m torch.distributed.run --nproc_per_node 2"

$python check.py
[ -d "$work/autoencoder/vae" ] || $two vae.py --out "$work/autoencoder" --steps "${VAE_STEPS:-3050}" --threads 1
$python encode.py --vae "$work/autoencoder/vae" --out "$work/latents" --chunks 0 20 --stride 2 &
other=$!
$python encode.py --vae "$work/autoencoder/vae" --out "$work/latents" --chunks 1 20 --stride 2
wait "$other"

common="--latents $work/latents --layers 5 --threads 1"
$two train.py $common --out "$work/base" --steps "${BASE_STEPS:-2800}" --stages 0.6:9 1:21 --flat 0.7 --least 0.5

experts="$common --init $work/base/last.pt --freeze-text --steps ${EXPERT_STEPS:-2500} --rate 1.5e-3 --flat 0.3 --warm-up 40"
experts="$experts --stages 1:21 --frames-per-step 126"
$python train.py $experts --out "$work/high" --range 0.875 1 --seed 1 &
other=$!
$python train.py $experts --out "$work/low" --range 0 0.875 --seed 2
wait "$other"

[ -d "$work/decoder/vae" ] || $two vae.py --out "$work/decoder" --init "$work/autoencoder/vae" --decoder-on "$work/latents" \
  --steps "${DECODER_STEPS:-700}" --rate 1.5e-3 --threads 1
$python evaluate_vae.py --vae "$work/decoder/vae" --json "$work/vae-scores.json"
$python export.py --high "$work/high/last.pt" --low "$work/low/last.pt" --vae "$work/decoder/vae" --out "$work/checkpoint" \
  --steps 20 --guidance 2 2
$python evaluate.py --model "$work/checkpoint" --count 200 --sheet "$work/contact-sheet.png" --json "$work/scores.json"
