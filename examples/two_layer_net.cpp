// A two-layer network learns which of two spirals a point lies on: recorded once as a program, then run 200 times.
//
// Prints the loss and the share of points on the right side every 50 steps, and at last a map of what was learnt:
//   step    0   loss 0.5737   right  66.0 %
//   ...
//   step  200   loss 0.0037   right 100.0 %
#include <cmath>
#include <cstdio>
#include <vector>

#include "nn/hedgehog.h"

using namespace hedgehog;

namespace {

constexpr int kPoints = 200, kHidden = 64;

/// Points (N, 2) on two spirals, labels +1 and -1.
void spirals(std::vector<double>& points, std::vector<double>& labels) {
  for (int i = 0; i < kPoints; ++i) {
    const double label = i % 2 ? 1 : -1, t = double(i / 2) / (kPoints / 2), angle = 5 * t + (label > 0 ? 3.14159265 : 0);
    points.push_back((0.2 + 0.8 * t) * std::cos(angle));
    points.push_back((0.2 + 0.8 * t) * std::sin(angle));
    labels.push_back(label);
  }
}

struct Net {
  Parameters parameters{Dtype::f32, 3};
  Linear hidden{parameters, "hidden", 2, kHidden, true, Init::normal(2)};
  Linear out{parameters, "out", kHidden, 1, true, Init::normal(0.2)};
  Tensor operator()(const Tensor& x) const { return out(tanh(hidden(x))); }
};

}  // namespace

int main() {
  std::vector<double> points, labels;
  spirals(points, labels);
  const Tensor x = constant({kPoints, 2}, points), label = constant({kPoints, 1}, labels);
  Net net;
  const FlatParameters& flat = net.parameters.flatten();
  const Tensor step = step_state();
  step.as<double>()[kLearningRate] = 0.02;

  // the logistic loss ln(1 + e^(-y f)); gradients and update in one list
  const Program program = record([&] {
    const Tensor score = net(x);
    const Tensor loss = mean(log(exp(-(label * score)) + 1.0));
    backward(loss);
    const Tensor norms = gradient_norm(flat.gradients, flat.spans, loss, step);
    adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, norms, step);
    return Tensors{loss, score};
  });
  Executor run(program);
  double right = 0;
  for (int i = 0; i <= 200; ++i) {
    run.run();
    if (i % 50) continue;
    const std::vector<double> score = run.output(1).to_vector();
    right = 0;
    for (int n = 0; n < kPoints; ++n) right += score[n] * labels[n] > 0 ? 100.0 / kPoints : 0;
    std::printf("step %4d   loss %.4f   right %5.1f %%\n", i, run.output(0).item(), right);
  }

  const no_grad guard;
  for (int row = 0; row < 19; ++row) {
    std::vector<double> line;
    for (int column = 0; column < 41; ++column) line.insert(line.end(), {(column - 20) / 20.0, (9 - row) / 9.0});
    for (double s : net(constant({41, 2}, line)).to_vector()) std::putchar(s > 0 ? '#' : '.');
    std::putchar('\n');
  }
  return right > 99 ? 0 : 1;
}
