#!/usr/bin/env bash
# The launcher, on a small project of its own in a folder with blanks: help, build, arguments, latency, failure, waiting.
set -euo pipefail

source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# it installs packages where something is missing, which a test must not do
for tool in cmake ninja c++; do
  command -v "$tool" >/dev/null || { echo "skipped: no $tool"; exit 77; }
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
tree="$work/a tree"
mkdir -p "$tree/train" "$tree/tests" "$work/elsewhere"
cp "$source_dir/hedgehog" "$tree/"
# the real sources, so that the check for changes has as many files to look at
cp -R "$source_dir/core" "$source_dir/ops" "$source_dir/nn" "$tree/"
export NO_COLOR=1 TERM=dumb
# the launcher builds with ninja, whatever else CMake would choose
export CMAKE_GENERATOR='Unix Makefiles'

cat >"$tree/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(stub LANGUAGES CXX)
enable_testing()
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(hedgehog_program train/main.cpp)
set_target_properties(hedgehog_program PROPERTIES OUTPUT_NAME hedgehog)
add_executable(hedgehog_tests tests/main.cpp)
add_test(NAME hedgehog_tests COMMAND hedgehog_tests)
add_test(NAME good COMMAND ${CMAKE_COMMAND} -E true)
add_test(NAME bad COMMAND ${CMAKE_COMMAND} -E false)
add_test(NAME absent COMMAND /nonexistent/program)
add_test(NAME skipped COMMAND sh -c "exit 77")
set_tests_properties(skipped PROPERTIES SKIP_RETURN_CODE 77)
CMAKE
program() {
  printf '#include <cstdio>\n#include <cstdlib>\nint main(int n, char** a) {\n  puts("%s");\n' "$1"
  printf '  for (int i = 1; i < n; ++i) printf("[%%s]\\n", a[i]);\n'
  printf '  if (const char* e = getenv("HEDGEHOG_EARLIER_TESTS")) puts(e);\n  return n > 2 ? 7 : 0;\n}\n'
}
program 'program one' >"$tree/train/main.cpp"
program 'test program' >"$tree/tests/main.cpp"

failures=0
# check <what> <expected> <actual>
check() {
  if [ "$2" = "$3" ]; then
    echo "ok: $1"
  else
    printf 'FAILED: %s\n  expected: %s\n  actual:   %s\n' "$1" "$2" "$3"
    failures=$((failures + 1))
  fi
}
lines() { printf '%s\n' "$@"; }

check "alone it prints six lines" 6 "$("$tree/hedgehog" | wc -l | tr -d ' ')"
check "alone it builds nothing" no "$([ -e "$tree/build" ] && echo yes || echo no)"

cd "$work/elsewhere"
# two at once: one builds, the other waits
"../a tree/hedgehog" first >"$work/first" 2>"$work/first.err" &
"../a tree/hedgehog" second >"$work/second" 2>"$work/second.err"
wait $!
check "it builds and runs from another folder" "$(lines 'program one' '[second]')" "$(cat "$work/second")"
check "two calls at once both run" "$(lines 'program one' '[first]')" "$(cat "$work/first")"

code=0
output="$("$tree/hedgehog" 'two words' '' --x=1 2>"$work/err")" || code=$?
check "arguments pass unchanged" "$(lines 'program one' '[two words]' '[]' '[--x=1]')" "$output"
check "the exit code is the program's" 7 "$code"
check "nothing is said when nothing is built" "" "$(cat "$work/err")"
ln -s "$tree/hedgehog" "$work/link"
check "it works through a link" "$(lines 'program one' '[--help]')" "$("$work/link" --help)"

milliseconds() { echo $(($(date +%s%N 2>/dev/null | tr -dc 0-9) / 1000000)); }
best=100000
for _ in 1 2 3 4 5; do
  start="$(milliseconds)"
  "$tree/hedgehog" x >/dev/null
  taken=$(($(milliseconds) - start))
  [ "$taken" -ge "$best" ] || best="$taken"
done
echo "second call: $best ms before and in the program"
check "the second call starts within 200 ms" yes "$([ "$best" -lt 200 ] && echo yes || echo no)"

sleep 0.02
program 'program two' >"$tree/train/main.cpp"
check "a changed source is built" "program two" "$("$tree/hedgehog" x 2>/dev/null | head -n 1)"

check "test runs the other tests, then the test program" "$(lines 'test program' '1,2,1')" \
  "$("$tree/hedgehog" test 2>/dev/null | tail -n 2)"
mkdir "$work/broken"
printf '#!/bin/sh\nexit 1\n' >"$work/broken/ctest"
chmod +x "$work/broken/ctest"
check "a ctest that does not start is a failure" "$(lines 'test program' '0,1,0')" \
  "$(PATH="$work/broken:$PATH" "$tree/hedgehog" test 2>/dev/null | tail -n 2)"
check "test passes arguments on, and then runs nothing else" "$(lines 'test program' '[-tc=one]')" \
  "$("$tree/hedgehog" test -tc=one 2>/dev/null)"

sleep 0.02
echo 'int main() { return missing_name; }' >"$tree/train/main.cpp"
code=0
"$tree/hedgehog" x >"$work/out" 2>"$work/err" || code=$?
check "a failed build exits with 1" 1 "$code"
check "it shows the error" yes "$(grep -q "missing_name" "$work/err" && echo yes || echo no)"
check "it says what to do, last" yes "$(tail -n 1 "$work/err" | grep -q '^What to do: ' && echo yes || echo no)"
check "it runs nothing" "" "$(cat "$work/out")"
check "the log keeps everything" yes "$(grep -q "missing_name" "$tree/build/log.txt" && echo yes || echo no)"

# a compiler that finds the header of the reference BLAS, but no fast library
mkdir "$work/slow_blas"
printf '#!/bin/sh\ncase "$*" in *-lopenblas*|*-lblis*|*-lmkl_rt*) exit 1 ;; esac\nexec %s "$@"\n' "$(command -v c++)" >"$work/slow_blas/c++"
printf '#!/bin/sh\necho "$*" >>"%s/apt"\n' "$work" >"$work/slow_blas/apt-get"
printf '#!/bin/sh\necho 0\n' >"$work/slow_blas/id"
printf '#!/bin/sh\necho Linux\n' >"$work/slow_blas/uname"
chmod +x "$work"/slow_blas/*
rm -rf "$tree/build"
code=0
PATH="$work/slow_blas:$PATH" "$tree/hedgehog" build >/dev/null 2>&1 || code=$?
check "the reference BLAS is not enough" "1 yes" "$code $(grep -q 'install.* libopenblas-dev' "$work/apt" && echo yes || echo no)"

[ "$failures" -eq 0 ] || { echo "$failures checks failed"; exit 1; }
