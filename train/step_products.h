#pragma once
#include <map>

#include "core/tape.h"
#include "train/ceilings.h"

namespace hedgehog {

/// The matrix products of a program's ops linear, mlp, matmul and classifier_cross_entropy, and how often each is made.
///
/// The classifier's are those of its tiles of tokens; the last, shorter one counts as a share of a whole one.
std::map<ProductShape, double> products_of(const Program& program);

/// FLOPs of all of them.
double flops_of(const std::map<ProductShape, double>& products);

/// Seconds of all of them, each shape timed alone on the current device.
double seconds_of(const std::map<ProductShape, double>& products);

}  // namespace hedgehog
