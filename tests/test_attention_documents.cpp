// Packed documents whose keys are far apart: what an older document leaves behind must not push a newer one out of range.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <string>

#include "core/random.h"
#include "ops/linear_attention.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

constexpr std::int64_t T = 1000;
// inside chunks of 32 and of 64 tokens, two in one, and one that ends with its chunk
constexpr std::array<std::int64_t, 6> kStarts = {0, 70, 330, 334, 701, 959};

std::int64_t document_of(std::int64_t t) {
  std::int64_t document = 0;
  while (document + 1 < std::int64_t(kStarts.size()) && t >= kStarts[std::size_t(document) + 1]) ++document;
  return document;
}

enum Left : std::size_t { kO, kDq, kDk, kDv, kLefts };
constexpr const char* kNames[kLefts] = {"o", "dq", "dk", "dv"};
using Outcome = std::array<std::vector<double>, kLefts>;  // (T, H, D)

/// Keys of every other document reach to +-apart, the others are normal numbers. All are bf16 numbers.
Outcome run(std::int64_t D, double apart, Dtype dtype, const char* map = "hedgehog") {
  constexpr std::int64_t H = 2;
  const auto leaf = [&](std::uint32_t id, bool of_keys) {
    std::vector<double> x = draw(T * H * D, 31, id);
    for (std::int64_t i = 0; i < std::int64_t(x.size()); ++i) {
      const std::int64_t t = i / (H * D);
      if (of_keys && document_of(t) % 2 == 0) x[std::size_t(i)] = t % 2 ? apart : -apart;
      x[std::size_t(i)] = double(float(BFloat16(float(x[std::size_t(i)]))));
    }
    const Tensor tensor = parameter({1, T, H, D}, "x", dtype);
    tensor.copy_from(x);
    return tensor;
  };
  const keep_tape keep;
  const Tensor q = leaf(1, false), k = leaf(2, true), v = leaf(3, false);
  LinearAttentionOptions o;
  o.map = map;
  std::vector<double> starts;
  for (std::int64_t t = 0; t < T; ++t) starts.push_back(double(kStarts[std::size_t(document_of(t))]));
  o.document_start = constant({1, T}, starts, Dtype::i32);
  std::vector<double> identity(std::size_t(H * D * D));
  for (std::int64_t i = 0; i < H * D; ++i) identity[std::size_t(i * D + i % D)] = 1;
  o.weight_q = constant({H, D, D}, identity, dtype), o.weight_k = constant({H, D, D}, identity, dtype);
  const Tensor y = linear_attention(q, k, v, o).o;
  backward(y, constant(y.shape(), leaf(4, false).to_vector(), dtype));
  const Outcome out{y.to_vector(), q.grad().to_vector(), k.grad().to_vector(), v.grad().to_vector()};
  clear_tape();
  return out;
}

/// Each document by itself, so that small gradients of one are not lost beside those of another.
void check(std::int64_t D, double apart, Dtype dtype, double tolerance, const char* map = "hedgehog") {
  const std::string of_map = map;
  CAPTURE(of_map);
  CAPTURE(D);
  CAPTURE(apart);
  const Outcome ours = run(D, apart, dtype, map);
  const OnDevice guard(cpu_device());
  const Outcome exact = run(D, apart, Dtype::f64, map);
  for (std::size_t i = 0; i < kLefts; ++i)
    for (std::int64_t document = 0; document < std::int64_t(kStarts.size()); ++document) {
      const std::string which = kNames[i];
      CAPTURE(which);
      CAPTURE(document);
      std::vector<double> a, b;
      for (std::size_t j = 0; j < ours[i].size(); ++j)
        if (document_of(std::int64_t(j) / (2 * D)) == document) a.push_back(ours[i][j]), b.push_back(exact[i][j]);
      // gradients that vanish, as those of keys that all rows see alike, are held against the size of the others
      CHECK(rms(difference(a, b)) <= tolerance * std::max(rms(b), 1e-3));
    }
}

// up to 138 nats on a GPU: ops/linear_attention.h
constexpr double kApart[] = {1, 40, 60, 100, 135};

/// Beyond that keys may be lost, but nothing is infinite.
void check_finite(std::int64_t D, double apart, Dtype dtype) {
  CAPTURE(D);
  for (const std::vector<double>& x : run(D, apart, dtype))
    for (const double value : x) REQUIRE(std::isfinite(value));
}

}  // namespace

TEST_CASE("linear attention: documents whose keys are far apart, in f32 on the CPU") {
  for (const double apart : kApart) check(16, apart, Dtype::f32, 1e-3);
  check(16, 60, Dtype::f32, 1e-3, "hedgehog-joint");
  check_finite(16, 250, Dtype::f32);
}

TEST_SUITE("device") {
  TEST_CASE("linear attention: documents whose keys are far apart, in bf16 on the GPU") {
    // as tests/test_attention_accuracy.cpp allows at the largest inputs
    on_cuda([] {
      for (const std::int64_t D : {16, 32, 64, 96, 128})
        for (const double apart : kApart) check(D, apart, Dtype::bf16, 2e-2);
      for (const double apart : kApart) check(64, apart, Dtype::bf16, 2e-2, "hedgehog-joint");
      for (const std::int64_t D : {32, 64, 128}) check_finite(D, 250, Dtype::bf16);
    });
  }
}
