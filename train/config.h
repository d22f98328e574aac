#pragma once
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/nearest_name.h"

namespace hedgehog {

enum class OptionType { kInteger, kReal, kText, kFlag };

/// One option: the flag --name=value, the line `name = value` of a config file, and the row in --help.
///
/// name           full words, snake_case
/// type           what the value must be
/// default_value  as it would be written after "="; empty means no value (`Config::has` is false)
/// unit           e.g. "tokens", "minutes"; empty for none
/// group          heading in --help
/// help           one line; for an empty default it also says what is then done
/// commands       which commands take it
/// choices        for text: the only values; empty for any
/// minimum        for numbers: smallest and largest value, inclusive
/// bare           value of `--name` without "="; empty means that it needs one. Flags have "true"
/// in_file        false for what makes no sense in a config file (config, resume)
struct Option {
  std::string name;
  OptionType type = OptionType::kText;
  std::string default_value;
  std::string unit;
  std::string group;
  std::string help;
  std::vector<std::string> commands;
  std::vector<std::string> choices = {};
  double minimum = -std::numeric_limits<double>::infinity();
  double maximum = std::numeric_limits<double>::infinity();
  std::string bare = {};
  bool in_file = true;
};

/// One command of the program, for --help.
struct Command {
  std::string name;
  std::string help;           ///< one line
  std::string example;        ///< a whole command line
  std::string argument = {};  ///< what the one argument without "--" is, e.g. "NAME"; empty: there is none
};

/// A named set of values.
struct Preset {
  std::string name;
  std::string help;
  std::vector<std::pair<std::string, std::string>> values;
};

/// The table from which flags, config file, --help, the printed configuration and config.toml come (train/options.cpp).
const std::vector<Option>& option_table();
const std::vector<Command>& command_table();
const std::vector<Preset>& preset_table();

/// Where a value came from; later ones win.
enum class OptionSource { kDefault, kPreset, kCheckpoint, kFile, kFlag };

/// The options of one command and their values.
///
///   Config config("train");
///   config.parse(arguments);                 // reads --config and --preset too
///   if (config.help()) { print(help_text("train")); return 0; }
///   int64_t steps = config.integer("steps");
class Config {
 public:
  /// Throws UsageError if the command is unknown (nearest offered).
  explicit Config(std::string command, const std::vector<Option>& table = option_table());

  /// Takes the arguments after the command: --name=value or bare --name, and one without "--" where the command has such. Loads --config first and applies --preset (of
  /// the flags, else of the file). Throws UsageError naming what was given, what is expected and the nearest name;
  /// FileError for a config file that is missing or malformed, naming the line.
  void parse(std::span<const std::string> arguments);

  /// Reads a file of `name = value` lines (.json: one flat object). Options of other commands are passed over, unknown
  /// names are errors. Throws as parse.
  void load_file(const std::filesystem::path& path, OptionSource source);
  /// Applies a preset's values to the options this command has. Throws UsageError if it is unknown (nearest offered).
  void apply_preset(const std::string& name);
  /// Sets one value. Throws UsageError for an unknown name, wrong type or range, and for a text that is not UTF-8.
  void set(const std::string& name, const std::string& value, OptionSource source);
  /// Takes all values away: the option does not apply.
  void clear(const std::string& name) { values_.erase(name); }

  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  std::string text(std::string_view name) const;
  bool flag(std::string_view name) const;
  /// Whether there is a value at all; never for an option of other commands. integer, real, text and flag throw Error
  /// without one.
  bool has(std::string_view name) const;
  /// Whether the user gave it, by flag or file.
  bool was_set(std::string_view name) const;
  OptionSource source(std::string_view name) const;

  const std::string& command() const { return command_; }
  /// The argument without "--", or empty.
  const std::string& argument() const { return argument_; }
  /// Whether --help was among the arguments.
  bool help() const { return help_; }

  /// Name and value of every option with a value, in the table's order.
  std::vector<std::pair<std::string, std::string>> values() const;
  /// For the start of a run: the options by group, with units, marked where they differ from the default and why.
  std::string resolved_text() const;
  /// The values as a config file that `load_file` reads back.
  std::string to_toml() const;

 private:
  const Option& find(std::string_view name) const;
  const Option* find_or_null(std::string_view name) const;
  const std::string& value(std::string_view name) const;

  std::string command_, argument_;
  std::vector<Option> table_;         // those of this command
  std::vector<std::string> foreign_;  // names that other commands have
  std::map<std::string, std::map<OptionSource, std::string>, std::less<>> values_;
  bool help_ = false;
};

/// --help of one command: grouped options with defaults and units, from the table. Throws UsageError if it is unknown.
std::string help_text(const std::string& command);
/// --help of the program: its commands.
std::string help_text();

/// The pairs of a config file, in order, values as they would be written after "=". Subset of TOML: one `name = value`
/// a line, # comments, "strings" with \" \\ \n \t or 'literal strings', numbers (with _), true, false. Throws:
/// FileError naming file and line.
std::vector<std::pair<std::string, std::string>> read_config_file(const std::filesystem::path& path);

}  // namespace hedgehog
