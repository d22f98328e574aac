#include "cuda/linear_attention_mma_backward.cuh"

#include "cuda/linear_attention_mma.cuh"
#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

void take(Workspace& w, BackwardArguments& p, const Shape& q) {
  const Segments g = segments_of(q, kBackwardBlocks);
  const std::int64_t heads = q[0] * q[2], T = q[1], D = q[3];
  p.states = w.take_slots(q, g);
  p.reversed = {p.states.S, p.states.z};  // made when the states have been read
  p.shifts = w.take<float>(heads * g.chunks * 2 * D);
  p.delta = w.take<float>(heads * T);
  p.denominators = w.take<float>(heads * T);
  p.redo = w.take<unsigned long long>(heads * g.chunks);
  for (float*& part : p.dweight) part = w.take<float>(heads * g.count * D * D);
  p.walks = int(heads * g.count);
  p.handover = w.take<int>(p.walks);
}

struct WeightArguments {
  const float* parts;    // (B, H, segments, matrix)
  Target<bf16> dweight;  // (H, matrix)
  std::int64_t batch, heads, segments, matrix;
};

/// Sums the parts of all batch elements and segments in order, one thread an element.
__global__ void linear_attention_backward_weight_kernel(const WeightArguments p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= p.heads * p.matrix) return;
  const std::int64_t h = i / p.matrix, element = i % p.matrix;
  float sum = 0;
  for (std::int64_t b = 0; b < p.batch; ++b)
    for (std::int64_t g = 0; g < p.segments; ++g) sum += p.parts[((b * p.heads + h) * p.segments + g) * p.matrix + element];
  p.dweight.put(i, sum);
}

/// Gradients of an output that nothing reads.
void write_zeros(const Call& c) {
  for (std::size_t i = 0; i < c.dx.size(); ++i) {
    const Ref& x = c.dx[i];
    if (!x || c.modes[i] != Mode::write) continue;
    const std::size_t size = std::size_t(size_of(x.dtype));
    const std::size_t pitch = std::size_t(x.stride) * size, width = std::size_t(x.columns) * size;
    const bool whole = x.columns == x.stride || x.columns == x.size();
    check(whole ? cudaMemsetAsync(x.data, 0, std::size_t(x.size()) * size, stream())
                : cudaMemset2DAsync(x.data, pitch, 0, width, std::size_t(x.size() / x.columns), stream()),
          "linear_attention");
  }
}

}  // namespace

void sum_weight_parts(const Call& c, int weight, const float* parts, std::int64_t segments) {
  const Target<bf16> dweight(c, weight);
  if (!dweight) return;
  const Shape& q = c.inputs[kQ].shape;
  const WeightArguments sum{parts, dweight, q[0], q[2], segments, q[3] * q[3]};
  launch(linear_attention_backward_weight_kernel, (q[2] * q[3] * q[3] + 255) / 256, 256, 0, sum);
}

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  if (!attributes.flag("causal")) return bidirectional_backward_workspace(inputs[kQ].shape);
  Workspace w;
  BackwardArguments p{};
  take(w, p, inputs[kQ].shape);
  return w.used;
}

void backward(const Call& c) {
  if (!c.dy[0]) return write_zeros(c);
  if (!c.attributes.flag("causal")) return bidirectional_backward(c);
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t B = q[0], D = q[3];
  auto target = [&](int i) { return HeadsTarget<bf16>("linear_attention", c, i); };
  BackwardArguments p{};
  p.s = sequence_of(c, kBackwardBlocks);
  p.o = Heads<bf16>("linear_attention", c.outputs[0]);
  p.dy = Heads<bf16>("linear_attention", c.dy[0]);
  p.s.vector = p.s.vector && aligned(p.o) && aligned(p.dy);
  p.s.warpgroups = p.s.warpgroups && p.s.vector;
  p.saved = c.saved[0].as<const float>();
  p.dq = target(kQ), p.dk = target(kK), p.dv = target(kV);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  take(w, p, q);
  if (!p.s.warpgroups) p.handover = nullptr;
  const bool of_keys = c.dx[kK] || c.dx[kV] || c.dx[kWeightK];

  if (p.s.segments > 1) make_states(p.s, p.states, B, int(D));
  if (p.handover) {
    check(cudaMemsetAsync(p.handover, -1, std::size_t(p.walks) * sizeof(int), stream()), "linear_attention");
    warpgroup_backward(p, WarpgroupPass::queries);
    // the sums of segments, launched early too, would only wait: they took 5 % more of the whole
    if (of_keys && p.s.segments == 1) warpgroup_backward(p, WarpgroupPass::keys, true);
  }
  backward_queries(p, B, int(D));
  if (of_keys) backward_keys(p, B, int(D));
  for (int side = 0; side < 2; ++side) sum_weight_parts(c, kWeightQ + side, p.dweight[side], p.s.segments);
}

}  // namespace hedgehog::cuda::linear_attention_mma
