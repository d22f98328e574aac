#include <fmt/format.h>

#include <chrono>

#include "core/error.h"
#include "train/commands.h"
#include "train/files.h"
#include "train/setup.h"
#include "train/text_source.h"
#include "train/tokenizer_bpe.h"

namespace hedgehog {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

int prepare_command(Config& config) {
  configure_machine(config);
  for (const char* option : {"data", "out"})
    if (!config.has(option)) throw UsageError(fmt::format("prepare needs --{}; see hedgehog prepare --help", option));
  const TextSource source = read_text(config.text("data"));
  for (const std::string& note : source.notes) fmt::print(stderr, "note: {}\n", note);
  Clock::time_point start = Clock::now();
  const TokenizerPointer tokenizer = make_tokenizer("bpe", source.text, config.integer("vocabulary"));
  const double learning = seconds_since(start);
  start = Clock::now();
  const size_t tokens = tokenizer->encode(source.text).size();
  const double encoding = seconds_since(start), bytes = double(source.text.size());
  const std::filesystem::path file = std::filesystem::path(config.text("out")) / "tokenizer.json";
  make_directories(file.parent_path());
  replace_file(file, tokenizer->to_json() + "\n");
  fmt::print("text        {}: {} bytes, {} documents\n", source.name, source.text.size(), source.document_starts.size());
  fmt::print("tokens      {}, learned in {:.1f} s; the text has {}, {:.2f} bytes each, encoded at {:.1f} MB/s\n", tokenizer->size(), learning,
             tokens, bytes / double(tokens), bytes / 1e6 / encoding);
  if (tokenizer->size() < config.integer("vocabulary"))
    fmt::print("            (no more pairs occur twice: --vocabulary={} was asked for)\n", config.integer("vocabulary"));
  fmt::print("written     {}; use it by --tokenizer={}\n", file.string(), config.text("out"));
  return kGood;
}

}  // namespace hedgehog
