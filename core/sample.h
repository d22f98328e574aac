#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/attributes.h"
#include "core/shape.h"

namespace hedgehog {

/// How a sample's argument is filled. Draws are seeded by the suite.
struct SampleInput {
  enum class Fill { normal, positive, integers, away_from_zero, none, documents, mask, numbers } fill = Fill::normal;
  Shape shape;
  double scale = 1;     // standard deviation, or upper bound (exclusive) of integers
  double shift = 0;     // mean, or lower bound of integers
  bool differentiable = true;
  std::vector<double> values = {};  // of numbers
};
SampleInput normal(Shape shape, double scale = 1, double shift = 0);
/// exp of a normal draw plus 0.1: for arguments that must be positive.
SampleInput positive(Shape shape, double scale = 1);
/// Normal draws pushed at least 0.1 away from 0: for kinks there.
SampleInput away_from_zero(Shape shape, double scale = 1);
/// i32 in [low, high).
SampleInput integers(Shape shape, std::int64_t low, std::int64_t high);
/// i32 (B, T): start of each token's document, several documents a row.
SampleInput documents(Shape shape);
/// i32 of zeros and ones with at least one 1 at the start of each row.
SampleInput mask(Shape shape);
/// Exactly these numbers, always f64: step states and tables of spans.
SampleInput numbers(Shape shape, std::vector<double> values);
/// Optional argument left out.
SampleInput omitted();
/// The same argument, but the sample does not ask for its gradient.
SampleInput constant_input(SampleInput input);

struct Sample {
  std::string label;
  Attributes attributes;
  std::vector<SampleInput> inputs;
};

}  // namespace hedgehog
