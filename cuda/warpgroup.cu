#include "cuda/warpgroup.cuh"

#include <cstdlib>
#include <string_view>

#include "cuda/stream.h"

namespace hedgehog::cuda {
namespace {

/// Compiled like every other kernel: what it was compiled to, they were.
__global__ void probe_kernel() {}

}  // namespace

bool has_warpgroups() {
  static const bool has = [] {
    const char* wish = std::getenv("HEDGEHOG_GPU_KERNELS");
    if (wish && std::string_view(wish) == "portable") return false;
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, probe_kernel), "query of a kernel");
    // machine code for sm_90a; code compiled by the driver from PTX of an older architecture has none of its instructions
    return attributes.binaryVersion == 90 && attributes.ptxVersion == 90;
  }();
  return has;
}

}  // namespace hedgehog::cuda
