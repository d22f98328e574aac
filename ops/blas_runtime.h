#pragma once
#include <string>

namespace hedgehog {

/// The BLAS library of this process, asked once. Private to ops/blas*.cpp.
struct BlasRuntime {
  std::string config;              // openblas_get_config(), or what another library says of itself
  std::string core;                // openblas_get_corename(), or empty
  bool openblas = false;
  bool dynamic_arch = false;       // several kernels in one library, so OPENBLAS_CORETYPE has an effect
  bool openmp = false;             // its threads are OpenMP's: one thread has to be asked for at every call
  bool small_kernels = false;      // small products skip the packing, and are faster than large ones
};

/// First call: looks the library up and sets it to one thread a call.
const BlasRuntime& blas_runtime();

/// Threads inside one call of the library, where it can be told.
void set_library_threads(int threads);

/// Prints one warning, once, if nobody called ensure_best_blas and the library runs on a kernel that does not fit.
void warn_if_slow_core();

}  // namespace hedgehog
