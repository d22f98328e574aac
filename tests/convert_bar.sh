#!/bin/sh
# Measures conversion against its bar: a softmax GPT on characters of Shakespeare, converted with and without distillation and to other
# feature maps, beside its teacher finetuned for as many steps. Seeds are of the teacher and of the conversion.
#
#   tests/convert_bar.sh PROGRAM FOLDER [SEEDS] [TEXT] [STUDENTS]    e.g. tests/convert_bar.sh build/bin/hedgehog /tmp/bar "1 2 3" shakespeare
#
# Prints a line a conversion: loss of the student, and how many times that of the finetuned teacher it is (bar: 1.01 as a mean of three
# seeds, and less than the other students). What is there already is not made again. About twenty minutes a seed on two free cores.
set -eu
program=$(realpath "$1")
folder=$2
seeds=${3:-1 2 3}
text=${4:-shakespeare}
students=${5:-hedgehog hedgehog-none t2r-none t2r elu}
mkdir -p "$folder"
cd "$folder"
# what a command prints goes to a file, and is shown if it fails
logged() { "$@" >log.txt 2>&1 || { cat log.txt >&2; exit 1; }; }
figure() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$1/convert.json" | head -1; }
for seed in $seeds; do
  teacher=teacher-$seed
  [ -d "$teacher/last" ] || logged "$program" train --data="$text" --preset=char-cpu --attention=softmax --seed="$seed" --quiet --out="$teacher"
  reference=
  for student in $students; do
    run=$student-$seed
    options="--attention=${student%-none}"
    case $student in *-none) options="$options --distill=none" ;; esac
    [ "$student" = hedgehog ] && options="$options --finetune_teacher"
    [ -f "$run/convert.json" ] || logged "$program" convert --from="$teacher" --batch=12 --seed="$seed" --quiet --out="$run" $options
    [ "$student" = hedgehog ] && reference=$(figure "$run" teacher_finetuned)
    loss=$(figure "$run" finetuned)
    awk -v name="$run" -v loss="$loss" -v teacher="$reference" 'BEGIN { printf "%-18s loss %.4f, %.4f times the finetuned teacher (%.4f)\n", name, loss, loss / teacher, teacher }'
  done
done
