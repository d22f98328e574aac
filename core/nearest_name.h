#pragma once
#include <span>
#include <string>
#include <string_view>

namespace hedgehog {

/// The candidate with the smallest edit distance (insert, delete, change, swap of neighbours), or empty if all are
/// further away than a third of the word's length plus 1.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace hedgehog
