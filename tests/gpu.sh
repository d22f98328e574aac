#!/usr/bin/env bash
# Everything that needs a GPU, on any machine with one and the toolchain installed; no network. Changes no setting of the GPU.
#
#   tests/gpu.sh [tests|program|sanitize|bench]...    default: all four
#
# Builds into build-gpu (or takes HEDGEHOG_BUILD=<folder of an existing build>), then runs
#   tests     the device suites of the test program, with the kernels of this GPU and with those of all others
#   program   hedgehog train, train --resume, eval and sample on the GPU, and a batch that cannot fit
#   sanitize  compute-sanitizer's memcheck, racecheck, initcheck and synccheck over the suite "sanitized"
#   bench     hedgehog bench --device=cuda
# The last lines are a table: step, result, seconds. Exit code 1 if anything failed, 2 for a wrong argument.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
build="${HEDGEHOG_BUILD:-$root/build-gpu}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}"

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests program sanitize bench)
for part in "${parts[@]}"; do
  case "$part" in
    tests | program | sanitize | bench) ;;
    *)
      echo "gpu.sh: '$part' is none of tests, program, sanitize, bench" >&2
      exit 2
      ;;
  esac
done

table=() failed=0

# note <step> <ok|FAILED> <seconds>
note() {
  table+=("$(printf '%-24s %-8s %6d s' "$1" "$2" "$3")")
  [ "$2" = ok ] || failed=1
}

# step <name> <command...>: runs it, shows what it prints, notes how it ended
step() {
  local name="$1" start=$SECONDS result=ok
  shift
  printf '\n=== %s\n' "$name"
  "$@" </dev/null || result=FAILED
  note "$name" "$result" $((SECONDS - start))
  [ "$result" = ok ]
}

finish() {
  printf '\n%-24s %-8s %8s\n' step result seconds
  printf '%s\n' "${table[@]}"
  exit "$failed"
}

build_all() {
  mkdir -p "$build"
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHEDGEHOG_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES=native >"$build/configure.txt" 2>&1 || {
    tail -n 40 "$build/configure.txt"
    return 1
  }
  cmake --build "$build" -j "$(nproc)" --target hedgehog_tests hedgehog_program >"$build/build.txt" 2>&1 || {
    grep -E 'error|FAILED|undefined reference' "$build/build.txt" | tail -n 40 || tail -n 40 "$build/build.txt"
    return 1
  }
  grep -E 'warning' "$build/build.txt" | sort | uniq -c | sort -rn | head -n 20 || true
}

# on_device <command...>: the command must succeed, and a test that skipped itself, for want of a GPU or of anything, is a failure here
on_device() {
  local code=0 output
  output="$(mktemp)"
  "$@" 2>&1 | tee "$output" || code=$?
  if grep -q '^skipped:' "$output"; then
    echo "gpu.sh: a test skipped itself" >&2
    code=1
  fi
  # a filter that matches nothing would pass without testing
  if ! grep -Eq '^[1-9][0-9]* passed, 0 failed' "$output"; then
    echo "gpu.sh: no test passed, or some failed" >&2
    code=1
  fi
  rm -f "$output"
  return "$code"
}

run_tests() { on_device "$build/bin/hedgehog_tests" --test-suite=device,sanitized; }
# the kernels that other GPUs take, on this one
run_portable() { HEDGEHOG_GPU_KERNELS=portable run_tests; }

# ends <code> <what the output says> <command...>: the command ends with that code and says that
ends() {
  local code="$1" text="$2" got=0 output
  shift 2
  output="$(mktemp)"
  printf '\n$ hedgehog %s\n' "${*:2}"
  "$@" >"$output" 2>&1 || got=$?
  tail -n 12 "$output"
  if [ "$got" != "$code" ] || ! grep -aEq -- "$text" "$output"; then
    echo "gpu.sh: expected exit code $code and '$text', got exit code $got" >&2
    got=failed
  fi
  rm -f "$output"
  [ "$got" = "$code" ]
}

# two documents of words in changing order
make_text() {
  awk 'BEGIN {
    n = split("the hedgehog walks under an old apple tree and finds a warm nest of dry leaves before winter comes", word, " ")
    for (line = 1; line <= 4000; ++line) {
      if (line == 2000) print "<|endoftext|>"
      for (i = 0; i < 14; ++i) printf "%s ", word[(line * line + i * (1 + line % 7)) % n + 1]
      print ""
    }
  }'
}

run_program() (
  hedgehog="$build/bin/hedgehog"
  if [ ! -x "$hedgehog" ]; then
    echo "gpu.sh: $build holds no bin/hedgehog" >&2
    exit 1
  fi
  folder="$(mktemp -d)" code=0
  trap 'rm -rf "$folder"' EXIT
  make_text >"$folder/words.txt"
  ends 0 'after 6 steps' "$hedgehog" train --device=cuda --data="$folder/words.txt" --preset=tiny --tokenizer=char \
    --steps=6 --quiet --out="$folder/run" || code=1
  ends 0 'after 9 steps' "$hedgehog" train --device=cuda --resume="$folder/run" --steps=9 --quiet || code=1
  ends 0 'nats a token' "$hedgehog" eval --device=cuda --checkpoint="$folder/run" || code=1
  ends 0 '^the hedgehog' "$hedgehog" sample --device=cuda --checkpoint="$folder/run" --prompt='the hedgehog' --tokens=20 || code=1
  # refused before anything is allocated
  ends 2 'the largest batch that fits is --batch=[1-9]' "$hedgehog" train --device=cuda --data="$folder/words.txt" --preset=gpt2 \
    --batch=1000000 --out="$folder/large" || code=1
  exit "$code"
)

find_sanitizer() {
  local found
  for found in "$(command -v compute-sanitizer || true)" /usr/local/cuda/bin/compute-sanitizer /opt/cuda/bin/compute-sanitizer; do
    if [ -x "$found" ]; then
      echo "$found"
      return 0
    fi
  done
  return 1
}

# sanitize <tool>
sanitize() {
  local program poison=0 options=()
  program="$(find_sanitizer)" || {
    echo "gpu.sh: there is no compute-sanitizer; it comes with the CUDA toolkit (package cuda-sanitizer)" >&2
    return 1
  }
  case "$1" in
    memcheck) options=(--leak-check no --padding 64) ;;
    racecheck) options=(--racecheck-report analysis) ;;
  esac
  # initcheck does not see what cuBLAS's kernels store through the copy engine, and takes every product's result for unwritten
  # memory (it does so too where the results were compared and found right). So for it fresh memory is filled with NaN, which it does
  # count as written: an element that nothing wrote is then a NaN in a result, argument or gradient that the suite asks to be finite.
  [ "$1" != initcheck ] || poison=1
  HEDGEHOG_POISON="$poison" on_device timeout 600 "$program" --tool "$1" --target-processes all ${options[@]+"${options[@]}"} \
    --error-exitcode 1 --print-limit 20 "$build/bin/hedgehog_tests" --test-suite=sanitized
}

if [ -z "${HEDGEHOG_BUILD:-}" ]; then
  step build build_all || finish
elif [ ! -x "$build/bin/hedgehog_tests" ]; then
  echo "gpu.sh: HEDGEHOG_BUILD=$build holds no bin/hedgehog_tests" >&2
  note build FAILED 0
  finish
fi

for part in "${parts[@]}"; do
  case "$part" in
    tests)
      step tests run_tests
      step "tests, portable kernels" run_portable
      ;;
    program) step program run_program ;;
    sanitize) for tool in memcheck racecheck initcheck synccheck; do step "$tool" sanitize "$tool"; done ;;
    bench)
      # no figure of speed while a test is red
      if [ "$failed" = 0 ]; then
        step bench "$build/bin/hedgehog" bench --device=cuda
      else
        echo "gpu.sh: no figures while something is red" >&2
        note bench skipped 0
      fi
      ;;
  esac
done
finish
