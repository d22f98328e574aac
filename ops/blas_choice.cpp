#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <vector>

#include <dlfcn.h>
#include <unistd.h>

#include "ops/blas.h"
#include "ops/blas_runtime.h"
#include "ops/cpu.h"

namespace hedgehog {
namespace {

constexpr const char* kCoreVariable = "OPENBLAS_CORETYPE";
// what an earlier start of this program decided: "<the library's choice> <ours>", or "rejected <ours>"
constexpr const char* kDecisionVariable = "HEDGEHOG_BLAS_DECISION";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool same_name(const std::string& x, const std::string& y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                    [](unsigned char p, unsigned char q) { return std::tolower(p) == std::tolower(q); });
}

bool one_of(const std::string& name, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& n) { return same_name(name, n); });
}

/// A function of the BLAS library, or null: any CBLAS links, so nothing beyond CBLAS may be required.
template <class Function>
Function* symbol(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}


BlasRuntime find_runtime() {
  BlasRuntime runtime;
  if (auto* config = symbol<char*()>("openblas_get_config")) {
    runtime.openblas = true;
    runtime.config = config();
    runtime.dynamic_arch = runtime.config.find("DYNAMIC_ARCH") != std::string::npos;
  }
  if (auto* core = symbol<char*()>("openblas_get_corename")) runtime.core = core();
  if (auto* parallel = symbol<int()>("openblas_get_parallel")) runtime.openmp = parallel() == 2;
  runtime.small_kernels = one_of(runtime.core, {"SkylakeX", "Cooperlake", "SapphireRapids"});
  set_library_threads(1);
  return runtime;
}

/// What an earlier start of this program, or of the program that started this one, put into the environment.
struct Decision {
  std::string before, chosen;
};

Decision decision() {
  Decision d;
  std::istringstream(environment(kDecisionVariable)) >> d.before >> d.chosen;
  return d;
}

bool chosen_by_us() {
  const Decision d = decision();
  return !d.chosen.empty() && d.before != "rejected" && d.chosen == environment(kCoreVariable);
}

/// Starts this program again in this process; returns only if that fails.
void start_again(char** argv) {
#ifdef __linux__
  execv("/proc/self/exe", argv);
#endif
  (void)argv;
  std::fprintf(stderr, "hedgehog: could not restart with a better BLAS kernel; start it with %s=%s yourself.\n",
               kCoreVariable, core_for(cpu_features()).c_str());
}

bool ensured = false;

double element(std::int64_t i) { return static_cast<double>((i * 2654435761u) % 2001) / 1000.0 - 1.0; }

template <class T>
std::string check_product(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k) {
  std::vector<T> a(m * k), b(k * n), c(m * n, T(NAN));
  for (std::int64_t i = 0; i < m * k; ++i) a[i] = static_cast<T>(element(i));
  for (std::int64_t i = 0; i < k * n; ++i) b[i] = static_cast<T>(element(i + 77));
  gemm_serial<T>(ta, tb, m, n, k, T(1), a.data(), ta ? m : k, b.data(), tb ? k : n, T(0), c.data(), n);
  // |a|, |b| <= 1: rounding of k products and sums, each at most k in size
  const double bound = 2.0 * k * std::sqrt(static_cast<double>(k)) * std::numeric_limits<T>::epsilon();
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t t = 0; t < k; ++t) {
        sum += static_cast<double>(a[ta ? t * m + i : i * k + t]) * static_cast<double>(b[tb ? j * k + t : t * n + j]);
      }
      const double off = std::abs(static_cast<double>(c[i * n + j]) - sum);
      if (!(off <= bound)) {
        std::ostringstream text;
        text << (sizeof(T) == 4 ? "float " : "double ") << m << " x " << n << " x " << k << " differs by " << off
             << " at (" << i << ", " << j << ")";
        return text.str();
      }
    }
  }
  return "";
}

}  // namespace

void set_library_threads(int threads) {
  // an OpenMP build passes the number on to the whole process
  const int ours = thread_count();
  for (const char* name : {"openblas_set_num_threads", "MKL_Set_Num_Threads"}) {
    if (auto* set = symbol<void(int)>(name)) set(threads);
  }
  if (auto* set = symbol<void(std::int64_t)>("bli_thread_set_num_threads")) set(threads);
  set_thread_count(ours);
}

CpuFeatures cpu_features() {
  CpuFeatures f;
#if defined(__x86_64__) || defined(__i386__)
  // these also ask whether the operating system saves the registers
  f.x86 = true;
  f.avx = __builtin_cpu_supports("avx");
  f.avx2 = __builtin_cpu_supports("avx2");
  f.fma = __builtin_cpu_supports("fma");
  f.avx512f = __builtin_cpu_supports("avx512f");
  f.avx512bw = __builtin_cpu_supports("avx512bw");
  f.avx512dq = __builtin_cpu_supports("avx512dq");
  f.avx512vl = __builtin_cpu_supports("avx512vl");
#endif
  return f;
}

std::string core_for(const CpuFeatures& f) {
  if (!f.x86) return "";
  if (f.avx2 && f.fma && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl) return "SkylakeX";
  if (f.avx2 && f.fma) return "Haswell";
  if (f.avx) return "Sandybridge";
  return "";
}

bool core_fits(const std::string& core, const CpuFeatures& features) {
  const std::string best = core_for(features);
  if (best.empty() || core.empty() || same_name(core, best)) return true;
  // on Zen 4 the AVX2 kernels come within 5 % of the AVX-512 ones on large products, but not on small ones
  if (best == "SkylakeX") return one_of(core, {"Cooperlake", "SapphireRapids"});
  if (best == "Haswell") return one_of(core, {"Zen", "Excavator", "Steamroller"});
  return one_of(core, {"Bulldozer", "Piledriver", "Steamroller", "Excavator"});
}

const BlasRuntime& blas_runtime() {
  static const BlasRuntime runtime = find_runtime();
  return runtime;
}

void warn_if_slow_core() {
  static const bool once = [] {
    const BlasRuntime& runtime = blas_runtime();
    if (ensured || !runtime.dynamic_arch || !environment(kCoreVariable).empty()) return true;
    if (core_fits(runtime.core, cpu_features())) return true;
    const std::string best = core_for(cpu_features());
    std::fprintf(stderr, "hedgehog: OpenBLAS runs on its %s kernel, which is slow on this processor; set %s=%s, or call "
                 "hedgehog::ensure_best_blas(argc, argv) first in main.\n", runtime.core.c_str(), kCoreVariable, best.c_str());
    return true;
  }();
  (void)once;
}

std::string blas_check() {
  // the last size is above the limit of the kernels for small products
  const std::int64_t sizes[][3] = {{2, 3, 1}, {5, 7, 3}, {17, 19, 23}, {67, 65, 33}, {101, 103, 131}};
  for (const auto& [m, n, k] : sizes) {
    for (int transposes = 0; transposes < (m == 101 ? 1 : 4); ++transposes) {
      const bool ta = transposes & 1, tb = transposes & 2;
      std::string wrong = check_product<float>(ta, tb, m, n, k);
      if (wrong.empty()) wrong = check_product<double>(ta, tb, m, n, k);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

void ensure_best_blas(int, char** argv) {
  ensured = true;
  const BlasRuntime& runtime = blas_runtime();
  if (chosen_by_us()) {
    const std::string wrong = blas_check();
    if (wrong.empty()) return;
    const std::string chosen = decision().chosen;
    std::fprintf(stderr, "hedgehog: the %s kernel of %s is wrong on this processor (%s); using the library's own choice.\n",
                 chosen.c_str(), blas_info().library.c_str(), wrong.c_str());
    setenv(kDecisionVariable, ("rejected " + chosen).c_str(), 1);
    unsetenv(kCoreVariable);
    start_again(argv);
    return;
  }
  const bool users_choice = !environment(kCoreVariable).empty();
  if (users_choice || decision().before == "rejected" || !runtime.dynamic_arch) return;
  if (core_fits(runtime.core, cpu_features())) return;
  const std::string best = core_for(cpu_features());
  setenv(kDecisionVariable, (runtime.core + " " + best).c_str(), 1);
  setenv(kCoreVariable, best.c_str(), 1);
  start_again(argv);
  unsetenv(kDecisionVariable);
  unsetenv(kCoreVariable);
}

BlasInfo blas_info() {
  const BlasRuntime& runtime = blas_runtime();
  BlasInfo info;
  info.config = runtime.config;
  info.core = runtime.core;
  info.library = "CBLAS";
  if (runtime.openblas) {
    std::string name, version;
    std::istringstream(runtime.config) >> name >> version;
    info.library = name + " " + version;
  } else if (symbol<void()>("MKL_Set_Num_Threads")) {
    info.library = "MKL";
  } else if (symbol<void()>("bli_thread_set_num_threads")) {
    info.library = "BLIS";
  }
  info.chosen_by = "the library";
  if (chosen_by_us()) {
    info.chosen_by = "hedgehog (the library would take " + decision().before + ")";
  } else if (runtime.openblas && !environment(kCoreVariable).empty()) {
    info.chosen_by = kCoreVariable;
  }
  if (runtime.openblas) info.expected_best = core_for(cpu_features());
  if (auto* threads = symbol<int()>("openblas_get_num_threads")) info.threads = threads();
  return info;
}

}  // namespace hedgehog
