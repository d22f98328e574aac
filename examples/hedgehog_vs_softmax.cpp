// A Hedgehog attention layer learns to attend as softmax attention does: its feature maps are distilled on one small batch
// of queries and keys, and then both layers are compared.
//
// Prints the divergence of the attention weights from the teacher's every 50 steps, then the error of the layer's output:
//   step   0   KL 0.8027 nats a token
//   ...
//   output against softmax attention: relative error 0.722 before, 0.294 after
//   chunkwise op against the quadratic form: 1.4e-07
#include <cmath>
#include <cstdio>
#include <vector>

#include "nn/hedgehog.h"

using namespace hedgehog;

namespace {

constexpr std::int64_t B = 2, T = 32, H = 2, D = 8;

Tensor draw(const char* name, std::uint32_t id, double scale) {
  std::vector<double> v;
  for (std::int64_t i = 0; i < B * T * H * D; ++i) v.push_back(scale * Random{1, id, 0}.normal(std::uint64_t(i)));
  return constant({B, T, H, D}, v, Dtype::f32, name);
}

Tensor heads_first(const Tensor& x) { return permute(x, {0, 2, 1, 3}); }  // (B, H, T, D)

/// softmax(q k^T / sqrt(D)) under the causal mask, (B, H, T, T).
Tensor softmax_weights(const Tensor& q, const Tensor& k) {
  return softmax(causal_mask(scale(matmul(heads_first(q), heads_first(k), false, true), 1 / std::sqrt(double(D)))));
}

/// phi(q) phi(k)^T, each row divided by its sum, (B, H, T, T): the quadratic form, for the loss.
Tensor hedgehog_weights(const Tensor& q, const Tensor& k, const Tensor& map_q, const Tensor& map_k) {
  const Tensor products = matmul(heads_first(feature_map(q, map_q)), heads_first(feature_map(k, map_k)), false, true);
  const Tensor visible = causal_mask(products, 0);
  return visible / sum(visible, -1, true);
}

double relative_error(const Tensor& a, const Tensor& b) {
  double error = 0, size = 0;
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  for (std::size_t i = 0; i < x.size(); ++i) error += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(error / size);
}

}  // namespace

int main() {
  const Tensor q = draw("q", 1, 1.5), k = draw("k", 2, 1.5), v = draw("v", 3, 1);
  Parameters parameters;
  const Tensor map_q = parameters.add("map_q", {H, D, D}, Init::identity(0.6), 0);
  const Tensor map_k = parameters.add("map_k", {H, D, D}, Init::identity(0.6), 0);
  const FlatParameters& flat = parameters.flatten();
  const Tensor step = step_state();
  step.as<double>()[kLearningRate] = 0.02;

  const Tensor teacher = softmax_weights(q, k);
  const Tensor expected = heads_first(matmul(teacher, heads_first(v)));  // (B, T, H, D)
  auto layer = [&] { return linear_attention(q, k, v, {.weight_q = map_q, .weight_k = map_k}).o; };
  const double before = relative_error(layer(), expected);

  // cross entropy of the student's weights under the teacher's; the floor keeps the masked zeros out of the logarithm
  const Program program = record([&] {
    const Tensor student = hedgehog_weights(q, k, map_q, map_k);
    const Tensor loss = scale(sum(teacher * log(floor_at(student, 1e-12))), -1.0 / double(B * H * T));
    backward(loss);
    const Tensor norms = gradient_norm(flat.gradients, flat.spans, loss, step);
    adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, norms, step);
    return Tensors{loss};
  });
  const double entropy = -sum(teacher * log(floor_at(teacher, 1e-12))).item() / double(B * H * T);
  Executor run(program);
  std::vector<double> divergence;
  for (int i = 0; i <= 200; ++i) {
    run.run();
    if (i % 50) continue;
    divergence.push_back(run.output(0).item() - entropy);
    std::printf("step %3d   KL %.4f nats a token\n", i, divergence.back());
  }

  const Tensor o = layer();
  const double after = relative_error(o, expected);
  const double quadratic = relative_error(o, heads_first(matmul(hedgehog_weights(q, k, map_q, map_k), heads_first(v))));
  std::printf("output against softmax attention: relative error %.3f before, %.3f after\n", before, after);
  std::printf("chunkwise op against the quadratic form: %.1e\n", quadratic);
  const bool right = divergence.back() < divergence.front() / 2 && after < before && quadratic < 1e-5;
  std::printf("%s\n", right ? "distilled" : "WRONG");
  clear_tape();
  return right ? 0 : 1;
}
