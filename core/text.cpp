#include "core/text.h"

#include <fmt/format.h>

namespace hedgehog {

std::string text(const Tensor& tensor, int digits) {
  const auto values = tensor.to_vector();
  const Shape& s = tensor.shape();
  std::string out = fmt::format("{} {} {}", tensor.name().empty() ? "tensor" : tensor.name(), s.text(), name_of(tensor.dtype()));
  const std::int64_t columns = std::max<std::int64_t>(s.last(), 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    out += i % columns == 0 ? "\n  " : " ";
    out += fmt::format("{:>{}.{}g}", values[i], digits + 6, digits);
  }
  return out + "\n";
}

void print(const Tensor& tensor) { fmt::print("{}", text(tensor)); }

Tensor named(const Tensor& tensor, std::string name) {
  tensor->name = std::move(name);
  return tensor;
}

}  // namespace hedgehog
