#pragma once
#include "train/pieces.h"

namespace hedgehog {

/// A rule that PCRE2 carries out; see piece_rule.
PieceRulePointer pattern_rule(const std::string& pattern);

}  // namespace hedgehog
