#include "cuda/kernels.h"
#include "cuda/linear_attention_generic.cuh"
#include "cuda/linear_attention_large.cuh"
#include "cuda/linear_attention_mma.cuh"
#include "cuda/linear_attention_one_sided.cuh"
#include "ops/linear_attention_sizes.h"

namespace hedgehog::cuda {
namespace {

namespace generic = linear_attention_generic;
namespace large = linear_attention_large;
namespace mma = linear_attention_mma;
namespace one_sided = linear_attention_one_sided;

/// What takes the calls of some shapes.
struct Path {
  Kernel forward, backward;
  std::int64_t (*forward_workspace)(const Attributes&, std::span<const Meta>);
  std::int64_t (*backward_workspace)(const Attributes&, std::span<const Meta>);
  std::vector<Meta> (*kept)(const Attributes&, std::span<const Meta>) = [](const Attributes&, std::span<const Meta>) {
    return std::vector<Meta>{};
  };
};

/// The tensor-core kernels take the shapes they know; forward and backward of one entry agree, as this looks at the inputs alone.
Path path_of(const Attributes& a, std::span<const Meta> in) {
  if (mma::supports(a, in)) return {mma::forward, mma::backward, mma::forward_workspace, mma::backward_workspace, mma::kept};
  if (large::supports(a, in)) return {large::forward, large::backward, large::forward_workspace, large::backward_workspace};
  if (one_sided::supports(a, in))
    return {one_sided::forward, one_sided::backward, one_sided::forward_workspace, one_sided::backward_workspace};
  const auto slow = [](auto kernel) {
    return [kernel](const Call& c) {
      linear_attention_detail::count_slow_call();
      kernel(c);
    };
  };
  return {slow(generic::forward), slow(generic::backward), generic::forward_workspace, generic::backward_workspace};
}
Path path_of(const Call& c) {
  std::vector<Meta> metas;
  for (const Ref& x : c.inputs) metas.push_back({x.shape, x.dtype, x.given});
  return path_of(c.attributes, metas);
}

}  // namespace

void register_linear_attention(KernelTable& table) {
  table["linear_attention"] = {
      .forward = [](const Call& c) { path_of(c).forward(c); },
      .backward = [](const Call& c) { path_of(c).backward(c); },
      .forward_workspace = [](const Attributes& a, std::span<const Meta> in) { return path_of(a, in).forward_workspace(a, in); },
      .backward_workspace = [](const Attributes& a, std::span<const Meta> in) { return path_of(a, in).backward_workspace(a, in); },
      .kept = [](const Attributes& a, std::span<const Meta> in) { return path_of(a, in).kept(a, in); },
  };
}

}  // namespace hedgehog::cuda
