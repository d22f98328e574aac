#include "cuda/early_launch.cuh"

#include <cstdlib>
#include <string_view>

namespace hedgehog::cuda {
namespace {

/// Compiled like every other kernel: what it was compiled for, they were.
__global__ void probe_kernel() {}

bool last_early = false;

}  // namespace

bool has_early_launches() {
  static const bool has = [] {
    const char* wish = std::getenv("HEDGEHOG_GPU_KERNELS");
    if (wish && std::string_view(wish) == "portable") return false;
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, probe_kernel), "query of a kernel");
    // code made from PTX of an older architecture does not wait, whatever the device
    return attributes.ptxVersion >= 90;
  }();
  return has;
}

bool last_launch_was_early() { return last_early; }
void note_launch(bool early) { last_early = early; }

}  // namespace hedgehog::cuda
