// Errors of linear attention against f64 on the same inputs and maps, which hold bf16 numbers whatever it computes in.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/random.h"
#include "ops/linear_attention.h"
#include "ops/shape.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

struct AccuracyCase {
  std::int64_t B = 1, T = 1, H = 2, D = 64;
  bool identity = false;  // maps: identity, or random with u as large as the input
  double scale = 1;       // of q and k, beside unit variance
  bool causal = true;
};

enum Left : std::size_t { kO, kDq, kDk, kDv, kDweightQ, kDweightK, kLefts };
constexpr const char* kNames[kLefts] = {"o", "dq", "dk", "dv", "dW_q", "dW_k"};
using Outcome = std::array<std::vector<double>, kLefts>;

struct Numbers {
  std::vector<double> packed, weight_q, weight_k, upstream;  // (B, T, 3, H, D), (H, D, D), (H, D, D), (B, T, H, D)
};

std::vector<double> bf16_normals(std::int64_t size, std::uint32_t id, double scale) {
  std::vector<double> x = draw(size, 17, id);
  for (double& v : x) v = double(float(BFloat16(float(v * scale))));
  return x;
}

Numbers draw_numbers(const AccuracyCase& c) {
  const std::int64_t C = c.H * c.D;
  Numbers n{bf16_normals(c.B * c.T * 3 * C, 0, 1), bf16_normals(C * c.D, 1, 1 / std::sqrt(double(c.D))),
            bf16_normals(C * c.D, 2, 1 / std::sqrt(double(c.D))), bf16_normals(c.B * c.T * C, 3, 1)};
  // a power of two keeps bf16 numbers what they are
  for (std::size_t i = 0; i < n.packed.size(); ++i)
    if (std::int64_t(i) % (3 * C) < 2 * C) n.packed[i] *= c.scale;
  if (c.identity)
    for (std::vector<double>* w : {&n.weight_q, &n.weight_k})
      for (std::size_t i = 0; i < w->size(); ++i) (*w)[i] = std::int64_t(i) / c.D % c.D == std::int64_t(i) % c.D;
  return n;
}

/// Forward and backward on the current device as the model calls the op: q, k and v lie packed, and so do their gradients, in the
/// dtype of an activation.
Outcome run(const AccuracyCase& c, const Numbers& n, Dtype dtype) {
  const std::int64_t C = c.H * c.D;
  auto leaf = [&](Shape shape, const std::vector<double>& values, const char* name) {
    const Tensor x = parameter(std::move(shape), name, dtype);
    x.copy_from(values);
    return x;
  };
  const keep_tape keep;
  LinearAttentionOptions o;
  o.causal = c.causal;
  o.weight_q = leaf({c.H, c.D, c.D}, n.weight_q, "weight_q");
  o.weight_k = leaf({c.H, c.D, c.D}, n.weight_k, "weight_k");
  const Tensor packed = apply(detail::kCopy, {}, {leaf({c.B, c.T, 3 * C}, n.packed, "qkv")})[0];
  Tensors parts = split(packed, {C, C, C});
  for (Tensor& x : parts) x = reshape(x, {c.B, c.T, c.H, c.D});
  const Tensor y = linear_attention(parts[0], parts[1], parts[2], o).o;
  backward(y, constant(y.shape(), n.upstream, dtype));
  Outcome out;
  out[kO] = y.to_vector();
  const std::vector<double> dpacked = packed.grad().to_vector();
  for (std::size_t i = 0; i < dpacked.size(); ++i) out[kDq + i % std::size_t(3 * C) / std::size_t(C)].push_back(dpacked[i]);
  out[kDweightQ] = o.weight_q.grad().to_vector();
  out[kDweightK] = o.weight_k.grad().to_vector();
  clear_tape();
  return out;
}

/// Relative RMS error of each tensor.
std::array<double, kLefts> errors_of(const AccuracyCase& c, Dtype dtype) {
  const Numbers numbers = draw_numbers(c);
  const Outcome ours = run(c, numbers, dtype);
  const OnDevice guard(cpu_device());
  const Outcome exact = run(c, numbers, Dtype::f64);
  std::array<double, kLefts> errors{};
  for (std::size_t i = 0; i < kLefts; ++i) errors[i] = rms(difference(ours[i], exact[i])) / rms(exact[i]);
  return errors;
}

/// What is allowed. bf16: the result's own rounding is 1.1e-3 and each rounded operand of a product adds about as much; the
/// gradients of q and k are differences of nearly equal sums, the more so the sharper attention is. f32: some hundred roundings.
double allowed(Dtype dtype, Left which, double scale) {
  if (dtype == Dtype::f32) return 1e-5;
  if (which == kO) return scale == 1 ? 3e-3 : 4e-3;
  if (which == kDv) return 4e-3;
  return scale == 1 ? 6e-3 : scale == 4 ? 1e-2 : 2e-2;
}

void check_accuracy(const std::vector<AccuracyCase>& cases, Dtype dtype) {
  fmt::print("\nlinear attention, {} on {}: relative RMS error against f64\n", name_of(dtype), current_device().description());
  fmt::print("| B x T x H x D | W | q, k | o | dq | dk | dv | dW_q | dW_k |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (const AccuracyCase& c : cases) {
    const std::string sizes = fmt::format("{} x {} x {} x {}{}", c.B, c.T, c.H, c.D, c.causal ? "" : ", bidirectional");
    const std::string map = c.identity ? "identity" : "random";
    CAPTURE(sizes);
    CAPTURE(map);
    CAPTURE(c.scale);
    const auto errors = errors_of(c, dtype);
    fmt::print("| {} | {} | x{} |", sizes, map, c.scale);
    for (double e : errors) fmt::print(" {:.1e} |", e);
    fmt::print("\n");
    for (std::size_t i = 0; i < kLefts; ++i) {
      CAPTURE(kNames[i]);
      CHECK(errors[i] <= allowed(dtype, Left(i), c.scale));
    }
  }
}

std::vector<AccuracyCase> all_cases(const std::vector<std::int64_t>& lengths, const std::vector<std::int64_t>& head_sizes,
                                    const std::vector<double>& scales, std::int64_t heads) {
  std::vector<AccuracyCase> cases;
  for (std::int64_t D : head_sizes)
    for (std::int64_t T : lengths)
      for (bool identity : {false, true})
        for (double scale : scales) cases.push_back({1, T, heads, D, identity, scale});
  return cases;
}

}  // namespace

TEST_SUITE("device") {
  TEST_CASE("accuracy of linear attention: bf16 on the GPU") {
    on_cuda([] {
      std::vector<AccuracyCase> cases = all_cases({1024, 4096}, {64, 96, 128}, {1, 4, 16}, 2);
      cases.push_back({11, 1024, 12, 64});  // heads enough that no sequence is cut into segments
      for (AccuracyCase c : all_cases({1024, 4096}, {64}, {1, 4, 16}, 2)) {
        c.causal = false;
        cases.push_back(c);
      }
      check_accuracy(cases, Dtype::bf16);
    });
  }
  TEST_CASE("accuracy of linear attention: f32 on the GPU") {
    on_cuda([] { check_accuracy(all_cases({1024, 4096}, {64, 128}, {1, 4, 16}, 2), Dtype::f32); });
  }
}

TEST_CASE("accuracy of linear attention: f32 on the CPU") { check_accuracy(all_cases({1024}, {64}, {1}, 1), Dtype::f32); }

TEST_CASE("accuracy of linear attention: f32 on the CPU, long and wide" * doctest::test_suite("slow")) {
  check_accuracy(all_cases({1024, 4096}, {64, 128}, {1, 4, 16}, 1), Dtype::f32);
}
