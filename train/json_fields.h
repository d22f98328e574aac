#pragma once
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"

namespace hedgehog {

/// The fields of a JSON object in a file that is not trusted.
///
/// what    what reads it, in brackets before messages
/// advice  what is to be done, after them
/// prefix  of the object's own name in the file, with a dot
///
/// Everything throws FileError naming file, field and what it must be.
class JsonFields {
 public:
  using Json = nlohmann::json;
  JsonFields(const Json& object, std::filesystem::path file, std::string what, std::string advice, std::string prefix = "")
      : object_(object), file_(std::move(file)), what_(std::move(what)), advice_(std::move(advice)), prefix_(std::move(prefix)) {
    if (!object_.is_object()) bad("", "an object");
  }
  template <class T>
  T get(const char* name, const char* expected) const {
    const auto found = object_.find(name);
    if (found == object_.end()) bad(name, expected);
    try {
      return found->template get<T>();
    } catch (const Json::exception&) {
      bad(name, expected);
    }
  }
  /// Whether it is there and not null.
  bool has(const char* name) const {
    const auto found = object_.find(name);
    return found != object_.end() && !found->is_null();
  }
  std::int64_t integer(const char* name, std::int64_t low, std::int64_t high) const {
    const auto found = object_.find(name);
    if (found == object_.end() || !found->is_number_integer()) bad(name, "an integer");
    const auto x = found->get<std::int64_t>();
    if (x < low || x > high || (found->is_number_unsigned() && x < 0)) bad(name, fmt::format("an integer from {} to {}", low, high).c_str());
    return x;
  }
  double real(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end() || !found->is_number()) bad(name, "a number");
    return found->get<double>();
  }
  double real_or_infinity(const char* name) const {
    const auto found = object_.find(name);
    return found != object_.end() && found->is_null() ? INFINITY : real(name);
  }
  JsonFields object(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) bad(name, "an object");
    return JsonFields(*found, file_, what_, advice_, prefix_ + name + ".");
  }
  [[noreturn]] void bad(const char* name, const char* expected) const {
    throw FileError(fmt::format("[{}] {}: field '{}{}' must be {}; {}", what_, file_.string(), prefix_, name, expected, advice_));
  }
  const std::filesystem::path& file() const { return file_; }

 private:
  const Json& object_;
  std::filesystem::path file_;
  std::string what_, advice_, prefix_;
};

}  // namespace hedgehog
