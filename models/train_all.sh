#!/bin/sh
# Makes models/shapes and models/shapes-causal from nothing: autoencoder, latents, base, two experts, decoder, export, scores; then
# two causal experts from those, export, scores.
# Usage: models/train_all.sh [working directory]. Every stage resumes where it stopped; finished stages are skipped.
# PYTHON names the interpreter (torch, diffusers, transformers, safetensors, pillow); EVANESCE names the built program, which
# makes the clips that are scored. Two processes of one thread each.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../out/shapes}
python=${PYTHON:-python3}
evanesce=${EVANESCE:-$here/../target/release/evanesce}
mkdir -p "$work"
cd "$here"

# glibc otherwise maps and unmaps every large tensor
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=20000000000 OMP_NUM_THREADS=1
two="$python -m torch.distributed.run --nproc_per_node 2"
# half the time where the processor multiplies bfloat16 itself
mixed=$(grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo --bfloat16 || true)

# What runs beside the script ends with it, whatever ends it.
other=
trap '[ -z "$other" ] || kill "$other" 2>/dev/null || true' EXIT
trap 'exit 1' HUP INT TERM

# Both experts at once: the first arguments are the output, the starts and the low one's steps; the others are for both. Shapes are
# drawn, or not, below a noise level of 0.875: there, many short pieces a step teach what few whole clips do not.
experts() {
  out=$1 init_high=$2 init_low=$3 low_steps=$4
  shift 4
  $python train.py "$@" --init "$init_high" --out "$out/high" --range 0.875 1 --stages 1:21 --seed 1 &
  other=$!
  $python train.py "$@" --init "$init_low" --out "$out/low" --range 0 0.875 --stages 0.75:6 1:21 --anywhere --shift 5 --flat 0.5 \
    --weights square:2 cross:3 circle:1.3 --steps "$low_steps" --seed 2
  wait "$other"
  other=
}

$python check.py
[ -d "$work/autoencoder/vae" ] || $two vae.py --out "$work/autoencoder" --steps "${VAE_STEPS:-3000}" --threads 1 $mixed
encode() { $python encode.py --vae "$work/autoencoder/vae" --out "$work/latents" --stride 2 "$@"; }
encode --chunks 0 20 &
other=$!
encode --chunks 1 20
encode --chunks 0 4 --stride 1 --wordless
wait "$other"
other=

common="--latents $work/latents --layers 5 --threads 1 $mixed"
$two train.py $common --out "$work/base" --steps "${BASE_STEPS:-4000}" --stages 0.5:9 1:21 --flat 0.7 --least 0.5

tuned="$common --freeze-text --frames-per-step 126 --rate 1.5e-3 --flat 0.3 --warm-up 40 --vague 0.12 --empty 0.18"
experts "$work" "$work/base/last.pt" "$work/base/last.pt" "${LOW_STEPS:-10000}" $tuned --steps "${HIGH_STEPS:-9000}"
# Twice, each time at a rate that falls to nothing.
decoder() {
  [ -d "$work/$1/vae" ] || $two vae.py --out "$work/$1" --init "$work/$2/vae" --decoder-on "$work/latents" --weights cross:3 square:2 \
    --steps "$3" --rate 1.5e-3 --threads 1 $mixed
}
decoder decoder-first autoencoder "${DECODER_STEPS:-2400}"
decoder decoder decoder-first "${DECODER_STEPS_AGAIN:-1200}"
[ -f "$work/vae-scores.json" ] || $python evaluate_vae.py --vae "$work/decoder/vae" --json "$work/vae-scores.json"

[ -f "$work/scores.json" ] || {
  $python export.py --high "$work/high/last.pt" --low "$work/low/last.pt" --vae "$work/decoder/vae" --out "$work/shapes" \
    --steps 20 --guidance 2 2.5
  $python evaluate.py --model "$work/shapes" --evanesce "$evanesce" --count 200 --sheet "$work/shapes.png" --json "$work/scores.json"
}

experts "$work/causal" "$work/high/last.pt" "$work/low/last.pt" "${CAUSAL_LOW_STEPS:-7000}" $tuned --steps "${CAUSAL_HIGH_STEPS:-4000}" \
  --causal --shift 5
$python export.py --high "$work/causal/high/last.pt" --low "$work/causal/low/last.pt" --vae "$work/decoder/vae" \
  --out "$work/shapes-causal" --causal --steps 8 --shift 5 --guidance 2 2
$python evaluate.py --model "$work/shapes-causal" --evanesce "$evanesce" --count 200 --sheet "$work/shapes-causal.png" \
  --json "$work/causal-scores.json"
$python evaluate.py --model "$work/shapes-causal" --evanesce "$evanesce" --count 40 --frames 961 --batch 1 \
  --sheet "$work/long.png" --json "$work/long-scores.json"
