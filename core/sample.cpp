#include "core/sample.h"

namespace hedgehog {

SampleInput normal(Shape shape, double scale, double shift) {
  return {SampleInput::Fill::normal, shape, scale, shift, true};
}
SampleInput positive(Shape shape, double scale) { return {SampleInput::Fill::positive, shape, scale, 0, true}; }
SampleInput away_from_zero(Shape shape, double scale) { return {SampleInput::Fill::away_from_zero, shape, scale, 0, true}; }
SampleInput integers(Shape shape, std::int64_t low, std::int64_t high) {
  return {SampleInput::Fill::integers, shape, double(high), double(low), false};
}
SampleInput documents(Shape shape) { return {SampleInput::Fill::documents, shape, 1, 0, false}; }
SampleInput mask(Shape shape) { return {SampleInput::Fill::mask, shape, 1, 0, false}; }
SampleInput numbers(Shape shape, std::vector<double> values) {
  return {SampleInput::Fill::numbers, shape, 1, 0, false, std::move(values)};
}
SampleInput omitted() { return {SampleInput::Fill::none, {}, 0, 0, false}; }
SampleInput constant_input(SampleInput input) {
  input.differentiable = false;
  return input;
}

}  // namespace hedgehog
