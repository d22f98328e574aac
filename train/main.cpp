#include <fmt/format.h>

#include <cstdio>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "ops/blas.h"
#include "core/error.h"
#include "train/commands.h"

namespace {

using hedgehog::Config;

int dispatch(const std::string& name, const std::vector<std::string>& arguments) {
  static const std::map<std::string, int (*)(Config&)> kCommands = {
      {"train", hedgehog::train_command},         {"sample", hedgehog::sample_command},
      {"eval", hedgehog::eval_command},           {"analyze", hedgehog::analyze_command},
      {"convert", hedgehog::convert_command},     {"prepare", hedgehog::prepare_command},
      {"import", hedgehog::import_command},       {"export", hedgehog::export_command},
      {"embed", hedgehog::embed_command},         {"finetune", hedgehog::finetune_command},
      {"reproduce", hedgehog::reproduce_command}, {"gradcheck", hedgehog::gradcheck_command},
      {"step", hedgehog::step_command},           {"bench", hedgehog::bench_command},
      {"info", hedgehog::info_command}};
  Config config(name);
  config.parse(arguments);
  if (config.help()) {
    fmt::print("{}", hedgehog::help_text(name));
    return hedgehog::kGood;
  }
  return kCommands.at(name)(config);
}

/// What to do when memory runs out, in options that the command has.
const char* memory_advice(const std::string& command) {
  if (command == "train" || command == "bench") return "out of memory; use a smaller --batch, --context or --width";
  if (command == "eval" || command == "convert" || command == "embed" || command == "finetune") return "out of memory; use a smaller --batch";
  if (command == "sample") return "out of memory; ask for fewer --tokens or give a shorter --prompt";
  if (command == "analyze") return "out of memory; give shorter --lengths";
  return "out of memory; free some and run again";
}

int complain(const char* message, int code) {
  std::fflush(stdout);
  fmt::print(stderr, "hedgehog: {}\n", message);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  hedgehog::ensure_best_blas(argc, argv);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "help") {
    fmt::print("{}", hedgehog::help_text());
    return hedgehog::kGood;
  }
  try {
    return dispatch(arguments[0], {arguments.begin() + 1, arguments.end()});
  } catch (const hedgehog::UsageError& e) {
    return complain(e.what(), hedgehog::kUsage);
  } catch (const hedgehog::FileError& e) {
    return complain(e.what(), hedgehog::kBadFile);
  } catch (const std::bad_alloc&) {
    return complain(memory_advice(arguments[0]), hedgehog::kRunFailed);
  } catch (const std::exception& e) {
    return complain(e.what(), hedgehog::kRunFailed);
  }
}
