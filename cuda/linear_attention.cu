#include "cuda/kernels.h"
#include "cuda/linear_attention_generic.cuh"
#include "cuda/linear_attention_large.cuh"
#include "cuda/linear_attention_mma.cuh"
#include "cuda/linear_attention_one_sided.cuh"
#include "cuda/linear_products.h"
#include "cuda/rotary.h"
#include "ops/linear_attention_sizes.h"

namespace hedgehog::cuda {
namespace {

namespace generic = linear_attention_generic;
namespace large = linear_attention_large;
namespace mma = linear_attention_mma;
namespace one_sided = linear_attention_one_sided;
namespace la = linear_attention_detail;

/// What takes the calls of some shapes.
struct Path {
  Kernel forward, backward;
  WorkspaceBytes forward_workspace, backward_workspace;
  KeptMetas kept = [](const Attributes&, std::span<const Meta>) { return std::vector<Meta>{}; };
  bool applies_rotary = false;  // turns queries and keys itself
};

/// A call whose queries and keys have been turned in its workspace, for kernels that do not turn them as they load them. Backward finds
/// their gradients beside them and turns those back.
struct TurnedCall {
  std::vector<Ref> inputs, dx;
  std::vector<Mode> modes;
  void* rest;  // of the workspace

  explicit TurnedCall(const Call& c)
      : inputs(c.inputs.begin(), c.inputs.end()), dx(c.dx.begin(), c.dx.end()), modes(c.modes.begin(), c.modes.end()) {
    std::byte* at = static_cast<std::byte*>(c.workspace);
    const auto take = [&](const Ref& like) {
      const Ref x = packed(at, like.shape, like.dtype);
      at += bytes_of(like.shape, like.dtype);
      return x;
    };
    for (int i : kTurned) {
      Ref& x = inputs[i];
      const Ref turned = take(x);
      rotate_heads(x, c.inputs[la::kRotary], false, turned, false);
      x = turned;
    }
    inputs[la::kRotary] = Ref{};
    for (int i : kTurned)
      if (!dx.empty() && dx[i]) dx[i] = take(c.inputs[i]), modes[i] = Mode::write;
    rest = at;
  }
  Call of(const Call& c) const { return {c.attributes, inputs, c.outputs, c.saved, c.dy, dx, modes, rest}; }
  void turn_gradients_back(const Call& c) const {
    for (int i : kTurned)
      if (dx[i]) rotate_heads(dx[i], c.inputs[la::kRotary], true, c.dx[i], adds(c, i));
  }

  static constexpr int kTurned[] = {la::kQ, la::kK};
  static std::int64_t bytes_of(const Shape& shape, Dtype dtype) { return aligned_bytes(shape.rows(), shape.last(), dtype); }
  /// Of the turned vectors, and as many for their gradients.
  static std::int64_t bytes(std::span<const Meta> in) {
    std::int64_t sum = 0;
    for (int i : kTurned) sum += bytes_of(in[i].shape, in[i].dtype);
    return sum;
  }
};

Path with_turned_calls(const Path& path) {
  return {
      .forward = [path](const Call& c) { path.forward(TurnedCall(c).of(c)); },
      .backward =
          [path](const Call& c) {
            const TurnedCall turned(c);
            path.backward(turned.of(c));
            turned.turn_gradients_back(c);
          },
      .forward_workspace = [path](const Attributes& a, std::span<const Meta> in) { return path.forward_workspace(a, in) + TurnedCall::bytes(in); },
      .backward_workspace =
          [path](const Attributes& a, std::span<const Meta> in) { return path.backward_workspace(a, in) + 2 * TurnedCall::bytes(in); },
      .kept = path.kept,
  };
}

/// The tensor-core kernels take the shapes they know; forward and backward of one entry agree, as this looks at the inputs alone.
Path path_by_shape(const Attributes& a, std::span<const Meta> in) {
  if (mma::supports(a, in))
    return {mma::forward, mma::backward, mma::forward_workspace, mma::backward_workspace, mma::kept, mma::applies_rotary(a, in)};
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
Path path_of(const Attributes& a, std::span<const Meta> in) {
  const Path path = path_by_shape(a, in);
  return !in[la::kRotary].given || path.applies_rotary ? path : with_turned_calls(path);
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
