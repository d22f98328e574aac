#include <fmt/format.h>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/foreign_export.h"
#include "train/setup.h"

namespace hedgehog {

int export_command(Config& config) {
  configure_machine(config);
  if (!config.was_set("out")) throw UsageError("export needs --out; see hedgehog export --help");
  const std::string dtype = config.text("dtype");
  if (dtype == "tf32" || dtype == "f64")
    throw UsageError(fmt::format("--dtype={} is not stored; export writes f32 (auto), bf16 or f16", dtype));
  const ElementFormat format = dtype == "bf16" ? ElementFormat::bf16 : dtype == "f16" ? ElementFormat::f16 : ElementFormat::f32;
  const std::filesystem::path found = find_checkpoint(config.text("checkpoint")), out = config.text("out");
  const Checkpoint checkpoint = load_checkpoint(found, false);
  const GptOptions& o = checkpoint.model->options();
  const ForeignArchitecture architecture = foreign_architecture(o);
  for (const std::string& note : export_hugging_face(out, *checkpoint.model, *checkpoint.tokenizer, format))
    fmt::print(stderr, "note: {}\n", note);
  if (o.attention == "softmax") fmt::print("model    {}\n", architecture.name);
  else fmt::print("model    hedgehog on {}: attention {}, which hedgehog alone reads again\n", architecture.type, o.attention);
  fmt::print("written  {}\n", out.string());
  return kGood;
}

}  // namespace hedgehog
