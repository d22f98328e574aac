// Errors of attention_cross_entropy against f64 on the same numbers, where the GPU has kernels of its own for bf16 queries and keys.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/random.h"
#include "ops/ops.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

struct AccuracyCase {
  const char* name;
  std::int64_t B = 1, T = 1, Hq = 1, Hkv = 1, D = 64, F = 128;
  bool causal = true, logarithmic = true, documents = false, mask = false;
  double spread = 1;    // of the features
  bool taylor = false;  // features are those of Taylor's map for heads of 16
};

// sizes that tiles of 64 tokens and slices of 64 and 128 features do not divide
const AccuracyCase kCases[] = {
    {.name = "heads of 64", .B = 2, .T = 200, .Hq = 4, .Hkv = 2},
    {.name = "bidirectional, masked", .B = 2, .T = 130, .Hq = 2, .Hkv = 1, .causal = false, .mask = true},
    {.name = "documents", .B = 2, .T = 333, .Hq = 2, .Hkv = 2, .documents = true},
    {.name = "documents, bidirectional and masked", .B = 2, .T = 190, .Hq = 2, .Hkv = 2, .causal = false, .documents = true, .mask = true},
    {.name = "features as they are, 153", .B = 1, .T = 150, .Hq = 2, .Hkv = 2, .D = 32, .F = 153, .logarithmic = false},
    {.name = "features with signs, whose sums are small beside their terms", .B = 1, .T = 150, .Hq = 2, .Hkv = 2, .F = 153, .logarithmic = false,
     .spread = 2.5, .taylor = true},
    {.name = "64 features, heads of 128", .B = 1, .T = 65, .Hq = 2, .Hkv = 1, .D = 128, .F = 64},
    {.name = "256 features", .B = 1, .T = 129, .Hq = 1, .Hkv = 1, .D = 48, .F = 256},
    {.name = "spread features", .B = 1, .T = 200, .Hq = 2, .Hkv = 2, .spread = 8},
    {.name = "features too far apart for a product", .B = 1, .T = 200, .Hq = 2, .Hkv = 2, .F = 6, .spread = 60},
};

enum Left : std::size_t { kLoss, kEntropy, kDq, kDk, kLefts };
constexpr const char* kNames[kLefts] = {"loss", "entropy", "dfeatures_q", "dfeatures_k"};
using Outcome = std::array<std::vector<double>, kLefts>;

/// Numbers that f32, or bf16, holds exactly.
std::vector<double> numbers(std::int64_t size, std::uint32_t id, double scale, Dtype dtype) {
  std::vector<double> x = draw(size, 23, id);
  for (double& v : x) v = dtype == Dtype::bf16 ? double(float(BFloat16(float(v * scale)))) : double(float(v * scale));
  return x;
}

/// [1, x / 2, x_i^2 / (4 sqrt 2), x_i x_j / 4] of x (16): their products are 1 + s + s^2 / 2 >= 1/2 with s = x . y / 4. As f32 numbers.
std::vector<double> taylor_features(const std::vector<double>& x) {
  std::vector<double> features;
  for (std::size_t at = 0; at < x.size(); at += 16) {
    features.push_back(1);
    for (std::size_t i = 0; i < 16; ++i) features.push_back(double(float(x[at + i] / 2)));
    for (std::size_t i = 0; i < 16; ++i) features.push_back(double(float(x[at + i] * x[at + i] / (4 * std::sqrt(2.0)))));
    for (std::size_t i = 0; i < 16; ++i)
      for (std::size_t j = i + 1; j < 16; ++j) features.push_back(double(float(x[at + i] * x[at + j] / 4)));
  }
  return features;
}

/// Forward and backward on the current device, each row's loss with a gradient of its own.
Outcome run(const AccuracyCase& c, Dtype vectors, Dtype features) {
  const auto leaf = [](Shape shape, const std::vector<double>& values, Dtype dtype) {
    const Tensor x = parameter(std::move(shape), "x", dtype);
    x.copy_from(values);
    return x;
  };
  std::vector<double> fq = numbers(c.B * c.T * c.Hq * c.F, 3, c.spread, Dtype::f32), fk = numbers(c.B * c.T * c.Hq * c.F, 4, c.spread, Dtype::f32);
  if (c.taylor) {
    fq = taylor_features(numbers(c.B * c.T * c.Hq * 16, 3, c.spread, Dtype::f32));
    fk = taylor_features(numbers(c.B * c.T * c.Hq * 16, 4, c.spread, Dtype::f32));
  } else if (!c.logarithmic)
    for (std::vector<double>* x : {&fq, &fk})
      for (double& v : *x) v = std::abs(v) + 0x1p-20;
  const keep_tape keep;
  const Tensor q = leaf({c.B, c.T, c.Hq, c.D}, numbers(c.B * c.T * c.Hq * c.D, 1, 1.5, Dtype::bf16), vectors);
  const Tensor k = leaf({c.B, c.T, c.Hkv, c.D}, numbers(c.B * c.T * c.Hkv * c.D, 2, 1.5, Dtype::bf16), vectors);
  const Tensor features_q = leaf({c.B, c.T, c.Hq, c.F}, fq, features), features_k = leaf({c.B, c.T, c.Hq, c.F}, fk, features);
  AttentionCrossEntropyOptions o;
  o.causal = c.causal, o.logarithmic = c.logarithmic;
  std::vector<double> starts, tokens;
  for (std::int64_t b = 0; b < c.B; ++b)
    for (std::int64_t t = 0; t < c.T; ++t) starts.push_back(double(t < 41 + b ? 0 : t < 150 ? 41 + b : 150)), tokens.push_back(double(t % 7 != 3 && t != 64 + b));
  if (c.documents) o.document_start = constant({c.B, c.T}, starts, Dtype::i32);
  if (c.mask) o.mask = constant({c.B, c.T}, tokens, Dtype::i32);
  const AttentionCrossEntropyResult y = attention_cross_entropy(q, k, features_q, features_k, o);
  backward(y.loss, constant(y.loss.shape(), numbers(y.loss.size(), 5, 1, Dtype::f32), y.loss.dtype()));
  const Outcome out{y.loss.to_vector(), y.entropy.to_vector(), features_q.grad().to_vector(), features_k.grad().to_vector()};
  clear_tape();
  return out;
}

/// Rows of a key whose weight is 0 for the student, which loses its weight in the teacher, too, to a key that comes later.
void check_lost_key() {
  constexpr std::int64_t T = 300, D = 16;
  const Dtype dtype = current_device().host() ? Dtype::f32 : Dtype::bf16;
  std::vector<double> k(std::size_t(T * D)), fk(std::size_t(2 * T), 1.0);
  for (std::int64_t t = 0; t < T; ++t) k[std::size_t(t * D)] = t == 260 ? 400 : 0;
  for (std::int64_t t = 0; t < 32; ++t) fk[std::size_t(2 * t)] = 0;  // A = 0: the loss is infinite until key 260
  const auto leaf = [](Shape shape, const std::vector<double>& values, Dtype of) {
    const Tensor x = input(std::move(shape), "x", of);
    x.copy_from(values);
    return x;
  };
  std::vector<double> q(std::size_t(T * D)), fq(std::size_t(2 * T));
  for (std::int64_t t = 0; t < T; ++t) q[std::size_t(t * D)] = 4, fq[std::size_t(2 * t)] = 1;
  const no_grad guard;
  AttentionCrossEntropyOptions o;
  o.logarithmic = false;
  const std::vector<double> loss =
      attention_cross_entropy(leaf({1, T, 1, D}, q, dtype), leaf({1, T, 1, D}, k, dtype), leaf({1, T, 1, 2}, fq, Dtype::f32),
                              leaf({1, T, 1, 2}, fk, Dtype::f32), o).loss.to_vector();
  // the teacher sees key 260 alone, the student the t + 1 - 32 keys of weight 1
  for (std::int64_t t = 260; t < T; ++t) CHECK(loss[std::size_t(t)] == doctest::Approx(std::log(double(t + 1 - 32))).epsilon(1e-5));
}

/// Relative RMS errors. Features count with 16 bits each, as 2^-16 of A and with that of a, p less rounded; a - p is a difference of
/// numbers that are up to 30 times as large, and ln A of spread features, of which f32 has 24 bits, has 8 before the point.
double allowed(Left which) { return which <= kEntropy ? 0x1p-17 : 0x1p-13; }

void check_accuracy(Dtype vectors) {
  for (const AccuracyCase& c : kCases) {
    const std::string name = c.name;
    CAPTURE(name);
    const Outcome ours = run(c, vectors, Dtype::f32);
    const OnDevice guard(cpu_device());
    const Outcome exact = run(c, Dtype::f64, Dtype::f64);
    for (std::size_t i = 0; i < kLefts; ++i) {
      const std::string which = kNames[i];
      CAPTURE(which);
      const double error = rms(difference(ours[i], exact[i])) / rms(exact[i]);
      CHECK(error <= allowed(Left(i)));
    }
  }
}

}  // namespace

TEST_CASE("attention_cross_entropy: f32 on the CPU is as close to f64 as is allowed on the GPU") { check_accuracy(Dtype::f32); }

HH_ON_BOTH("attention_cross_entropy: a key that neither teacher nor student sees in the end leaves the loss finite", check_lost_key)

TEST_SUITE("device") {
  TEST_CASE("attention_cross_entropy: with queries and keys in bf16 on the GPU as close to f64 as features of 16 bits allow") {
    on_cuda([] { check_accuracy(Dtype::bf16); });
  }
}
