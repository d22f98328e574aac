#include "train/strict_json.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

nlohmann::json parse_strict_json(const std::filesystem::path& file, const std::string& content, const char* what, int maximum_depth) {
  using Json = nlohmann::json;
  const auto fail = [&](const std::string& reason) {
    throw FileError(fmt::format("'{}' is not a valid {}: {}", file.string(), what, reason));
  };
  std::vector<std::unordered_set<std::string>> names(size_t(maximum_depth) + 1);  // by depth
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= maximum_depth) fail(fmt::format("it is nested deeper than {} levels", maximum_depth));
    if (opens) names[size_t(depth) + 1].clear();
    if (event == Json::parse_event_t::key && !names[size_t(depth)].insert(parsed.get<std::string>()).second)
      fail(fmt::format("'{}' is there twice in one object", valid_utf8(parsed.get<std::string>())));
    return true;
  };
  Json json;
  try {
    json = Json::parse(content, check);
  } catch (const Json::parse_error& error) {
    fail(fmt::format("not JSON at byte {}", error.byte));
  } catch (const Json::exception&) {
    fail("it holds a number beyond all bounds");
  }
  if (!json.is_object()) fail("it is not an object");
  return json;
}

}  // namespace hedgehog
