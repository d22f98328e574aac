#include <hedgehog/nn/hedgehog.h>

using namespace hedgehog;

int main() {
  Tensor w = parameter({3, 2}, "w");
  Tensor x = constant({4, 3}, std::vector<double>(12, 0.5));
  Tensor loss = mean(square(matmul(x, w)));
  backward(loss);
  return w.grad().shape() == w.shape() ? 0 : 1;
}
