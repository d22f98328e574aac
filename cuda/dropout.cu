#include "core/random.h"
#include "cuda/packet.cuh"
#include "ops/step_state.h"

namespace hedgehog::cuda {
namespace {

/// What decides which elements stay. The step state is read on the device: a replayed graph must see the present one.
struct Mask {
  const double* step;
  std::uint32_t id;
  float threshold;        // the rate, compared in f32 as Random::uniform draws
  std::int64_t sequence;  // elements of one sequence
};

/// y (+)= factor x where uniform >= threshold, else 0; x null: zeros.
///
/// A thread for N elements, whose words come from N / 4 Philox blocks when the first element begins one. It does but for odd
/// sequences: then every element draws the block that its word is in.
template <class T, class Y, int N>
__global__ void dropout_forward_kernel(const Mask mask, const T* x, std::int64_t size, Accumulator<T> factor, bool vectors, Y* y, bool adds) {
  using A = Accumulator<T>;
  const Random random{std::uint64_t(mask.step[kSeed]), mask.id, std::uint32_t(std::int64_t(mask.step[kRngStep]))};
  const std::int64_t origin = std::int64_t(mask.step[kFirstSequence]) * mask.sequence;
  const std::int64_t stride = std::int64_t(gridDim.x) * blockDim.x * N;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < size; i += stride) {
    const std::uint64_t index = std::uint64_t(origin + i);
    if (vectors && index % 4 == 0 && i + N <= size) {
      Packet<T, N> in = {};
      if (x) in = load_packet<N>(x + i);
      A kept[N];
#pragma unroll
      for (int b = 0; b < N / 4; ++b) {
        const auto words = random.words(index / 4 + std::uint64_t(b));
#pragma unroll
        for (int e = 0; e < 4; ++e)
          kept[4 * b + e] = float(words[std::size_t(e)] >> 8) * 0x1p-24f >= mask.threshold ? factor * convert<A>(in[4 * b + e]) : A(0);
      }
      put_packet<N>(y + i, kept, adds);
    } else {
      for (std::int64_t e = i; e < min(i + N, size); ++e) {
        const bool stays = random.uniform(std::uint64_t(origin + e)) >= mask.threshold;
        store(y + e, stays && x ? factor * load(x + e) : A(0), adds);
      }
    }
  }
}

template <class T, class Y>
void drop(const Call& c, const Ref& x, const Ref& y, bool adds) {
  using A = Accumulator<T>;
  constexpr int N = std::is_same_v<T, bf16> ? 8 : 4;
  const std::int64_t size = y.size();
  const double rate = c.attributes.real("rate");
  const Mask mask{c.inputs[1].as<double>(), std::uint32_t(c.attributes.integer("id")), float(rate),
                  y.shape.rank() ? size / y.shape[0] : 1};
  dropout_forward_kernel<T, Y, N><<<blocks_for(size, 256 * N), 256, 0, stream()>>>(mask, x.as<T>(), size, A(1.0 / (1.0 - rate)),
                                                                                  aligned({x.data, y.data}), y.as<Y>(), adds);
  check_launch("dropout");
}

void forward(const Call& c) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) { drop<decltype(zero), decltype(zero)>(c, c.inputs[0], c.outputs[0], false); });
}

/// The mask is drawn again; backward is forward on dy.
void backward(const Call& c) {
  const Ref& dx = c.dx[0];
  if (!dx) return;
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_gradient<T>(dx, [&](auto gradient) { drop<T, decltype(gradient)>(c, c.dy[0], dx, adds(c, 0)); });
  });
}

}  // namespace

void register_dropout(KernelTable& table) { table["dropout"] = {forward, backward, {}, {}}; }

}  // namespace hedgehog::cuda
