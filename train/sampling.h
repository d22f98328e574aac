#pragma once
#include <cstdint>
#include <span>

namespace hedgehog {

/// How the next token is chosen.
///
/// temperature  >= 0; 0 takes the most likely token (the first of equals)
/// top_k        keep the k most likely; 0 keeps all
/// top_p        in (0, 1]; keep the fewest most likely tokens whose probability reaches it; 1 keeps all
struct Sampling {
  double temperature = 0.8;
  int64_t top_k = 0;
  double top_p = 1.0;
};

/// Chooses a token: softmax(logits / temperature), cut by top_k, then by top_p of what is left, then the inverse of the
/// cumulative distribution in falling order (ties by id). Sums in f64, so the choice is a pure function of the
/// arguments.
///
/// logits   (V); -inf means never; at least one finite
/// uniform  in [0, 1)
///
/// Throws: Error if no logit is finite or one is NaN or +inf; UsageError if an option is out of range.
int32_t sample_token(std::span<const float> logits, const Sampling& sampling, double uniform);

/// Throws UsageError naming the option, what is expected and what it is.
void check_sampling(const Sampling& sampling);

}  // namespace hedgehog
