#!/usr/bin/env bash
# Kills training with SIGKILL at random moments, resumes each time, and compares with the run that was left alone:
# steps, losses, gradient norms, learning rates and final weights must be equal bit for bit. Once a checkpoint was saved, no
# kill may leave the run without one.
# usage: test_kill_resume.sh BUILD_FOLDER [KILLS]
set -euo pipefail

program=$(cd "${1:?folder of the build}" && pwd)/bin/hedgehog
kills=${2:-20}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

options="--layers=1 --heads=2 --width=32 --batch=4 --steps=300 --warmup=20 --save_every=7 --evaluate_every=60 --evaluate_batches=2 --quiet --seed=3 --context=160"

"$program" train $options --out=whole > whole.txt 2>&1

# steps of the log's whole lines
steps() { sed -nE 's/.*"step":([0-9]+).*\}$/\1/p' killed/log.jsonl 2> /dev/null || true; }

fields() { grep -oE '"(step|loss|learning_rate|gradient_norm|validation_loss)":[^,}]*' "$1/log.jsonl"; }

start() {
  if [ "$saved" = yes ]; then
    "$program" train --resume=killed --quiet > killed.txt 2>&1 &
  else
    rm -rf killed
    "$program" train $options --out=killed > killed.txt 2>&1 &
  fi
  child=$!
}

RANDOM=${SEED:-1}
done_kills=0
saved=no
while [ "$done_kills" -lt "$kills" ]; do
  start
  # somewhere in the first second: reading, training or saving
  sleep "0.$(printf '%03d' $((150 + RANDOM % 700)))"
  if kill -9 "$child" 2> /dev/null; then
    done_kills=$((done_kills + 1))
    wait "$child" 2> /dev/null || true
    # the first checkpoint is saved after step 7 and before step 8
    if [ -e killed/last/state.json ] || [ "$(steps | wc -l)" -gt 7 ]; then saved=yes; fi
    # a log that was not cut to the checkpoint's step shows steps twice
    steps | cmp - <(seq "$(steps | wc -l)") || { echo "the log's steps are not 1, 2, 3, ... after $done_kills kills"; exit 1; }
  else
    if ! wait "$child"; then
      echo "a resumed run failed after $done_kills kills:" && cat killed.txt && exit 1
    fi
    # finished before all kills were spent: start over
    fields killed > finished.txt
    fields whole | cmp - finished.txt || { echo "the log differs after $done_kills kills"; exit 1; }
    cmp whole/last/model.safetensors killed/last/model.safetensors
    rm -rf killed
    saved=no
  fi
done

start
wait "$child" || { cat killed.txt; exit 1; }
fields whole > a.txt
fields killed > b.txt
cmp a.txt b.txt || { echo "the logs differ"; diff a.txt b.txt | head; exit 1; }
cmp whole/last/model.safetensors killed/last/model.safetensors
cmp whole/last/optimizer.safetensors killed/last/optimizer.safetensors
echo "$done_kills kills: $(grep -c '"step"' killed/log.jsonl) steps, weights and moments equal bit for bit"
