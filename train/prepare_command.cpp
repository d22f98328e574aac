#include <fmt/format.h>

#include <chrono>

#include "core/error.h"
#include "train/commands.h"
#include "train/files.h"
#include "train/setup.h"
#include "train/text_source.h"
#include "train/token_shards.h"
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
  const std::filesystem::path out = config.text("out");
  if (holds_token_shards(config.text("data")))
    throw UsageError(fmt::format("--data={} holds token shards; prepare needs the text that they were made of", config.text("data")));
  check_no_token_shards(out);  // before minutes are spent; without its tokenizer.json a directory's shards are lost
  const TextSource source = read_text(config.text("data"));
  for (const std::string& note : source.notes) fmt::print(stderr, "note: {}\n", note);
  const std::string kind = config.has("tokenizer") ? config.text("tokenizer") : "bpe";
  Clock::time_point start = Clock::now();
  // what shards are validated on has no say in the tokens, as in training on a text
  const bool spares = config.flag("shards") && (kind == "bpe" || kind == "word");
  const std::string_view learned = spares ? std::string_view(source.text).substr(0, split_position(source.text, kTrainFraction)) : source.text;
  const TokenizerPointer tokenizer = make_tokenizer(kind, learned, config.integer("vocabulary"));
  const double learning = seconds_since(start);
  start = Clock::now();
  size_t tokens = 0;
  if (config.flag("shards")) {
    tokens = size_t(write_token_shards(out, source, *tokenizer));
  } else {
    tokens = tokenizer->encode(source.text).size();
    make_directories(out);
    replace_file(out / "tokenizer.json", tokenizer->to_json() + "\n");
  }
  const double encoding = seconds_since(start), bytes = double(source.text.size());
  fmt::print("text        {}: {} bytes, {} documents\n", source.name, source.text.size(), source.document_starts.size());
  fmt::print("tokens      {}, {} in {:.1f} s; the text has {}, {:.2f} bytes each, {} at {:.1f} MB/s\n", tokenizer->size(),
             kind == "bpe" || kind == "word" || kind == "char" ? "learned" : "read", learning, tokens, bytes / double(tokens),
             config.flag("shards") ? "encoded and written" : "encoded", bytes / 1e6 / encoding);
  if (kind == "bpe" && tokenizer->size() < config.integer("vocabulary"))
    fmt::print("            (no more pairs occur twice: --vocabulary={} was asked for)\n", config.integer("vocabulary"));
  if (config.flag("shards")) fmt::print("written     token shards; use them by --data={}\n", out.string());
  else fmt::print("written     {}; use it by --tokenizer={}\n", (out / "tokenizer.json").string(), out.string());
  return kGood;
}

}  // namespace hedgehog
