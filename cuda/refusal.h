#pragma once
#include <fmt/format.h>

#include <string>

/// Why a GPU cannot be used, for people. Without any CUDA, so that the sentences are tested where no GPU is.
namespace hedgehog::cuda {

/// What was found when the GPU was opened, in the order of looking. The first thing wrong ends the search.
struct Opening {
  enum class Start { good, busy, no_memory, no_code, failed };

  int driver = 0, runtime = 0;  // CUDA versions, 1000 major + 10 minor; driver 0: none
  bool driver_too_old = false;  // as the runtime says
  int gpus = 0;
  std::string driver_error;     // of counting them
  std::string name;             // of the first GPU; empty: it does not answer
  int major = 0, minor = 0;     // its compute capability
  Start start = Start::good;    // of the process on it
  std::string start_error;
};

/// A sentence that says what is wrong and what to do; empty if nothing is.
inline std::string refusal(const Opening& o) {
  auto version = [](int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); };
  if (o.driver == 0) return "there is no NVIDIA driver on this machine; install it, or leave out --device=cuda to compute on the CPU";
  if (o.driver_too_old || o.driver / 1000 < o.runtime / 1000)
    return fmt::format("the NVIDIA driver supports CUDA {}, but this program was built with CUDA {}; update the driver, or build with an older "
                       "toolkit",
                       version(o.driver), version(o.runtime));
  if (!o.driver_error.empty()) return fmt::format("the driver gives an error: {}; check nvidia-smi", o.driver_error);
  if (o.gpus == 0) return "the driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or leave out --device=cuda to compute on the CPU";
  if (o.name.empty()) return "the GPU does not answer; check nvidia-smi";
  if (o.major < 8) return fmt::format("{} has compute capability {}.{}, but 8.0 (Ampere) or newer is needed", o.name, o.major, o.minor);
  switch (o.start) {
    case Opening::Start::good: return {};
    case Opening::Start::busy: return fmt::format("{} is in exclusive use by another process; wait for it, or compute on the CPU", o.name);
    case Opening::Start::no_memory: return fmt::format("{} has no memory left for this process; stop the other programs on it", o.name);
    case Opening::Start::no_code:
      return fmt::format("this program holds no code for {}, compute capability {}.{}; build it with -DCMAKE_CUDA_ARCHITECTURES=native",
                         o.name, o.major, o.minor);
    case Opening::Start::failed: break;
  }
  return fmt::format("{} cannot be used: {}", o.name, o.start_error);
}

}  // namespace hedgehog::cuda
