#pragma once
#include "ops/sample_token.h"

namespace hedgehog {

/// Throws UsageError naming the option, what is expected and what it is.
void check_sampling(const Sampling& sampling);

}  // namespace hedgehog
