#!/usr/bin/env bash
# The OpenBLAS trap, acted out: a preloaded library claims that OpenBLAS took its Prescott kernel. The test program must
# start itself again with a better one; and if that one computes wrongly, go back and say so.
# usage: test_blas_restart.sh BUILD_FOLDER
set -euo pipefail

tests="${1:-build}/bin/hedgehog_tests"
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "skipped: not Linux on x86-64"; exit 77; }
grep -q '^flags.* avx ' /proc/cpuinfo || { echo "skipped: no AVX, so the library's choice stands"; exit 77; }
ldd "$tests" | grep -q libopenblas || { echo "skipped: not linked with a shared OpenBLAS"; exit 77; }
! ldd "$tests" | grep -q libasan || { echo "skipped: a sanitizer does not let itself be preloaded"; exit 77; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cat >"$work/shim.c" <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static int chosen(void) { const char* core = getenv("OPENBLAS_CORETYPE"); return core && *core; }

char* openblas_get_corename(void) { return chosen() ? getenv("OPENBLAS_CORETYPE") : "Prescott"; }

#ifdef WRONG
void cblas_sgemm(int o, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                 int ldb, float beta, float* c, int ldc) {
  void (*real)() = (void (*)())dlsym(RTLD_NEXT, "cblas_sgemm");
  ((void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int))real)(
      o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (chosen()) c[0] += 1;
}
#endif
C
cc -shared -fPIC -w "$work/shim.c" -o "$work/shim.so" -ldl
cc -shared -fPIC -w -DWRONG "$work/shim.c" -o "$work/wrong.so" -ldl
unset OPENBLAS_CORETYPE HEDGEHOG_BLAS_DECISION
name='this process runs on a kernel that fits and is right'

LD_PRELOAD="$work/shim.so" "$tests" -tc="$name" >"$work/good" 2>&1 || { cat "$work/good"; exit 1; }
echo "ok: started again with a fitting kernel"

# the fitting kernel is rejected, so this run ends on "Prescott", where the case itself must fail
LD_PRELOAD="$work/wrong.so" "$tests" -tc="$name" >"$work/wrong" 2>&1 && { cat "$work/wrong"; exit 1; }
grep -q 'is wrong on this processor .*using the library' "$work/wrong" || { cat "$work/wrong"; exit 1; }
[ "$(grep -c 'is wrong on this processor' "$work/wrong")" = 1 ] || { cat "$work/wrong"; exit 1; }
echo "ok: a wrong kernel is noticed once, and given up"

OPENBLAS_CORETYPE=Haswell LD_PRELOAD="$work/shim.so" "$tests" -tc="$name" >"$work/user" 2>&1 || { cat "$work/user"; exit 1; }
echo "ok: a kernel named by the user is kept"
