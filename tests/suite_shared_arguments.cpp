#include <doctest/doctest.h>

#include <cmath>

#include "core/random.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

// One tensor may be several arguments of a call, as in attention(x, x, x). Its gradients then share memory, and a kernel
// stores them in any order.

namespace {

/// Unit roundoff.
double roundoff(Dtype dtype) { return dtype == Dtype::f64 ? 0x1p-53 : dtype == Dtype::f32 ? 0x1p-24 : 0x1p-8; }

/// Gradients of `parameters` through a call, from a cotangent of random numbers for each result.
std::vector<std::vector<double>> gradients(const Op& op, const Sample& sample, const Tensors& arguments, const Tensors& parameters) {
  Tensor loss;
  std::uint32_t id = 0;
  for (const Tensor& y : apply(op, sample.attributes, arguments)) {
    if (!y || !y.wants_gradient()) continue;
    std::vector<double> numbers = draw(y.size(), 7, id++);
    Tensor part = sum(multiply(y, constant(y.shape(), numbers, y.dtype())));
    if (y.dtype() == Dtype::bf16) part = cast(part, Dtype::f32);  // states are f32 beside it
    loss = loss ? add(loss, part) : part;
  }
  for (const Tensor& p : parameters) p->gradient.fill(0);
  backward(loss);
  std::vector<std::vector<double>> out;
  for (const Tensor& p : parameters) out.push_back(p.grad().to_vector());
  clear_tape();
  return out;
}

/// The gradient of one activation that is arguments i and j against the sum of the gradients of two of the same numbers.
void check_pair(const Op& op, const Sample& sample, Dtype dtype, std::size_t i, std::size_t j) {
  Tensors arguments = draw_arguments(op, sample, 3, dtype);
  const Tensor p = arguments[i], q = arguments[j];
  q.copy_from(p.to_vector());
  const Tensors inner = [&] {
    Tensors a = arguments;
    a[i] = scale(p, 1), a[j] = scale(q, 1);
    return a;
  }();
  const auto apart = gradients(op, sample, inner, {p, q});
  arguments[i] = arguments[j] = scale(p, 1);
  const std::vector<double> shared = gradients(op, sample, arguments, {p})[0];
  double largest_sum = 0;
  for (std::size_t e = 0; e < shared.size(); ++e) largest_sum = std::max(largest_sum, std::abs(apart[0][e]) + std::abs(apart[1][e]));
  for (std::size_t e = 0; e < shared.size(); ++e) {
    // three roundings to the dtype, of each gradient and of their sum; kernels may add in another order where the addresses
    // are others, which moves a sum by its own largest term
    const double allowed = roundoff(dtype) * (3 * (std::abs(apart[0][e]) + std::abs(apart[1][e])) + largest_sum);
    CAPTURE(e);
    const double error = std::abs(shared[e] - apart[0][e] - apart[1][e]);
    CHECK(error <= allowed);
    if (!(error <= allowed)) return;  // one of them says enough
  }
}

void shared_arguments(const std::vector<Dtype>& dtypes) {
  const Threads one(1);
  std::size_t pairs = 0;
  auto check = [&](const Op& op, const Sample& sample) {
    CAPTURE(op.name);
    CAPTURE(sample.label);
    for (Dtype dtype : dtypes) {
      if (!accepts(op, sample, dtype)) continue;
      CAPTURE(name_of(dtype));
      const Tensors drawn = draw_arguments(op, sample, 3, dtype);
      for (std::size_t i = 1; i < drawn.size(); ++i)
        for (std::size_t j = 0; j < i; ++j) {
          auto takes = [&](std::size_t a) { return drawn[a] && drawn[a].role() == Role::parameter && op.arguments[a].differentiable; };
          if (!takes(i) || !takes(j) || drawn[i].shape() != drawn[j].shape() || drawn[i].dtype() != drawn[j].dtype()) continue;
          CAPTURE(op.arguments[i].name);
          CAPTURE(op.arguments[j].name);
          check_pair(op, sample, dtype, i, j);
          ++pairs;
        }
    }
  };
  for (const Op* op : all_ops())
    if (has_backward(*op) && op->updates == 0)
      for (const Sample& sample : op->samples) check(*op, sample);
  check(find_op("linear"), {"a bias like x", {{"activation", "gelu"}}, {normal({5}), normal({5, 5}), normal({5})}});
  // sizes of the tensor cores
  for (std::int64_t D : {32, 64, 128}) {
    const Shape heads{2, 70, 3, D}, map{3, D, D};
    for (const bool causal : {true, false})
      check(find_op("linear_attention"), {causal ? "tensor cores" : "tensor cores, bidirectional", {{"causal", causal}},
                                          {normal(heads), normal(heads), normal(heads), normal(map, 0.2), normal(map, 0.2)}});
    check(find_op("softmax_attention"), {"tensor cores", {}, {normal(heads), normal(heads), normal(heads)}});
  }
  CHECK(pairs > 100);
}

}  // namespace

TEST_CASE("memory: a tensor that is two arguments of a call gets the sum of both gradients") { shared_arguments({Dtype::f64, Dtype::f32}); }

TEST_SUITE("device") {
  TEST_CASE("memory on the device: a tensor that is two arguments of a call gets the sum of both gradients") {
    on_cuda([] { shared_arguments({Dtype::f64, Dtype::f32, Dtype::bf16}); });
  }
}
