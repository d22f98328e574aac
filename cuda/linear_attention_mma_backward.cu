#include "cuda/linear_attention_mma_backward.cuh"

#include "cuda/linear_attention_mma.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

/// Parts of the workspace, each 256-byte aligned.
struct Workspace {
  std::int64_t used = 0;
  std::byte* base = nullptr;

  template <class T>
  T* take(std::int64_t count) {
    T* const at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * std::int64_t(sizeof(T)) + 255) / 256 * 256;
    return at;
  }
  void take(BackwardArguments& p, std::int64_t heads, std::int64_t T, std::int64_t D) {
    const std::int64_t chunks = (T + D - 1) / D;
    p.shifts = take<float>(heads * chunks * 2 * D);
    p.delta = take<float>(heads * T);
    p.denominators = take<float>(heads * T);
    p.redo = take<unsigned long long>(heads * chunks);
    for (float*& part : p.dweight) part = take<float>(heads * D * D);
  }
};

struct WeightArguments {
  const float* parts;  // (B, elements)
  void* dweight;       // (elements)
  std::int64_t batch, elements;
  bool f32, adds;
};

/// Sums the parts of all batch elements in order, one thread an element.
__global__ void linear_attention_backward_weight_kernel(const WeightArguments p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= p.elements) return;
  float sum = 0;
  for (std::int64_t b = 0; b < p.batch; ++b) sum += p.parts[b * p.elements + i];
  Target{p.dweight, 0, 0, 0, p.f32, p.adds}.store(i, sum);
}

/// Gradients of an output that nothing reads.
void write_zeros(const Call& c) {
  for (std::size_t i = 0; i < c.dx.size(); ++i) {
    const Ref& x = c.dx[i];
    if (!x || c.modes[i] != Mode::write) continue;
    const std::size_t size = std::size_t(size_of(x.dtype));
    check(cudaMemset2DAsync(x.data, std::size_t(x.stride) * size, 0, std::size_t(x.columns) * size, std::size_t(x.size() / x.columns), stream()),
          "linear_attention");
  }
}

}  // namespace

std::int64_t backward_workspace(const Attributes&, std::span<const Meta> inputs) {
  const Shape& q = inputs[kQ].shape;
  Workspace w;
  BackwardArguments p{};
  w.take(p, q[0] * q[2], q[1], q[3]);
  return w.used;
}

void backward(const Call& c) {
  if (!c.dy[0]) return write_zeros(c);
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t B = q[0], H = q[2], D = q[3];
  auto target = [&](int i) { return target_of(c.dx[std::size_t(i)], adds(c, i)); };
  BackwardArguments p{};
  p.s = sequence_of(c);
  p.o = Heads<bf16>("linear_attention", c.outputs[0]);
  p.dy = Heads<bf16>("linear_attention", c.dy[0]);
  p.s.vector = p.s.vector && aligned(p.o) && aligned(p.dy);
  p.saved = c.saved[0].as<const float>();
  p.dq = target(kQ), p.dk = target(kK), p.dv = target(kV);
  Workspace w{0, static_cast<std::byte*>(c.workspace)};
  w.take(p, B * H, q[1], D);

  backward_queries(p, B, int(D));
  if (c.dx[kK] || c.dx[kV] || c.dx[kWeightK]) backward_keys(p, B, int(D));
  for (int side = 0; side < 2; ++side) {
    const Ref& x = c.dx[std::size_t(kWeightQ + side)];
    if (!x) continue;
    const WeightArguments sum{p.dweight[side], x.data, B, H * D * D, x.dtype == Dtype::f32, adds(c, kWeightQ + side)};
    launch(linear_attention_backward_weight_kernel, (sum.elements + 255) / 256, 256, 0, sum);
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma
