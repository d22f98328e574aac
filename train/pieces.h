#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace hedgehog {

/// GPT-2's rule for pieces. Source: `openai/gpt-2:src/encoder.py`.
inline constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// GPT-2's rule with every digit a piece of its own, as Hugging Face's Digits before ByteLevel cuts (SmolLM, StarCoder).
inline constexpr const char* kDigitsPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+)";

/// Llama 3's rule. Source: `meta-llama/llama3:llama/tokenizer.py`.
inline constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Qwen2's rule: Llama 3's with single digits.
inline constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Our own rule: a word with inner apostrophes, one to three digits, or a run of other characters, each with the single
/// space before it; white space without that space. Letters are A-Z, a-z and all beyond ASCII save U+2000-206F and
/// U+3000-303F, the blocks of punctuation.
inline constexpr const char* kOwnPattern =
    " ?[^\\x00-@\\[-`{-\\x7F\u2000-\u206F\u3000-\u303F]+(?:['\u2019][^\\x00-@\\[-`{-\\x7F\u2000-\u206F\u3000-\u303F]+)*"
    "| ?[0-9]{1,3}"
    "| ?[\\x00-\\x08\\x0E-\\x1F!-/:-@\\[-`{-\\x7F\u2000-\u206F\u3000-\u303F]+"
    "|[\\t-\\r ]+(?= [^\\t-\\r ])|[\\t-\\r ]+";

/// Cuts text into the pieces that tokens do not cross. Immutable; safe to share between threads.
class PieceRule {
 public:
  using Visit = std::function<void(std::string_view)>;

  virtual ~PieceRule() = default;
  /// The regular expression that says the rule; what it leaves out makes pieces too.
  const std::string& pattern() const { return pattern_; }
  /// Calls visit with each piece, in order; together they are the text, whatever its bytes.
  virtual void split(std::string_view text, const Visit& visit) const = 0;
  /// First position from `from` on at which the text falls into two halves with the same pieces as the whole;
  /// text.size() where there is none or the pattern is not known well enough.
  virtual size_t cut(std::string_view text, size_t from) const;

 protected:
  explicit PieceRule(std::string pattern);

 private:
  std::string pattern_;
  bool known_;  // a piece holds white space at its start alone, or is white space; line breaks may end it too
};

using PieceRulePointer = std::shared_ptr<const PieceRule>;

/// The rule of a pattern. kOwnPattern is our own code; all others need PCRE2: characters are those of UTF-8, bytes that
/// belong to none make pieces of their own.
///
/// Throws: Error if the pattern is malformed or PCRE2 was not there at build time. Its split throws Error where a text
/// takes a hostile pattern too long: a million steps for one piece, or 10 s and 1 s more a 100 KB.
PieceRulePointer piece_rule(const std::string& pattern);

}  // namespace hedgehog
