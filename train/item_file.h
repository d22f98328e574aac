#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace hedgehog {

/// Labels, numbers or texts of a file, one a line; the last line's end is optional.
///
/// column  empty: the whole line. Else of a file of columns with tabs between: a number from 1, or a name in the first line, which then
///         is no item
///
/// Throws: FileError naming file and line for a file that is missing or empty, and a line without the column.
std::vector<std::string> read_items(const std::filesystem::path& file, const std::string& column);

/// The items as finite numbers. Throws FileError naming file and item.
std::vector<double> numbers_of(const std::vector<std::string>& items, const std::filesystem::path& file);

}  // namespace hedgehog
