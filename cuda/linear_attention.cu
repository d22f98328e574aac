#include "cuda/kernels.h"
#include "cuda/linear_attention_generic.cuh"
#include "cuda/linear_attention_mma.cuh"

namespace hedgehog::cuda {
namespace {

namespace generic = linear_attention_generic;
namespace mma = linear_attention_mma;

/// The tensor-core kernels take the shapes they know; forward and backward of one entry agree, as this looks at the inputs alone.
bool takes_mma(const Call& c) {
  std::vector<Meta> metas;
  for (const Ref& x : c.inputs) metas.push_back({x.shape, x.dtype, x.given});
  return mma::supports(c.attributes, metas);
}

}  // namespace

void register_linear_attention(KernelTable& table) {
  table["linear_attention"] = {
      .forward = [](const Call& c) { takes_mma(c) ? mma::forward(c) : generic::forward(c); },
      .backward = [](const Call& c) { takes_mma(c) ? mma::backward(c) : generic::backward(c); },
      .forward_workspace =
          [](const Attributes& a, std::span<const Meta> in) {
            return mma::supports(a, in) ? mma::forward_workspace(a, in) : generic::forward_workspace(a, in);
          },
      .backward_workspace =
          [](const Attributes& a, std::span<const Meta> in) {
            return mma::supports(a, in) ? mma::backward_workspace(a, in) : generic::backward_workspace(a, in);
          },
  };
}

}  // namespace hedgehog::cuda
