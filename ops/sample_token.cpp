#include "ops/sample_token.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/check.h"

namespace hedgehog {

extern const Op kSampleToken;

namespace {

enum Input : int { kLogits, kToken, kPosition, kDraws };

Sampling sampling_of(const Attributes& a) { return {a.real("temperature"), a.integer("top_k"), a.real("top_p")}; }

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kSampleToken;
  const Meta& logits = in[kLogits];
  check_floating(op, "logits", logits);
  check_rank(op, "logits", logits, 2, "(B, V)");
  if (logits.shape[1] > std::numeric_limits<std::int32_t>::max())
    fail(op, fmt::format("logits must have fewer than 2^31 columns, one for each id, but are {}", logits.shape.text()));
  for (int i : {kToken, kPosition, kDraws}) check_dtype(op, op.arguments[std::size_t(i)].name.c_str(), in[std::size_t(i)], Dtype::i32);
  check_shape(op, "token", in[kToken], {logits.shape[0], 1}, "(B, 1)", "logits", logits);
  check_shape(op, "position", in[kPosition], {1}, "(1)", "logits", logits);
  check_shape(op, "draws", in[kDraws], {4}, "(4)", "logits", logits);
  const Sampling s = sampling_of(attributes);
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature))
    fail(op, fmt::format("temperature must be a number of at least 0, but is {}", s.temperature));
  if (s.top_k < 0) fail(op, fmt::format("top_k must be at least 0, but is {}; 0 keeps all tokens", s.top_k));
  if (!(s.top_p > 0 && s.top_p <= 1))
    fail(op, fmt::format("top_p must be above 0 and at most 1, but is {}; 1 keeps all tokens", s.top_p));
  Layout layout;
  layout.forward_workspace = logits.shape[1] * std::int64_t(sizeof(Candidate));
  return layout;
}

/// The first of the largest logits. Throws Error where the logits are no distribution.
template <class T>
std::size_t most_likely(std::span<const T> logits) {
  std::size_t best = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (std::isnan(logits[id]) || logits[id] == std::numeric_limits<T>::infinity())
      throw Error(fmt::format("[sample] the logit of token {} is {}; the model's weights are damaged or diverged", id, logits[id]));
    if (logits[id] > logits[best]) best = id;
  }
  if (logits.empty() || !std::isfinite(logits[best]))
    throw Error("[sample] no logit is finite; the model's weights are damaged or diverged");
  return best;
}

/// The first candidate where the sum of the weights exceeds uniform * total.
std::int32_t at_uniform(std::span<const Candidate> candidates, double total, double uniform) {
  double cumulative = 0;
  for (const Candidate& c : candidates) {
    cumulative += c.weight;
    if (uniform * total < cumulative) return c.id;
  }
  // rounding may leave the last sum a hair below uniform * total; a token of weight 0 is never taken
  std::size_t last = candidates.size() - 1;
  while (last > 0 && candidates[last].weight == 0) --last;
  return candidates[last].id;
}

template <class T>
void forward(const Call& c) {
  const Ref& logits = c.inputs[kLogits];
  const std::int64_t rows = logits.shape[0], V = logits.shape[1];
  if (logits.columns < V)
    throw ShapeError("[sample_token] a window narrower than a row holds no row of logits in one piece; copy it first");
  const Sampling sampling = sampling_of(c.attributes);
  std::int32_t* const words = c.inputs[kDraws].as<std::int32_t>();
  const Draws draws = draws_of(words);
  const std::span space(static_cast<Candidate*>(c.workspace), std::size_t(V));
  for (std::int64_t b = 0; b < rows; ++b) {
    const T* const row = logits.as<T>() + b * V / logits.columns * logits.stride + b * V % logits.columns;
    const double uniform = draws.uniform(std::uint64_t(b));
    c.inputs[kToken].as<std::int32_t>()[b] = choose_token<T>(std::span(row, std::size_t(V)), sampling, uniform, space);
  }
  ++*c.inputs[kPosition].as<std::int32_t>();
  put_first(words, draws.first + std::uint64_t(rows));
}

}  // namespace

template <class T>
std::int32_t choose_token(std::span<const T> logits, const Sampling& sampling, double uniform, std::span<Candidate> space) {
  const std::size_t best = most_likely(logits);
  if (sampling.temperature == 0 || sampling.top_k == 1) return std::int32_t(best);

  std::size_t kept = 0;
  for (std::size_t id = 0; id < logits.size(); ++id)
    if (std::isfinite(logits[id])) space[kept++].id = std::int32_t(id);
  if (sampling.cuts()) {
    const auto end = space.begin() + std::ptrdiff_t(kept);
    if (sampling.top_k > 0) kept = std::min(kept, std::size_t(sampling.top_k));
    std::partial_sort(space.begin(), space.begin() + std::ptrdiff_t(kept), end, [&](const Candidate& left, const Candidate& right) {
      const T a = logits[std::size_t(left.id)], b = logits[std::size_t(right.id)];
      return a != b ? a > b : left.id < right.id;
    });
  }

  double total = 0;
  for (Candidate& c : space.first(kept)) {
    c.weight = std::exp((double(logits[std::size_t(c.id)]) - double(logits[best])) / sampling.temperature);
    total += c.weight;
  }
  if (sampling.top_p < 1) {
    const double wanted = sampling.top_p * total;
    double reached = 0;
    std::size_t count = 0;
    while (count < kept && reached < wanted) reached += space[count++].weight;
    kept = count;
    total = reached;
  }
  return at_uniform(space.first(kept), total, uniform);
}
template std::int32_t choose_token(std::span<const float>, const Sampling&, double, std::span<Candidate>);
template std::int32_t choose_token(std::span<const double>, const Sampling&, double, std::span<Candidate>);

Tensor draws_state(const Draws& draws) {
  const Tensor words = state({4}, Dtype::i32, "draws");
  set_draws(words, draws);
  return words;
}

void set_draws(const Tensor& state, const Draws& draws) {
  std::int32_t words[4] = {std::int32_t(std::uint32_t(draws.seed)), std::int32_t(std::uint32_t(draws.seed >> 32))};
  put_first(words, draws.first);
  state.write(words, 0, 4);
}

const Op kSampleToken{
    .name = "sample_token",
    .arguments = {{"logits", false, false}, {"token", false, false}, {"position", false, false}, {"draws", false, false}},
    .attributes = {{"temperature", 0.8}, {"top_k", 0}, {"top_p", 1.0}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[kLogits].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .strided = bits(kLogits),
    .updates = bits(kToken, kPosition, kDraws),
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double n = double(in[kLogits].shape.size());
      return std::pair{Work{n * (std::log2(double(in[kLogits].shape[1])) + 20)}, Work{}};  // a sort at most, and an exponential each
    },
    .formula_forward = "p = softmax(logits / temperature), cut by top_k and top_p;  token = inverse of p's cumulative distribution;  "
                       "position += 1",
    .samples = {{"plain", {}, {normal({2, 9}, 2), integers({2, 1}, 0, 9), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"tiles", {{"temperature", 1.0}}, {normal({2, 2100}), integers({2, 1}, 0, 9), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"most likely",
                 {{"temperature", 0.0}},
                 {normal({3, 7}), integers({3, 1}, 0, 7), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"top_k",
                 {{"temperature", 1.5}, {"top_k", 3}},
                 {normal({1, 1500}), integers({1, 1}, 0, 9), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"top_p",
                 {{"temperature", 1.0}, {"top_p", 0.6}},
                 {normal({1, 3100}), integers({1, 1}, 0, 9), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"ties",
                 {{"top_k", 500}, {"top_p", 0.9}},
                 {normal({2, 2049}, 0), integers({2, 1}, 0, 9), integers({1}, 0, 99), integers({4}, 0, 999)}},
                {"smallest", {}, {normal({1, 1}), integers({1, 1}, 0, 1), integers({1}, 0, 9), integers({4}, 0, 9)}}},
};

void sample_token(const Tensor& logits, const Tensor& token, const Tensor& position, const Tensor& draws, const Sampling& s,
                  SourceLine where) {
  apply(kSampleToken, {{"temperature", s.temperature}, {"top_k", s.top_k}, {"top_p", s.top_p}}, {logits, token, position, draws}, where);
}

}  // namespace hedgehog
