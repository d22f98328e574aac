#include "train/log.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/files.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;

double number(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) throw Error(fmt::format("field '{}' is missing", name));
  if (found->is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!found->is_number()) throw Error(fmt::format("field '{}' is not a number", name));
  return found->get<double>();
}

int64_t integer(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number_integer())
    throw Error(fmt::format("field '{}' is not a whole number", name));
  return found->get<int64_t>();
}

std::optional<double> optional_number(const Json& object, const char* name) {
  if (!object.contains(name)) return std::nullopt;
  return number(object, name);
}

/// Calls `take(record, begin, end)` for each whole line; returns the byte after the last one.
template <typename Take>
size_t for_each_line(const std::filesystem::path& path, const std::string& text, Take take) {
  size_t begin = 0;
  for (size_t line = 1;; ++line) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return begin;
    StepRecord record;
    try {
      record = step_record_from_json(std::string_view(text).substr(begin, end - begin));
    } catch (const Error& error) {
      throw FileError(fmt::format("'{}' line {}: {}", path.string(), line, error.what()));
    }
    if (!take(std::move(record))) return begin;
    begin = end + 1;
  }
}

}  // namespace

std::string to_json(const StepRecord& record) {
  Json object = {{"step", record.step},
                 {"loss", record.loss},
                 {"learning_rate", record.learning_rate},
                 {"gradient_norm", record.gradient_norm}};
  if (!record.layer_gradient_norms.empty()) object["layer_gradient_norms"] = record.layer_gradient_norms;
  object["tokens"] = record.tokens;
  object["tokens_per_second"] = record.tokens_per_second;
  object["seconds"] = record.seconds;
  if (record.validation_loss) object["validation_loss"] = *record.validation_loss;
  return object.dump();
}

StepRecord step_record_from_json(std::string_view line) {
  Json object;
  try {
    // a record nests one list; anything deeper is refused before it is built
    object = Json::parse(line, [](int depth, Json::parse_event_t event, Json&) {
      if (depth > 1 && (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start)) {
        throw Error("a record is nested too deep");
      }
      return true;
    });
  } catch (const Json::parse_error& error) {
    throw Error(fmt::format("not JSON at byte {}", error.byte));
  }
  if (!object.is_object()) throw Error("not a JSON object");
  StepRecord record;
  record.step = integer(object, "step");
  record.loss = number(object, "loss");
  record.learning_rate = number(object, "learning_rate");
  record.gradient_norm = number(object, "gradient_norm");
  record.tokens = integer(object, "tokens");
  record.tokens_per_second = number(object, "tokens_per_second");
  record.seconds = number(object, "seconds");
  record.validation_loss = optional_number(object, "validation_loss");
  if (const auto norms = object.find("layer_gradient_norms"); norms != object.end()) {
    if (!norms->is_array()) throw Error("field 'layer_gradient_norms' is not a list");
    for (const Json& norm : *norms) {
      if (!norm.is_null() && !norm.is_number())
        throw Error("field 'layer_gradient_norms' holds something that is no number");
      record.layer_gradient_norms.push_back(norm.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                                           : norm.get<double>());
    }
  }
  return record;
}

LogWriter::LogWriter(const std::filesystem::path& path) : path_(path), file_(path, std::ios::app | std::ios::binary) {
  if (!file_) throw WriteError(fmt::format("cannot open '{}': {}", path.string(), std::strerror(errno)));
}

void LogWriter::append(const StepRecord& record) {
  file_ << to_json(record) << '\n' << std::flush;
  if (!file_) throw WriteError(fmt::format("cannot write '{}': {}", path_.string(), std::strerror(errno)));
}

std::vector<StepRecord> read_log(const std::filesystem::path& path) {
  std::vector<StepRecord> records;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return records;
  for_each_line(path, read_file(path), [&](StepRecord record) {
    records.push_back(std::move(record));
    return true;
  });
  return records;
}

void truncate_log(const std::filesystem::path& path, int64_t step) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return;
  const std::string text = read_file(path);
  const size_t kept = for_each_line(path, text, [&](const StepRecord& record) { return record.step <= step; });
  if (kept < text.size() && ::truncate(path.c_str(), off_t(kept)) != 0) {
    throw WriteError(fmt::format("cannot cut '{}': {}", path.string(), std::strerror(errno)));
  }
}

}  // namespace hedgehog
