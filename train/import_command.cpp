#include <fmt/format.h>

#include <chrono>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/foreign_model.h"
#include "train/lora_adapter.h"
#include "train/run_directory.h"
#include "train/setup.h"

namespace hedgehog {

int import_command(Config& config) {
  configure_machine(config);
  for (const char* option : {"from", "out"})
    if (!config.was_set(option)) throw UsageError(fmt::format("import needs --{}; see hedgehog import --help", option));
  const std::filesystem::path from = config.text("from"), out = config.text("out");
  std::error_code ignored;
  if (!std::filesystem::exists(from, ignored)) throw FileError(fmt::format("--from={} does not exist", from.string()));
  check_new_directory(out.string());
  const bool adapted = config.has("lora");
  if (!adapted && !is_foreign_model(from))
    throw FileError(fmt::format("--from={} holds no config.json; give a folder of Hugging Face, a GGUF or a llama2.c file", from.string()));
  const auto start = std::chrono::steady_clock::now();
  Checkpoint checkpoint = load_checkpoint(adapted ? find_checkpoint(from.string()) : from, false);
  MergedAdapter merged;
  if (adapted) merged = merge_adapter(*checkpoint.model, config.text("lora"));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const GptOptions& o = checkpoint.model->options();
  save_checkpoint(out, *checkpoint.model, *checkpoint.tokenizer, checkpoint.run, false);
  fmt::print("model       {} layers, width {}, {} heads{}, {} tokens, context {}\n", o.layers, o.width, o.heads,
             o.shared_heads() == o.heads ? "" : fmt::format(" with {} of keys and values", o.shared_heads()), o.vocabulary, o.context);
  fmt::print("parameters  {}, read in {:.2f} s\n", count_text(double(checkpoint.model->parameters().count())), seconds);
  if (adapted) fmt::print("updated     {} layers, of rank {}\n", merged.layers, merged.rank);
  fmt::print("written     {}\n", out.string());
  if (!o.causal) {
    fmt::print("vectors     ./hedgehog embed --checkpoint={} --data=lines.txt\n", out.string());
    return kGood;
  }
  fmt::print("write text  ./hedgehog sample --checkpoint={}\n", out.string());
  fmt::print("convert     ./hedgehog convert --from={} --data=my.txt\n", out.string());
  return kGood;
}

}  // namespace hedgehog
