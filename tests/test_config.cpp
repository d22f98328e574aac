#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/temporary_directory.h"
#include "train/config.h"

using namespace hedgehog;

namespace {

Config parsed(const std::string& command, const std::vector<std::string>& arguments) {
  Config config(command);
  config.parse(arguments);
  return config;
}

std::string usage(const std::string& command, const std::vector<std::string>& arguments) {
  return message_of<UsageError>([&] { parsed(command, arguments); });
}

}  // namespace

TEST_CASE("option table: unique full words, valid defaults, known commands, valid presets") {
  std::set<std::string> commands;
  for (const Command& command : command_table()) commands.insert(command.name);
  std::set<std::string> names;
  for (const Option& option : option_table()) {
    CAPTURE(option.name);
    CHECK(names.insert(option.name).second);
    CHECK(option.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos);
    CHECK_FALSE(option.help.empty());
    CHECK_FALSE(option.group.empty());
    CHECK_FALSE(option.commands.empty());
    for (const std::string& command : option.commands) {
      CHECK(commands.contains(command));
      Config config(command);
      if (!option.default_value.empty()) CHECK_NOTHROW(config.set(option.name, option.default_value, OptionSource::kDefault));
    }
  }
  for (const Preset& preset : preset_table()) {
    CAPTURE(preset.name);
    Config config("train");
    CHECK_NOTHROW(config.apply_preset(preset.name));
    for (const auto& [name, value] : preset.values) {
      CAPTURE(name);
      CHECK(config.source(name) == OptionSource::kPreset);
    }
    CHECK(config.integer("width") % config.integer("heads") == 0);
  }
}

TEST_CASE("config: values of each type, from flags") {
  const Config config =
      parsed("train", {"--steps=12", "--learning_rate=3e-4", "--data=a=b.txt", "--bias", "--report=false"});
  CHECK(config.integer("steps") == 12);
  CHECK(config.real("learning_rate") == 3e-4);
  CHECK(config.text("data") == "a=b.txt");
  CHECK(config.flag("bias"));
  CHECK_FALSE(config.flag("report"));
  CHECK(config.was_set("steps"));
  CHECK_FALSE(config.was_set("layers"));
  CHECK_FALSE(config.has("minutes"));
  CHECK(parsed("train", {"--resume"}).text("resume") == "latest");
  CHECK(parsed("train", {"--resume=runs/x"}).text("resume") == "runs/x");
  CHECK_FALSE(config.has("resume"));
  CHECK_THROWS_AS(config.real("minutes"), Error);
  CHECK_THROWS_AS(config.integer("learning_rate"), Error);
  CHECK_THROWS_AS(config.flag("data"), Error);
  CHECK(parsed("train", {"--help"}).help());
  // a large seed keeps all its digits
  CHECK(parsed("train", {"--seed=9223372036854775807"}).integer("seed") == INT64_MAX);
}

TEST_CASE("config: mistakes on the command line name the option, what is expected, and the nearest name") {
  struct Mistake {
    std::vector<std::string> arguments;
    const char* says;
  };
  const std::vector<Mistake> mistakes = {
      {{"--laers=3"}, "unknown option --laers; did you mean --layers?"},
      {{"--learning-rate=3"}, "did you mean --learning_rate?"},
      {{"--xyzzyxyzzy=3"}, "unknown option --xyzzyxyzzy; hedgehog train --help lists all"},
      {{"--temperature=1"}, "--temperature is not an option of 'train'"},
      {{"--steps"}, "--steps needs a value: write --steps=VALUE, a whole number of at least 1"},
      {{"--steps="}, "--steps expects a whole number of at least 1, but got ''"},
      {{"--steps=many"}, "--steps expects a whole number of at least 1, but got 'many'"},
      {{"--steps=1.5"}, "but got '1.5'"},
      {{"--steps=0"}, "but got '0'"},
      {{"--steps=99999999999999999999"}, "but got '99999999999999999999'"},
      {{"--steps= 5"}, "but got ' 5'"},
      {{"--learning_rate=0"}, "--learning_rate expects a number greater than 0, but got '0'"},
      {{"--learning_rate=nan"}, "but got 'nan'"},
      {{"--learning_rate=inf"}, "but got 'inf'"},
      {{"--learning_rate=1e999"}, "but got '1e999'"},
      {{"--dropout=1"}, "--dropout expects a number from 0 to 0.99, but got '1'"},
      {{"--bias=yes"}, "--bias expects true or false, but got 'yes'"},
      {{"--data=caf\xe9.txt"}, "--data expects a text in UTF-8, but got 'caf\uFFFD.txt'"},
      {{"--out=caf\xe9"}, "--out expects a text in UTF-8, but got 'caf\uFFFD'"},
      {{"--attention=sofmax"}, "--attention expects one of hedgehog, "},
      {{"--attention=sofmax"}, "but got 'sofmax'; did you mean softmax?"},
      {{"--preset=chra"}, "unknown preset 'chra'; did you mean char?"},
      {{"--preset=zzzzzzzzzz"}, "unknown preset 'zzzzzzzzzz'; there are story, tiny, char-cpu"},
      {{"my.txt"}, "unexpected argument 'my.txt'; options are written --name=value"},
      {{"-steps=3"}, "unexpected argument '-steps=3'"},
      {{"--"}, "unexpected argument '--'"},
      {{"--=3"}, "unknown option --"},
      {{"--\xff=1"}, "unknown option --\uFFFD"},
  };
  for (const Mistake& mistake : mistakes) {
    CAPTURE(mistake.arguments[0]);
    const std::string message = usage("train", mistake.arguments);
    CAPTURE(message);
    CHECK(contains(message, mistake.says));
  }
  CHECK(message_of<UsageError>([] { Config config("trian"); }) == "unknown command 'trian'; did you mean train?");
  CHECK(contains(message_of<UsageError>([] { Config config("juggle"); }), "hedgehog --help lists them"));
}

TEST_CASE("config: flags win over the file, the file over the preset, the preset over the defaults") {
  TemporaryDirectory directory;
  const auto path =
      directory.file("c.toml", "preset = \"char-cpu\"\nlayers = 7\nheads = 8\nwidth = 64\ntemperature = 0.5\n");
  const Config config = parsed("train", {"--config=" + path.string(), "--heads=2"});
  CHECK(config.integer("heads") == 2);
  CHECK(config.source("heads") == OptionSource::kFlag);
  CHECK(config.integer("layers") == 7);
  CHECK(config.source("layers") == OptionSource::kFile);
  CHECK(config.integer("batch") == 12);
  CHECK(config.source("batch") == OptionSource::kPreset);
  CHECK(config.real("beta1") == 0.9);
  CHECK(config.source("beta1") == OptionSource::kDefault);
  // a preset given as flag replaces the file's
  CHECK(parsed("train", {"--config=" + path.string(), "--preset=gpt2"}).integer("context") == 1024);

  Config later("train");
  later.apply_preset("gpt2");
  later.apply_preset("char-cpu");
  CHECK(later.text("init") == "default");
  CHECK(later.text("preset") == "char-cpu");
  later.set("steps", "77", OptionSource::kDefault);
  CHECK(later.integer("steps") == 2000);
  later.set("layers", "9", OptionSource::kCheckpoint);
  CHECK(later.integer("layers") == 9);
  CHECK_FALSE(later.was_set("layers"));
}

TEST_CASE("config file: the whole notation, in both forms") {
  TemporaryDirectory directory;
  const auto toml = directory.file("c.toml",
                                   "# comment\r\n\n  steps = 1_000 # unit\nlearning_rate=+1e-2\nbias = true\n"
                                   "data = \"a \\\"b\\\" \\\\ \\n # c\"  # d\nout = 'C:\\x'\n");
  const Config config = parsed("train", {"--config=" + toml.string()});
  CHECK(config.integer("steps") == 1000);
  CHECK(config.real("learning_rate") == 0.01);
  CHECK(config.flag("bias"));
  CHECK(config.text("data") == "a \"b\" \\ \n # c");
  CHECK(config.text("out") == "C:\\x");
  const auto json = directory.file("c.json", R"({"steps": 5, "learning_rate": 0.0003, "bias": true, "data": "x"})");
  const Config other = parsed("train", {"--config=" + json.string()});
  CHECK(other.integer("steps") == 5);
  CHECK(other.real("learning_rate") == 3e-4);
  CHECK(other.flag("bias"));
  CHECK(other.text("data") == "x");
}

TEST_CASE("config file: what is written reads back the same") {
  TemporaryDirectory directory;
  const Config config = parsed("train", {"--preset=char", "--data=a \"b\"\\\t#", "--minutes=2.5", "--quiet"});
  const auto path = directory.file("config.toml", config.to_toml());
  const Config again = parsed("train", {"--config=" + path.string()});
  CHECK(again.to_toml() == config.to_toml());
  CHECK(again.text("data") == config.text("data"));
  CHECK(contains(config.to_toml(), "# training\nsteps = 2500  # steps\n"));
  CHECK_FALSE(contains(config.to_toml(), "resume"));
}

TEST_CASE("config file: mistakes name file and line") {
  TemporaryDirectory directory;
  const auto refused = [&](const std::string& name, const std::string& content) {
    const auto path = directory.file(name, content);
    const std::string message = message_of<Error>([&] { parsed("train", {"--config=" + path.string()}); });
    CHECK(contains(message, path.string()));
    return message;
  };
  CHECK(contains(refused("a.toml", "steps = 1\nlayers\n"), "line 2: expected name = value"));
  CHECK(contains(refused("a.toml", "[model]\n"), "line 1: tables are not supported"));
  CHECK(contains(refused("a.toml", "steps =\n"), "line 1: 'steps' has no value"));
  CHECK(contains(refused("a.toml", "data = x.txt\n"), "the text of 'data' needs quotes: data = \"x.txt\""));
  CHECK(contains(refused("a.toml", "data = \"x\n"), "a string is not closed"));
  CHECK(contains(refused("a.toml", "data = \"x\\\n"), "a string is not closed"));
  CHECK(contains(refused("a.toml", "data = 'x\n"), "a string is not closed"));
  CHECK(contains(refused("a.toml", "data = \"\\q\"\n"), "unknown escape \\q"));
  CHECK(contains(refused("a.toml", "steps = 1 2\n"), "unexpected text after the value of 'steps'"));
  CHECK(contains(refused("a.toml", "steps = 1\nsteps = 2\n"), "line 2: 'steps' is set twice"));
  CHECK(contains(refused("a.toml", "st\xffps = 1\n"), "is not a name"));
  CHECK(contains(refused("a.toml", "stesp = 1\n"), "has an unknown option 'stesp'; did you mean steps?"));
  CHECK(contains(refused("a.toml", "config = \"b\"\n"), "unknown option 'config'"));
  CHECK(contains(refused("a.toml", "steps = -1\n"), "--steps expects a whole number of at least 1, but got '-1'"));
  CHECK(contains(refused("a.json", "{"), "not JSON at byte"));
  CHECK(contains(refused("a.json", "[]"), "expected one flat object"));
  CHECK(contains(refused("a.json", R"({"steps": [1]})"), "expected one flat object"));
  CHECK(contains(refused("a.json", R"({"steps": null})"), "'steps' has no value"));
  CHECK_THROWS_AS(parsed("train", {"--config=" + (directory / "absent").string()}), FileError);
}

TEST_CASE("help: every option of the command with default and unit, and none of the others") {
  for (const Command& command : command_table()) {
    const std::string help = help_text(command.name);
    for (const Option& option : option_table()) {
      CAPTURE(option.name);
      const bool mine =
          std::find(option.commands.begin(), option.commands.end(), command.name) != option.commands.end();
      const bool shown = contains(help, "  --" + option.name + " ") || contains(help, "  --" + option.name + "=") ||
                         contains(help, "  --" + option.name + "[=");
      CHECK(mine == shown);
    }
    CHECK(contains(help_text(), command.name));
    for (size_t begin = 0; begin < help.size();) {
      const size_t end = help.find('\n', begin);
      CHECK(end - begin <= 110);
      begin = end + 1;
    }
  }
  CHECK(contains(help_text("train"), "(default 2000 steps)"));
  CHECK(contains(help_text("train"), "char-cpu"));
  CHECK_THROWS_AS(help_text("trian"), UsageError);
}

TEST_CASE("the printed configuration says where values come from") {
  const std::string text = parsed("train", {"--preset=char-cpu", "--steps=3"}).resolved_text();
  CHECK(contains(text, "steps                  3 steps               (flag)"));
  CHECK(contains(text, "batch                  12 rows               (preset)"));
  CHECK_FALSE(contains(text, "minutes"));
}

TEST_CASE("nearest name: small slips only") {
  const std::vector<std::string> names = {"softmax", "hedgehog", "elu", "relu"};
  CHECK(nearest_name("sotfmax", names) == "softmax");
  CHECK(nearest_name("hedghog", names) == "hedgehog");
  CHECK(nearest_name("elu", names) == "elu");
  CHECK(nearest_name("rel", names) == "relu");
  CHECK(nearest_name("completely", names) == "");
  CHECK(nearest_name(std::string(100000, 'x'), names) == "");
}
