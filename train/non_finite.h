#pragma once
#include <optional>
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Where the first number that is not finite came from.
///
/// cause   one line: op, direction, scope, and the statistics of what it read
/// report  the same at length: source line, formula, statistics of all that the op read and wrote, and the calls that led there
struct NonFinite {
  std::string cause, report;
};

/// Runs a program entry by entry on its device, keeping every value, up to the first result that is not finite; none if all are.
/// Throws Error if there is not enough memory for that.
std::optional<NonFinite> first_non_finite(const Program& program);

}  // namespace hedgehog
