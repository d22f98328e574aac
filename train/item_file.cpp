#include "train/item_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/nearest_name.h"
#include "train/files.h"
#include "train/split.h"

namespace hedgehog {
namespace {

/// Which column of the file is meant, from 0; `named` if the first line says so.
std::size_t column_index(const std::filesystem::path& file, const std::string& first_line, const std::string& column, bool& named) {
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(column.data(), column.data() + column.size(), number);
  named = error != std::errc() || end != column.data() + column.size();
  if (!named) {
    if (number == 0) throw UsageError("columns are counted from 1, but column 0 is asked for");
    return number - 1;
  }
  const std::vector<std::string> names = split(first_line, '\t');
  const auto found = std::find(names.begin(), names.end(), column);
  if (found != names.end()) return std::size_t(found - names.begin());
  const std::string nearest = nearest_name(column, names);
  throw FileError(fmt::format("[eval] {}: no column of the first line is named '{}'{}; the line is '{}'", file.string(), column,
                              nearest.empty() ? "" : fmt::format(" (the nearest is '{}')", nearest), first_line));
}

}  // namespace

std::vector<std::string> read_items(const std::filesystem::path& file, const std::string& column) {
  std::string text = read_file(file);
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);  // a byte order mark
  if (text.ends_with('\n')) text.pop_back();
  else if (text.empty()) throw FileError(fmt::format("[eval] {} is empty; it must have an item a line", file.string()));
  std::vector<std::string> lines = split(text, '\n');
  for (std::string& line : lines)
    if (line.ends_with('\r')) line.pop_back();
  if (column.empty()) return lines;
  bool named = false;
  const std::size_t index = column_index(file, lines[0], column, named);
  std::vector<std::string> items;
  for (std::size_t i = named; i < lines.size(); ++i) {
    std::vector<std::string> columns = split(lines[i], '\t');
    if (index >= columns.size())
      throw FileError(fmt::format("[eval] {}: line {} has {} columns with tabs between, but column {} is asked for", file.string(), i + 1,
                                  columns.size(), index + 1));
    items.push_back(std::move(columns[index]));
  }
  if (items.empty()) throw FileError(fmt::format("[eval] {} has no line but that of the columns' names", file.string()));
  return items;
}

std::vector<double> numbers_of(const std::vector<std::string>& items, const std::filesystem::path& file) {
  std::vector<double> numbers;
  for (std::size_t i = 0; i < items.size(); ++i) {
    std::string_view text = items[i];
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    if (text.starts_with('+')) text.remove_prefix(1);
    double x = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(x))
      throw FileError(fmt::format("[eval] {}: item {} must be a finite number, but is '{}'", file.string(), i + 1, items[i]));
    numbers.push_back(x);
  }
  return numbers;
}

}  // namespace hedgehog
