#include "train/pieces_pattern.h"

#include <fmt/core.h>

#include <chrono>

#include "core/error.h"
#include "train/utf8.h"

#ifdef HH_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

namespace hedgehog {

#ifdef HH_PCRE2

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kLongestPattern = 4096;         // bytes
constexpr uint32_t kSteps = 1'000'000;           // PCRE2's match limit, for one piece
constexpr uint32_t kHeap = 65536;                // KiB, for one piece
constexpr size_t kJitStack = size_t{1} << 20;    // bytes
constexpr int64_t kPatience = 10'000;            // milliseconds, and 1 more every 100 bytes
constexpr uint32_t kPiecesBetweenLooks = 64;     // at the clock

/// Unicode's White_Space, as the regular expressions of Python and Oniguruma have it; PCRE2's \s counts U+180E too.
constexpr std::string_view kWhiteSpace = R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// The pattern with \s and, outside brackets, \S spelled out.
std::string with_white_space(std::string_view pattern) {
  std::string result;
  bool inside = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view two = pattern.substr(i, 2);
    if (two == "\\s") {
      result += inside ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
    } else if (two == "\\S" && !inside) {
      result += fmt::format("[^{}]", kWhiteSpace);
    } else if (two.size() == 2 && two[0] == '\\') {
      result += two;
    } else {
      if (pattern[i] == '[') inside = true;
      if (pattern[i] == ']') inside = false;
      result += pattern[i];
      continue;
    }
    ++i;
  }
  return result;
}

std::string pcre2_message(int code) {
  unsigned char text[256];
  return pcre2_get_error_message(code, text, sizeof text) < 0 ? fmt::format("error {}", code) : reinterpret_cast<char*>(text);
}

template <auto release>
struct Release {
  template <typename Object>
  void operator()(Object* object) const { release(object); }
};
template <typename Object, auto release>
using Owned = std::unique_ptr<Object, Release<release>>;

/// What one thread needs to match.
class Matcher {
 public:
  explicit Matcher(const pcre2_code* code) : code_(code) {
    if (!data_ || !context_ || !stack_) throw std::bad_alloc();
    pcre2_set_match_limit(context_.get(), kSteps);
    pcre2_set_heap_limit(context_.get(), kHeap);
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
  }

  /// First match from `from` on: its begin and end; both text.size() if there is none. `text` must be UTF-8.
  std::pair<size_t, size_t> next(std::string_view text, size_t from) {
    int found = match(text, from, 0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(text, from, PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
    if (found < 0)
      throw Error(fmt::format("[tokenizer] the pattern of the pieces fails at byte {} of a text: {}", from, pcre2_message(found)));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_.get());
    if (ends[0] < from || ends[1] <= ends[0]) throw Error("[tokenizer] the pattern of the pieces moves its own borders (\\K)");
    return {ends[0], ends[1]};
  }

 private:
  int match(std::string_view text, size_t from, uint32_t options) {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       options | PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data_.get(), context_.get());
  }

  const pcre2_code* code_;
  Owned<pcre2_match_data, pcre2_match_data_free> data_{pcre2_match_data_create(1, nullptr)};
  Owned<pcre2_match_context, pcre2_match_context_free> context_{pcre2_match_context_create(nullptr)};
  Owned<pcre2_jit_stack, pcre2_jit_stack_free> stack_{pcre2_jit_stack_create(32768, kJitStack, nullptr)};
};

/// Position after the run of whole characters (valid) or of bytes that belong to none, from `i` on.
size_t end_of_run(std::string_view text, size_t i, bool valid) {
  while (i < text.size()) {
    const bool ascii = uint8_t(text[i]) < 0x80;
    const Utf8Step step = ascii ? Utf8Step{Utf8Step::Kind::kCharacter, 1} : utf8_step(text, i);
    if ((step.kind == Utf8Step::Kind::kCharacter) != valid) break;
    i += step.bytes;
  }
  return i;
}

class PatternRule final : public PieceRule {
 public:
  explicit PatternRule(const std::string& pattern) : PieceRule(pattern) {
    if (pattern.size() > kLongestPattern)
      throw Error(fmt::format("the pattern has {} bytes, more than the {} allowed", pattern.size(), kLongestPattern));
    const std::string spelled = with_white_space(pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
    if (!code_)
      throw Error(fmt::format("the pattern '{}' is not a regular expression of PCRE2: {}", valid_utf8(pattern), pcre2_message(error)));
    // where there is no JIT compiler, PCRE2 interprets
    (void)pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  void split(std::string_view text, const Visit& visit) const override {
    Matcher matcher(code_.get());
    const auto deadline = Clock::now() + std::chrono::milliseconds(kPatience + int64_t(text.size() / 100));
    uint32_t pieces = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = end_of_run(text, begin, true);
      const std::string_view run = text.substr(begin, end - begin);
      for (size_t at = 0; at < run.size();) {
        const auto [first, last] = matcher.next(run, at);
        if (first > at) visit(run.substr(at, first - at));
        if (last > first) visit(run.substr(first, last - first));
        at = last;
        if (++pieces % kPiecesBetweenLooks == 0 && Clock::now() > deadline)
          throw Error(fmt::format("[tokenizer] the pattern of the pieces takes too long on a text of {} bytes", text.size()));
      }
      begin = end_of_run(text, end, false);
      if (begin > end) visit(text.substr(end, begin - end));
    }
  }

 private:
  Owned<pcre2_code, pcre2_code_free> code_;
};

}  // namespace

PieceRulePointer pattern_rule(const std::string& pattern) { return std::make_shared<PatternRule>(pattern); }

#else

PieceRulePointer pattern_rule(const std::string&) {
  throw Error("its pieces need PCRE2, which this program was built without; install libpcre2-dev (brew: pcre2) and build again");
}

#endif

}  // namespace hedgehog
