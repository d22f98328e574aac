#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/generation.h"
#include "train/sampling.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

/// A checkpoint that writes to the terminal.
class Writer {
 public:
  Writer(const Config& config, Checkpoint checkpoint)
      : config_(config), checkpoint_(std::move(checkpoint)),
        sampling_{config.real("temperature"), config.integer("top_k"), config.real("top_p")} {
    check_sampling(sampling_);
  }

  const Tokenizer& tokenizer() const { return *checkpoint_.tokenizer; }
  bool stories() const { return tokenizer().kind() == "story"; }

  /// Prints `start` and a text that goes on from the prompt's ids, as it is written.
  void write(const std::string& start, const std::vector<std::int32_t>& prompt, std::int64_t tokens, std::uint64_t seed, bool until_sentence) {
    const GptOptions& o = checkpoint_.model->options();
    std::int64_t capacity = std::int64_t(prompt.size()) + tokens;
    capacity = std::min(capacity, o.longest());
    if (!generator_ || capacity_ < capacity) {
      check_decoding_memory(o, capacity);
      generator_ = std::make_unique<Generator>(*checkpoint_.model, capacity);
      capacity_ = capacity;
    }
    generator_->reset();
    fmt::print("{}", start);
    generator_->read(prompt);
    StreamingDecoder decoder(checkpoint_.tokenizer);
    decoder.skip(prompt);
    generator_->generate(std::min(tokens, capacity - generator_->position()), sampling_, {seed}, [&](std::int32_t id) {
      if (id == tokenizer().end()) return false;
      const std::string text = decoder.push(id);
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
      return !until_sentence || text.find('.') == std::string::npos;
    });
    fmt::print("{}\n", decoder.finish());
  }

  /// A prompt's ids, behind those that the model expects before a text.
  std::vector<std::int32_t> prompt(const std::string& text) const {
    std::vector<std::int32_t> ids = tokenizer().frame().before;
    const std::vector<std::int32_t> own = tokenizer().encode(text);
    ids.insert(ids.end(), own.begin(), own.end());
    return ids;
  }

  /// What to read first when there is no prompt.
  std::vector<std::int32_t> opening() const {
    if (const std::vector<std::int32_t> begin = tokenizer().frame().before; !begin.empty()) return begin;
    if (stories()) return {StoryCorpus().row(1, 0, false).tokens.front()};
    if (tokenizer().end() >= 0) return {tokenizer().end()};
    try {
      return tokenizer().encode("\n");
    } catch (const UsageError&) {
      return {0};
    }
  }

 private:
  const Config& config_;
  Checkpoint checkpoint_;
  Sampling sampling_;
  std::unique_ptr<Generator> generator_;
  std::int64_t capacity_ = 0;
};

/// Reads lines and lets the model go on from everything typed so far (stories: up to the next full stop).
int session(Writer& writer, const Config& config) {
  fmt::print("{}\n", writer.stories() ? "Type facts (\"Mia eats plums and Leo eats tea.\") and ask (\"What does Mia eat?\"). An empty line ends."
                                      : "Type text; the model goes on from it. An empty line ends.");
  std::string all, line;
  for (std::uint64_t turn = 0; fmt::print("> "), std::fflush(stdout), std::getline(std::cin, line) && !line.empty(); ++turn) {
    all += (all.empty() ? "" : " ") + line;
    try {
      const bool question = line.find('?') != std::string::npos;
      const auto ids = writer.prompt(all);
      if (writer.stories() && !question) continue;
      writer.write("", ids, config.integer("tokens"), std::uint64_t(config.integer("seed")) + turn, writer.stories());
    } catch (const UsageError& e) {
      fmt::print("{}\n", e.what());
      all.resize(all.size() - line.size());
    }
  }
  return kGood;
}

}  // namespace

int sample_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  Writer writer(config, load_checkpoint(find_checkpoint(config.text("checkpoint")), false));
  const bool prompted = config.was_set("prompt");
  if (!prompted && isatty(STDIN_FILENO)) return session(writer, config);
  std::vector<std::int32_t> prompt;
  if (prompted) prompt = writer.prompt(config.text("prompt"));
  if (prompt.empty()) prompt = writer.opening();
  for (std::int64_t i = 0; i < config.integer("count"); ++i) {
    const std::string start = prompted || writer.stories() ? writer.tokenizer().decode(prompt) : "";
    writer.write(start, prompt, config.integer("tokens"), std::uint64_t(config.integer("seed") + i), false);
    if (i + 1 < config.integer("count")) fmt::print("\n");
  }
  return kGood;
}

}  // namespace hedgehog
