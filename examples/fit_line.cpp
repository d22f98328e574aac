// Fits a line to noisy points by gradient descent, and compares it with the least-squares line in closed form.
//
// Prints the loss every 20 steps, then the slope and intercept that were learnt and the exact ones:
//   step   0   loss 1.671742
//   ...
//   learnt  y = 2.0362 x + -0.4971    exact  y = 2.0362 x + -0.4971
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "nn/hedgehog.h"

using namespace hedgehog;

namespace {

constexpr int kPoints = 64;

struct Line {
  double slope, intercept;
};

Line least_squares(const std::vector<double>& x, const std::vector<double>& y) {
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  for (int i = 0; i < kPoints; ++i) mean_x += x[i] / kPoints, mean_y += y[i] / kPoints;
  for (int i = 0; i < kPoints; ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  return {xy / xx, mean_y - xy / xx * mean_x};
}

}  // namespace

int main() {
  const Random random{1, 0, 0};
  std::vector<double> xs, ys;
  for (int i = 0; i < kPoints; ++i) {
    xs.push_back(2.0 * i / kPoints - 1);
    ys.push_back(2 * xs.back() - 0.5 + 0.1 * random.normal(std::uint64_t(i)));
  }
  const Tensor x = constant({kPoints}, xs), y = constant({kPoints}, ys);
  Tensor slope = parameter({1}, "slope"), intercept = parameter({1}, "intercept");

  for (int step = 0; step <= 100; ++step) {
    const Tensor loss = mean(square(x * slope + intercept - y));
    backward(loss);
    if (step % 20 == 0) std::printf("step %3d   loss %.6f\n", step, loss.item());
    for (Tensor& p : Tensors{slope, intercept}) {
      p.as<float>()[0] -= 0.3f * p.grad().as<float>()[0];
      p.grad().fill(0);
    }
  }
  const Line exact = least_squares(xs, ys);
  std::printf("learnt  y = %.4f x + %.4f    exact  y = %.4f x + %.4f\n", slope.item(), intercept.item(), exact.slope, exact.intercept);
  const double error = std::max(std::abs(slope.item() - exact.slope), std::abs(intercept.item() - exact.intercept));
  // (1 - 0.3 * 2 * var x)^100 of the distance is left, and f32 rounding
  const bool right = error < 1e-4;
  std::printf("%s\n", right ? "the lines agree" : "WRONG");
  return right ? 0 : 1;
}
