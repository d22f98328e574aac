// The chain rule on two numbers: L = (x y + 3)^2 at x = 2, y = -1.
//
// Prints every value of the forward pass and every gradient of the backward pass, beside the result by hand:
//   p = x y     = -2     dL/dp = 2 (p + 3) = 2
//   L = (p+3)^2 =  1     dL/dx = dL/dp y   = -2
//                        dL/dy = dL/dp x   =  4
#include <cstdio>

#include "nn/hedgehog.h"

using namespace hedgehog;

int main() {
  Tensor x = parameter({}, "x", Dtype::f64), y = parameter({}, "y", Dtype::f64);
  x.fill(2);
  y.fill(-1);

  const Tensor p = x * y;
  const Tensor loss = square(p + 3.0);
  {
    // keeps the gradients of inner results, which are forgotten otherwise
    const keep_tape guard;
    backward(loss);
  }
  std::printf("p = x y       = %4g     dL/dp = %4g   by hand 2 (p + 3) = %4g\n", p.item(), p.grad().item(), 2 * (p.item() + 3));
  std::printf("L = (p + 3)^2 = %4g     dL/dx = %4g   by hand dL/dp y   = %4g\n", loss.item(), x.grad().item(), 2.0 * -1);
  std::printf("%24sdL/dy = %4g   by hand dL/dp x   = %4g\n", "", y.grad().item(), 2.0 * 2);

  const bool right = p.grad().item() == 2 && x.grad().item() == -2 && y.grad().item() == 4;
  std::printf("%s\n", right ? "all three agree" : "WRONG");
  return right ? 0 : 1;
}
