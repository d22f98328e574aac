#include <fmt/core.h>

#include <algorithm>

#include "core/error.h"
#include "train/config.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr size_t kHelpWidth = 110;  // columns

/// A value as TOML writes it.
std::string toml_value(const Option& option, const std::string& value) {
  if (option.type != OptionType::kText) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    switch (c) {
      case '"': quoted += "\\\""; break;
      case '\\': quoted += "\\\\"; break;
      case '\n': quoted += "\\n"; break;
      case '\t': quoted += "\\t"; break;
      case '\r': quoted += "\\r"; break;
      default: quoted += c;
    }
  }
  return quoted + '"';
}

/// Names of groups in the order in which the table first uses them.
std::vector<std::string> groups_of(const std::vector<Option>& table) {
  std::vector<std::string> groups;
  for (const Option& option : table) {
    if (std::find(groups.begin(), groups.end(), option.group) == groups.end()) groups.push_back(option.group);
  }
  return groups;
}

/// "  label    text", the text wrapped at kHelpWidth under its own beginning.
std::string entry(const std::string& label, size_t label_width, const std::string& text) {
  std::string result = fmt::format("  {:<{}}  ", label, label_width);
  const size_t indent = label_width + 4;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const size_t word = utf8_length(std::string_view(text).substr(begin, end - begin));
    if (column > indent && column + 1 + word > kHelpWidth) {
      result += '\n';
      result.append(indent, ' ');
      column = indent;
    } else if (column > indent) {
      result += ' ';
      ++column;
    }
    result += text.substr(begin, end - begin);
    column += word;
    begin = end + 1;
  }
  return result + "\n";
}

std::string label_of(const Option& option) {
  if (option.type == OptionType::kFlag) return "--" + option.name;
  const char* kind = option.type == OptionType::kInteger ? "N" : option.type == OptionType::kReal ? "X" : "TEXT";
  if (!option.choices.empty()) kind = "NAME";
  return option.bare.empty() ? fmt::format("--{}={}", option.name, kind) : fmt::format("--{}[={}]", option.name, kind);
}

std::string description_of(const Option& option) {
  std::string text = option.help;
  const char* separator = ": ";
  for (const std::string& choice : option.choices) {
    text += separator + choice;
    separator = ", ";
  }
  const std::string unit = option.unit.empty() ? "" : " " + option.unit;
  if (!option.default_value.empty()) {
    text += fmt::format(" (default {}{})", option.default_value, unit);
  } else if (!option.unit.empty()) {
    text += fmt::format(" (in {})", option.unit);
  }
  return text;
}

const char* source_name(OptionSource source) {
  switch (source) {
    case OptionSource::kDefault: return "";
    case OptionSource::kPreset: return "preset";
    case OptionSource::kCheckpoint: return "checkpoint";
    case OptionSource::kFile: return "config file";
    case OptionSource::kFlag: return "flag";
  }
  return "";
}

}  // namespace

std::string Config::resolved_text() const {
  size_t width = 0;
  for (const Option& option : table_) width = std::max(width, option.name.size());
  std::string result;
  for (const std::string& group : groups_of(table_)) {
    std::string lines;
    for (const Option& option : table_) {
      if (option.group != group || !has(option.name)) continue;
      const std::string shown = value(option.name) + (option.unit.empty() ? "" : " " + option.unit);
      const std::string origin = source_name(source(option.name));
      lines += fmt::format("  {:<{}}  {}", option.name, width, valid_utf8(shown));
      if (!origin.empty()) {
        const size_t length = utf8_length(shown);
        lines += fmt::format("{}  ({})", std::string(length < 20 ? 20 - length : 0, ' '), origin);
      }
      lines += '\n';
    }
    if (!lines.empty()) result += group + "\n" + lines;
  }
  return result;
}

std::string Config::to_toml() const {
  std::string result;
  std::string group;
  for (const Option& option : table_) {
    if (!option.in_file || !has(option.name)) continue;
    if (option.group != group) {
      if (!group.empty()) result += '\n';
      group = option.group;
      result += fmt::format("# {}\n", group);
    }
    result += fmt::format("{} = {}", option.name, toml_value(option, value(option.name)));
    result += option.unit.empty() ? "\n" : fmt::format("  # {}\n", option.unit);
  }
  return result;
}

std::string help_text(const std::string& command) {
  const Config checked(command);
  const auto known = std::find_if(command_table().begin(), command_table().end(),
                                  [&](const Command& candidate) { return candidate.name == command; });
  std::string result = fmt::format("hedgehog {}{}: {}\n\nexample: {}\n", command, known->argument.empty() ? "" : " " + known->argument,
                                   known->help, known->example);
  std::vector<Option> mine;
  for (const Option& option : option_table()) {
    if (std::find(option.commands.begin(), option.commands.end(), command) != option.commands.end())
      mine.push_back(option);
  }
  size_t width = 0;
  for (const Option& option : mine) width = std::max(width, label_of(option).size());
  for (const std::string& group : groups_of(mine)) {
    result += fmt::format("\n{}\n", group);
    for (const Option& option : mine) {
      if (option.group == group) result += entry(label_of(option), width, description_of(option));
    }
  }
  const bool has_presets =
      std::any_of(mine.begin(), mine.end(), [](const Option& option) { return option.name == "preset"; });
  if (has_presets) {
    result += "\npresets\n";
    for (const Preset& preset : preset_table()) result += entry(preset.name, width, preset.help);
  }
  return result +
         "\nA flag may be given bare (--name) or with a value (--name=false). Flags win over the config file, the\n"
         "file over the preset, the preset over the defaults.\n";
}

std::string help_text() {
  std::string result = "hedgehog COMMAND [--name=value ...]\n\ncommands\n";
  for (const Command& command : command_table()) result += entry(command.name, 10, command.help);
  return result + "\nhedgehog COMMAND --help shows a command's options with defaults and units.\n";
}

}  // namespace hedgehog
