#pragma once
#include <cstdint>
#include <span>

#include "core/random.h"
#include "core/tape.h"

namespace hedgehog {

/// How the next token is chosen.
///
/// temperature  >= 0; 0 takes the most likely token (the first of equals)
/// top_k        keep the k most likely; 0 keeps all
/// top_p        in (0, 1]; keep the fewest most likely tokens whose probability reaches it; 1 keeps all
struct Sampling {
  double temperature = 0.8;
  std::int64_t top_k = 0;
  double top_p = 1.0;

  /// Whether some tokens are left out.
  bool cuts() const { return top_k > 0 || top_p < 1; }
  bool operator==(const Sampling&) const = default;
};

/// Which random numbers choices take: those of `seed`, from number `first` on.
struct Draws {
  std::uint64_t seed = 0, first = 0;

  /// Uniform in [0, 1), for the choice that comes `i` after the first.
  constexpr double uniform(std::uint64_t i) const { return double(Random{seed, 0x73616d70u, 0}.uniform(first + i)); }
};
/// Draws as a state i32 (4), which holds any of them: two words of the seed, two of the number, the lower first.
Tensor draws_state(const Draws& draws = {});
void set_draws(const Tensor& state, const Draws& draws);
constexpr Draws draws_of(const std::int32_t* words) {
  return {std::uint64_t(std::uint32_t(words[1])) << 32 | std::uint32_t(words[0]),
          std::uint64_t(std::uint32_t(words[3])) << 32 | std::uint32_t(words[2])};
}
constexpr void put_first(std::int32_t* words, std::uint64_t first) {
  words[2] = std::int32_t(std::uint32_t(first));
  words[3] = std::int32_t(std::uint32_t(first >> 32));
}

/// Chooses the token that each row of logits goes on with, in place: what decoding reads next.
///
///   p     = softmax(logits / temperature), cut by top_k, then by top_p of what is left
///   token = the inverse of p's cumulative distribution at the next uniform number, in the order of the ids; where top_k or
///           top_p cut, from the most likely on (ties by id);  position += 1;  B numbers are used up
///
/// Sums are f64, so the choice is a function of the arguments alone.
///
/// logits    (B, V)  f32 | f64 | bf16 (CUDA), V < 2^31; -inf means never; may be rows with a stride
/// token     (B, 1)  i32, state, overwritten; on CUDA -1 where the logits are no distribution
/// position  (1)     i32, state: of the token that was read last; raised to that of the chosen one
/// draws     (4)     i32, state, made by draws_state; row b takes the number `first` + b
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError on wrong shapes or dtypes, or an option out of range; Error if no logit of a row is finite or one
///           is NaN or +inf (on CUDA the token is -1 instead).
/// Source:   top_p: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
void sample_token(const Tensor& logits, const Tensor& token, const Tensor& position, const Tensor& draws, const Sampling& sampling,
                  SourceLine where = SourceLine::current());

/// A token that may be chosen.
struct Candidate {
  double weight;
  std::int32_t id;
};

/// The choice from one row, V logits in f32 or f64; `space` (V) is overwritten. Throws Error as sample_token does.
template <class T>
std::int32_t choose_token(std::span<const T> logits, const Sampling& sampling, double uniform, std::span<Candidate> space);

}  // namespace hedgehog
