// An op defined outside the library: softplus, y = ln(1 + e^x). Its gradient is checked, then a model is trained with it.
//
// Prints the verdict of gradcheck, that of a deliberately wrong version, and the parameters that a fit finds again:
//   softplus:           largest error 4e-11   passed
//   softplus, 2 dy:     largest error 1e+00   failed, as it must
//   y = softplus(a x + b):  a 2.0000, b -1.0000  (from a = 2, b = -1)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "core/dispatch.h"
#include "nn/hedgehog.h"

using namespace hedgehog;

namespace {

void softplus_forward(const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    // ln(1 + e^x) without overflow
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const T v = x.as<T>()[i];
      y.as<T>()[i] = std::max(v, T(0)) + std::log1p(std::exp(-std::abs(v)));
    }
  });
}

/// dx = factor dy / (1 + e^-x), written or added as the mode says.
Kernel softplus_backward(double factor) {
  return [factor](const Call& c) {
    const Ref &x = c.inputs[0], &dy = c.dy[0], &dx = c.dx[0];
    const bool add = c.modes[0] == Mode::accumulate;
    dispatch(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      for (std::int64_t i = 0; i < x.size(); ++i) {
        const T d = T(factor) * dy.as<T>()[i] / (T(1) + std::exp(-x.as<T>()[i]));
        dx.as<T>()[i] = add ? dx.as<T>()[i] + d : d;
      }
    });
  };
}

const Op kSoftplus{
    .name = "softplus",
    .arguments = {{"x"}},
    .results = {"y"},
    .infer = [](const Attributes&, std::span<const Meta> in) {
      if (!is_floating(in[0].dtype)) fail("softplus", "x must be f32 or f64, got i32; cast first");
      return Layout{{in[0]}, {}};
    },
    .forward = {softplus_forward},
    .backward = {softplus_backward(1)},
    .reads = {.inputs = bits(0)},
    .reference = [](const Attributes&, const Tensors& in) { return Tensors{log(exp(in[0]) + 1.0)}; },
    .formula_forward = "y = ln(1 + e^x)",
    .formula_backward = "dx = dy / (1 + e^-x)",
    .samples = {{"matrix", {}, {normal({3, 5}, 2)}}, {"one", {}, {normal({1})}}},
    .faults = {{"doubled", "the gradient is doubled", softplus_backward(2)}},
};

Tensor softplus(const Tensor& x) { return apply(kSoftplus, {}, {x})[0]; }

double worst_error(const Op& op) {
  double worst = 0;
  for (const Sample& sample : op.samples) worst = std::max(worst, gradcheck(op, sample).worst());
  return worst;
}

}  // namespace

int main() {
  register_op(kSoftplus);  // now the test suites and `gradcheck` of a program that does this know it, too

  const double error = worst_error(find_op("softplus"));
  std::printf("softplus:           largest error %.0e   %s\n", error, error < 1e-6 ? "passed" : "FAILED");
  static Op wrong = kSoftplus;
  wrong.backward = {kSoftplus.faults[0].backward};
  const double caught = worst_error(wrong);
  std::printf("softplus, 2 dy:     largest error %.0e   %s\n", caught, caught > 1e-6 ? "failed, as it must" : "NOT CAUGHT");

  std::vector<double> xs, ys;
  for (int i = 0; i < 50; ++i) {
    xs.push_back(i / 12.5 - 2);
    ys.push_back(std::log1p(std::exp(2 * xs.back() - 1)));
  }
  const Tensor x = constant({50}, xs), y = constant({50}, ys);
  Tensor a = parameter({1}, "a"), b = parameter({1}, "b");
  for (int step = 0; step < 2000; ++step) {
    backward(mean(square(softplus(x * a + b) - y)));
    for (Tensor& p : Tensors{a, b}) {
      p.as<float>()[0] -= 0.3f * p.grad().as<float>()[0];
      p.grad().fill(0);
    }
  }
  std::printf("y = softplus(a x + b):  a %.4f, b %.4f  (from a = 2, b = -1)\n", a.item(), b.item());
  const bool right = error < 1e-6 && caught > 1e-6 && std::abs(a.item() - 2) < 1e-3 && std::abs(b.item() + 1) < 1e-3;
  return right ? 0 : 1;
}
