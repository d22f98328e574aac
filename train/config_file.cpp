#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "train/config.h"
#include "train/files.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

constexpr size_t kLargestConfig = size_t{1} << 20;

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

bool is_name(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

/// Reads one line of a TOML file.
class LineReader {
 public:
  LineReader(const std::filesystem::path& path, size_t number, std::string_view line)
      : path_(path), number_(number), rest_(trim(line)) {}

  /// Whether the line holds a pair; then it is read.
  bool read(std::pair<std::string, std::string>& pair) {
    if (rest_.empty() || rest_[0] == '#') return false;
    if (rest_[0] == '[') fail("tables are not supported: write name = value");
    const size_t equals = rest_.find('=');
    if (equals == std::string_view::npos) fail("expected name = value");
    pair.first = std::string(trim(rest_.substr(0, equals)));
    if (!is_name(pair.first)) fail(fmt::format("'{}' is not a name", valid_utf8(pair.first)));
    rest_ = trim(rest_.substr(equals + 1));
    if (rest_.empty() || rest_[0] == '#') fail(fmt::format("'{}' has no value", pair.first));
    pair.second = rest_[0] == '"' ? quoted() : rest_[0] == '\'' ? literal() : bare(pair.first);
    if (!rest_.empty() && rest_[0] != '#') fail(fmt::format("unexpected text after the value of '{}'", pair.first));
    return true;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FileError(fmt::format("'{}' line {}: {}", path_.string(), number_, what));
  }

  std::string quoted() {
    std::string value;
    for (size_t i = 1; i < rest_.size(); ++i) {
      if (rest_[i] == '"') {
        rest_ = trim(rest_.substr(i + 1));
        return value;
      }
      if (rest_[i] != '\\') {
        value += rest_[i];
        continue;
      }
      if (++i == rest_.size()) break;
      switch (rest_[i]) {
        case '"': value += '"'; break;
        case '\\': value += '\\'; break;
        case 'n': value += '\n'; break;
        case 't': value += '\t'; break;
        case 'r': value += '\r'; break;
        default: fail(fmt::format("unknown escape \\{} in a string", valid_utf8(rest_.substr(i, 1))));
      }
    }
    fail("a string is not closed");
  }

  std::string literal() {
    const size_t end = rest_.find('\'', 1);
    if (end == std::string_view::npos) fail("a string is not closed");
    const std::string value(rest_.substr(1, end - 1));
    rest_ = trim(rest_.substr(end + 1));
    return value;
  }

  std::string bare(const std::string& name) {
    const size_t end = std::min(rest_.find_first_of(" \t#"), rest_.size());
    std::string value(rest_.substr(0, end));
    rest_ = trim(rest_.substr(end));
    if (value == "true" || value == "false") return value;
    const bool number = value.find_first_not_of("0123456789+-.eE_") == std::string::npos;
    if (!number) fail(fmt::format("the text of '{0}' needs quotes: {0} = \"{1}\"", name, valid_utf8(value)));
    std::erase(value, '_');
    if (value.starts_with('+')) value.erase(0, 1);
    return value;
  }

  const std::filesystem::path& path_;
  size_t number_;
  std::string_view rest_;
};

Pairs read_json(const std::filesystem::path& path, const std::string& text) {
  const auto fail = [&](const std::string& what) { throw FileError(fmt::format("'{}': {}", path.string(), what)); };
  // one flat object: anything deeper is cut off before it is built
  const auto shallow = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json&) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > 0 && (event == Event::object_start || event == Event::array_start)) {
      fail("expected one flat object of names and values");
    }
    return true;
  };
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(text, shallow);
  } catch (const nlohmann::json::parse_error& error) {
    fail(fmt::format("not JSON at byte {}", error.byte));
  }
  if (!object.is_object()) fail("expected one flat object of names and values");
  Pairs pairs;
  for (const auto& [name, value] : object.items()) {
    if (value.is_null()) fail(fmt::format("'{}' has no value", name));
    pairs.emplace_back(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return pairs;
}

}  // namespace

Pairs read_config_file(const std::filesystem::path& path) {
  const std::string text = read_file(path, kLargestConfig);
  if (path.extension() == ".json") return read_json(path, text);
  Pairs pairs;
  std::set<std::string> seen;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::pair<std::string, std::string> pair;
    if (LineReader(path, ++number, std::string_view(text).substr(begin, end - begin)).read(pair)) {
      if (!seen.insert(pair.first).second) {
        throw FileError(fmt::format("'{}' line {}: '{}' is set twice", path.string(), number, pair.first));
      }
      pairs.push_back(std::move(pair));
    }
    begin = end + 1;
  }
  return pairs;
}

}  // namespace hedgehog
