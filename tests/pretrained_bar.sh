#!/bin/sh
# Measures the conversion of a pretrained model against its bar: the student's perplexity over that of the teacher finetuned on the same
# tokens, without a window (bar 1.25, goal 1.15) and with one of 64 tokens (1.10, 1.05), beside maps that were not distilled, and T2R.
#
#   tests/pretrained_bar.sh PROGRAM MODEL TEXT FOLDER [WIKITEXT]
#   tests/pretrained_bar.sh build/bin/hedgehog SmolLM2-135M-Instruct.Q4_1.gguf books /tmp/bar wiki.test.raw
#
# OPTIONS in the environment go to every conversion, and STEPS are those of distillation and finetuning. What is there already is not
# made again. With the defaults about ten minutes on one H200.
set -eu
program=$(realpath "$1") model=$(realpath "$2") text=$(realpath "$3") folder=$4
wikitext=${5:+$(realpath "$5")}
: "${OPTIONS:=--length=1024 --batch=16 --finetune_learning_rate=6e-4 --evaluate_batches=10}"
: "${STEPS:=400 800}"
mkdir -p "$folder"
cd "$folder"
# what a command prints goes to a file, and is shown if it fails
logged() { "$@" >log.txt 2>&1 || { cat log.txt >&2; exit 1; }; }
figure() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$1/convert.json" | head -1; }
perplexity() { "$program" eval --checkpoint="$1" --data="$wikitext" --length=1024 --stride=512 --json $2 | sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p'; }
[ -d model ] || logged "$program" import --from="$model" --out=model
distill=${STEPS% *} finetune=${STEPS#* }
reference=
for student in plain window undistilled t2r; do
  options="--finetune_steps=$finetune"
  case $student in
    plain) options="$options --distill_steps=$distill --finetune_teacher" ;;
    window) options="$options --distill_steps=$distill --window=64" ;;
    undistilled) options="$options --distill=none" ;;
    t2r) options="$options --distill_steps=$distill --attention=t2r" ;;
  esac
  # words of options are several arguments
  # shellcheck disable=SC2086
  [ -f "$student/convert.json" ] || logged "$program" convert --from=model --data="$text" --quiet --save_every=0 --out="$student" $OPTIONS $options
  [ "$student" = plain ] && reference=$(figure plain teacher_finetuned)
  loss=$(figure "$student" finetuned)
  awk -v s="$student" -v l="$loss" -v r="$reference" 'BEGIN { printf "%-12s perplexity %8.3f, %.3f times that of the finetuned teacher\n", s, exp(l), exp(l - r) }'
done
[ -n "$wikitext" ] || exit 0
for run in model plain window; do printf '%-12s WikiText %s\n' "$run" "$(perplexity "$run" "")"; done
printf '%-12s WikiText %s\n' 'window alone' "$(perplexity window --linear_branch=false)"
