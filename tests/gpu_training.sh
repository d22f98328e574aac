#!/usr/bin/env bash
# Trains the preset char (6 layers, width 384, context 256, batch 64) on a GPU and compares with the bars of the CUDA backend.
#
#   tests/gpu_training.sh <text> [<folder>]
#
#   text    training text, for the bars tinyshakespeare (1,115,394 characters)
#   folder  with softmax/ and hedgehog/, runs of at least 200 steps on the CPU to compare with:
#             hedgehog train --data=<text> --preset=char --attention=<name> --device=cpu --stop_at=200 --evaluate_every=0 --out=<folder>/<name>
#           (an hour on two cores). Without it the GPU computes them in f32, which differs from the CPU by roundings.
#
# For softmax and hedgehog attention, in bf16:
#   curve   |loss - f32 loss| over the first 200 steps, same batches and dropout masks: at most 0.03 at each, 0.01 on average
#   speed   tokens/s without dropout after step 300: at least 1.4 million (where nothing else uses the GPU)
#   best    validation loss with dropout 0.2, the best of the run: at most 1.50 softmax, 1.53 hedgehog
# Takes HEDGEHOG_BUILD=<folder of a build>, by default build-gpu. The last lines are a table; exit code 1 if a bar is missed.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
program="${HEDGEHOG_BUILD:-$root/build-gpu}/bin/hedgehog"
if [ $# -lt 1 ] || [ ! -r "$1" ] || [ ! -x "$program" ]; then
  echo "gpu_training.sh: needs a text to train on and a build (HEDGEHOG_BUILD, or tests/gpu.sh makes one); see its head" >&2
  exit 2
fi
text="$1" reference="${2:-}"
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}"

# run <name> <options>
run() {
  local name="$1"
  shift
  "$program" train --data="$text" --preset=char --device=cuda --report=false --quiet --out="$runs/$name" "$@" >"$runs/$name.txt" 2>&1 || {
    tail -n 5 "$runs/$name.txt" >&2
    return 1
  }
}

# of <key> <run>: the key's numbers in a log, a line each
of() { sed -n "s/.*\"$1\":\([^,}]*\).*/\1/p" "$2/log.jsonl"; }

table=() failed=0
# row <what> <figure> <relation> <bar>
row() {
  local verdict=missed
  awk -v x="$2" -v bar="$4" -v above="$3" 'BEGIN { exit !(x == x + 0 && (above == ">=" ? x >= bar : x <= bar)) }' && verdict=met
  [ "$verdict" = met ] || failed=1
  table+=("$(printf '%-44s %12s   %s %-9s %s' "$1" "${2:--}" "$3" "$4" "$verdict")")
}

for attention in softmax hedgehog; do
  run "$attention-bf16" --attention="$attention" --stop_at=200 --evaluate_every=0 || failed=1
  compared="$reference/$attention" of_what="f32 loss, CPU"
  if [ -z "$reference" ]; then
    compared="$runs/$attention-f32" of_what="f32 loss, GPU"
    run "$attention-f32" --attention="$attention" --dtype=f32 --stop_at=200 --evaluate_every=0 || failed=1
  fi
  read -r largest mean < <(paste <(of loss "$runs/$attention-bf16") <(of loss "$compared") | head -n 200 |
    awk '{ d = $1 - $2; d = d < 0 ? -d : d; sum += d; if (d > most) most = d }
         END { if (NR == 200 && NF == 2) printf "%.4f %.4f\n", most, sum / NR; else print "none none" }')
  row "$attention: largest |loss - $of_what|" "$largest" "<=" 0.03
  row "$attention: mean |loss - $of_what|" "$mean" "<=" 0.01
  run "$attention-speed" --attention="$attention" --dropout=0 --stop_at=800 --evaluate_every=0 || failed=1
  speed="$(paste <(of tokens "$runs/$attention-speed") <(of seconds "$runs/$attention-speed") |
    awk 'NR == 300 { t = $1; s = $2 } END { if (NR == 800) printf "%.0f", ($1 - t) / ($2 - s) }')"
  row "$attention: tokens/s" "$speed" ">=" 1400000
  run "$attention-best" --attention="$attention" --dropout=0.2 || failed=1
  row "$attention: best validation loss" "$(of validation_loss "$runs/$attention-best" | sort -g | head -n 1)" "<=" \
    "$([ "$attention" = softmax ] && echo 1.50 || echo 1.53)"
done

printf '\n%-44s %12s   %-12s %s\n' "$("$program" info 2>/dev/null | grep -m 1 -o 'NVIDIA [A-Z0-9][^,]*' || echo figure)" figure bar verdict
printf '%s\n' "${table[@]}"
exit "$failed"
