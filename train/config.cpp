#include "train/config.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

bool contains(const std::vector<std::string>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// The items as "a, b, c".
std::string joined(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
  return text;
}

/// "; did you mean X?" or a closing hint where nothing is near.
std::string suggestion(std::string_view name, std::span<const std::string> candidates, std::string_view prefix,
                       const std::string& otherwise) {
  const std::string nearest = nearest_name(name, candidates);
  return nearest.empty() ? "; " + otherwise : fmt::format("; did you mean {}{}?", prefix, nearest);
}

bool parse_integer(const std::string& text, int64_t& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

bool parse_real(const std::string& text, double& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end && std::isfinite(value);
}

/// What an option takes, in words.
std::string expectation(const Option& option) {
  if (!option.choices.empty()) return fmt::format("one of {}", joined(option.choices));
  if (option.type == OptionType::kFlag) return "true or false";
  if (option.type == OptionType::kText) return "a text in UTF-8";
  const std::string kind = option.type == OptionType::kInteger ? "a whole number" : "a number";
  const bool low = std::isfinite(option.minimum);
  const bool high = std::isfinite(option.maximum);
  const bool above_zero = option.minimum == std::numeric_limits<double>::min();
  if (above_zero) return kind + " greater than 0" + (high ? fmt::format(" and at most {}", option.maximum) : "");
  if (low && high) return fmt::format("{} from {} to {}", kind, option.minimum, option.maximum);
  if (low) return fmt::format("{} of at least {}", kind, option.minimum);
  return high ? fmt::format("{} of at most {}", kind, option.maximum) : kind;
}

/// Whether the text is a value of the option.
bool accepts(const Option& option, const std::string& text) {
  int64_t integer = 0;
  double real = 0;
  switch (option.type) {
    case OptionType::kInteger:
      return parse_integer(text, integer) && double(integer) >= option.minimum && double(integer) <= option.maximum;
    case OptionType::kReal: return parse_real(text, real) && real >= option.minimum && real <= option.maximum;
    case OptionType::kFlag: return text == "true" || text == "false";
    // checkpoints keep values in JSON, which is UTF-8
    case OptionType::kText: return option.choices.empty() ? valid_utf8(text) == text : contains(option.choices, text);
  }
  return false;
}

const Command& command_named(const std::string& name) {
  return *std::find_if(command_table().begin(), command_table().end(), [&](const Command& c) { return c.name == name; });
}

std::vector<std::string> names_of(const std::vector<Option>& table) {
  std::vector<std::string> names;
  for (const Option& option : table) names.push_back(option.name);
  return names;
}

}  // namespace

Config::Config(std::string command, const std::vector<Option>& table) : command_(std::move(command)) {
  std::vector<std::string> known;
  for (const Command& entry : command_table()) known.push_back(entry.name);
  if (!contains(known, command_)) {
    throw UsageError(fmt::format("unknown command '{}'{}", valid_utf8(command_),
                                 suggestion(command_, known, "", "hedgehog --help lists them")));
  }
  for (const Option& option : table) {
    if (!contains(option.commands, command_)) {
      foreign_.push_back(option.name);
      continue;
    }
    table_.push_back(option);
    if (!option.default_value.empty()) values_[option.name][OptionSource::kDefault] = option.default_value;
  }
}

const Option* Config::find_or_null(std::string_view name) const {
  const auto found =
      std::find_if(table_.begin(), table_.end(), [&](const Option& option) { return option.name == name; });
  return found == table_.end() ? nullptr : &*found;
}

const Option& Config::find(std::string_view name) const {
  if (const Option* option = find_or_null(name)) return *option;
  if (contains(foreign_, name)) {
    throw UsageError(fmt::format("--{} is not an option of '{}'; hedgehog {} --help lists those that are", name,
                                 command_, command_));
  }
  throw UsageError(
      fmt::format("unknown option --{}{}", valid_utf8(name),
                  suggestion(name, names_of(table_), "--", fmt::format("hedgehog {} --help lists all", command_))));
}

void Config::parse(std::span<const std::string> arguments) {
  std::vector<std::pair<std::string, std::string>> flags;
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") {
      help_ = true;
      continue;
    }
    if (!argument.starts_with("-") && argument_.empty() && !command_named(command_).argument.empty()) {
      argument_ = argument;
      continue;
    }
    if (!argument.starts_with("--") || argument.size() == 2) {
      throw UsageError(fmt::format("unexpected argument '{}'; options are written --name=value", valid_utf8(argument)));
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Option& option = find(name);
    if (equals == std::string::npos && option.bare.empty()) {
      throw UsageError(fmt::format("--{} needs a value: write --{}=VALUE, {}", name, name, expectation(option)));
    }
    flags.emplace_back(name, equals == std::string::npos ? option.bare : argument.substr(equals + 1));
  }
  for (const auto& [name, value] : flags) set(name, value, OptionSource::kFlag);
  if (help_) return;
  if (find_or_null("config") != nullptr && has("config")) load_file(text("config"), OptionSource::kFile);
  if (find_or_null("preset") != nullptr && has("preset")) apply_preset(text("preset"));
}

void Config::load_file(const std::filesystem::path& path, OptionSource source) {
  for (const auto& [name, value] : read_config_file(path)) {
    if (contains(foreign_, name)) continue;
    const Option* option = find_or_null(name);
    if (option == nullptr || !option->in_file) {
      throw UsageError(
          fmt::format("'{}' has an unknown option '{}'{}", path.string(), valid_utf8(name),
                      suggestion(name, names_of(table_), "", fmt::format("hedgehog {} --help lists all", command_))));
    }
    try {
      set(name, value, source);
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("'{}': {}", path.string(), error.what()));
    }
  }
}

void Config::apply_preset(const std::string& name) {
  std::vector<std::string> names;
  for (const Preset& preset : preset_table()) {
    names.push_back(preset.name);
    if (preset.name != name) continue;
    for (auto& [option, values] : values_) values.erase(OptionSource::kPreset);
    for (const auto& [option, value] : preset.values) {
      if (find_or_null(option) != nullptr) set(option, value, OptionSource::kPreset);
    }
    if (find_or_null("preset") != nullptr) values_["preset"][OptionSource::kPreset] = name;
    return;
  }
  throw UsageError(fmt::format("unknown preset '{}'{}", valid_utf8(name),
                               suggestion(name, names, "", fmt::format("there are {}", joined(names)))));
}

void Config::set(const std::string& name, const std::string& value, OptionSource source) {
  const Option& option = find(name);
  if (!accepts(option, value)) {
    const std::string nearest = nearest_name(value, option.choices);
    throw UsageError(fmt::format("--{} expects {}, but got '{}'{}", name, expectation(option), valid_utf8(value),
                                 nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest)));
  }
  values_[name][source] = value;
}

bool Config::has(std::string_view name) const {
  if (!contains(foreign_, name)) find(name);
  const auto found = values_.find(name);
  return found != values_.end() && !found->second.empty();
}

const std::string& Config::value(std::string_view name) const {
  if (!has(name)) throw Error(fmt::format("[config] option '{}' has no value", name));
  return values_.find(name)->second.rbegin()->second;
}

OptionSource Config::source(std::string_view name) const {
  return has(name) ? values_.find(name)->second.rbegin()->first : OptionSource::kDefault;
}

bool Config::was_set(std::string_view name) const {
  return source(name) == OptionSource::kFile || source(name) == OptionSource::kFlag;
}

int64_t Config::integer(std::string_view name) const {
  int64_t result = 0;
  if (find(name).type != OptionType::kInteger || !parse_integer(value(name), result)) {
    throw Error(fmt::format("[config] option '{}' is not a whole number", name));
  }
  return result;
}

double Config::real(std::string_view name) const {
  double result = 0;
  if (find(name).type != OptionType::kReal || !parse_real(value(name), result)) {
    throw Error(fmt::format("[config] option '{}' is not a number", name));
  }
  return result;
}

std::string Config::text(std::string_view name) const {
  if (find(name).type != OptionType::kText) throw Error(fmt::format("[config] option '{}' is not a text", name));
  return value(name);
}

bool Config::flag(std::string_view name) const {
  if (find(name).type != OptionType::kFlag) throw Error(fmt::format("[config] option '{}' is not a flag", name));
  return value(name) == "true";
}

std::vector<std::pair<std::string, std::string>> Config::values() const {
  std::vector<std::pair<std::string, std::string>> result;
  for (const Option& option : table_) {
    if (has(option.name)) result.emplace_back(option.name, value(option.name));
  }
  return result;
}

}  // namespace hedgehog
