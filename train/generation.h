#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/executor.h"
#include "nn/gpt.h"
#include "ops/sample_token.h"

namespace hedgehog {

/// Writes token after token with a model's recurrent state: with linear attention the cost of a token does not depend on
/// its position.
///
///   Generator generator(model, 64);
///   generator.read(prompt);
///   generator.generate(20, {.temperature = 0.8}, {.seed = 1}, [&](std::int32_t id) { return id != end; });
///
/// A token is a part of the replay of a recorded program, which decodes and chooses. A device that is not the host's memory
/// writes a few tokens in one replay, works ahead of those handed out and never waits for the host in between. So when a text
/// is cut short the state may lie beyond its end, and reset() is the only way on; after a text of full length it goes on where
/// that ended.
class Generator {
 public:
  /// model     must outlive the generator
  /// capacity  most tokens that one text may have (softmax attention keeps them all, and learned positions end there)
  Generator(const Gpt& model, std::int64_t capacity);

  /// Forgets everything read so far.
  void reset();
  /// Reads tokens: the prompt. Throws UsageError when the capacity is used up.
  void read(std::span<const std::int32_t> ids);
  /// Draws `count` tokens and hands out each as soon as it is known; `take` returns whether to go on. The last one is read
  /// when something follows it. Throws UsageError when the capacity does not suffice, Error if the logits are no distribution.
  void generate(std::int64_t count, const Sampling& sampling, const Draws& draws, const std::function<bool(std::int32_t)>& take);
  /// Logits (V) of the next token.
  std::vector<double> logits();
  /// Tokens read so far.
  std::int64_t position() const { return position_; }
  /// Goes on as if that many tokens had been read, to see what a token costs far from the start.
  void set_position(std::int64_t position);

 private:
  void check_free(std::int64_t tokens) const;
  void check_exact() const;
  void push(std::int32_t id);

  static constexpr std::int64_t kTogether = 4;  // tokens of one replay: between two of them the device stands idle for microseconds
  /// Writes one token or several, each decoded from the one before.
  struct Writer {
    std::int64_t tokens;
    std::unique_ptr<Executor> run = {};         // made when it is first needed
    std::unique_ptr<Readback> results = {};     // of its tokens
    std::int64_t ahead = 0;                     // runs that wait in there
  };
  void record_choices(Writer& writer);
  /// `together` of the `count` tokens are written several at a time, the rest one by one.
  void choose(std::int64_t count, std::int64_t together, const std::function<bool(std::int32_t)>& take);

  const Gpt& model_;
  Device& device_;
  std::int64_t capacity_, position_ = 0;
  DecodingState state_;
  Tensor text_, token_, draws_;        // text_ i32 (kTogether, 1); token_ is its last: read by the next run
  std::unique_ptr<Feed> feed_;         // of token_ and the position, for the reader
  std::unique_ptr<Executor> reader_;   // logits after token_
  Writer one_{1}, several_{kTogether};  // the same, then the choice; the last tokens of text_ are theirs
  Sampling sampling_;                  // of the writers
  std::optional<std::int32_t> unread_;  // the last token drawn
  bool known_ = false;                 // the reader holds the logits of the next token
  bool cut_ = false;                   // the state may lie beyond what was handed out
};

}  // namespace hedgehog
