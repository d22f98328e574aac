#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/cpu.h"
#include "core/gradcheck.h"
#include "ops/elementwise.h"
#include "ops/linear_attention.h"
#include "ops/feature_map.h"
#include "ops/linear_attention_step.h"
#include "ops/reduce.h"
#include "ops/softmax_attention.h"
#include "ops/shape.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

const std::vector<std::string> kMaps = {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"};

/// Arguments of one attention call, as parameters. H heads everywhere.
struct Problem {
  std::int64_t B, T, H, D, Dv, width;
  Tensor q, k, v;
  LinearAttentionOptions options;

  Problem(Dtype dtype, std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D, std::int64_t Dv, std::int64_t width, double scale = 1)
      : B(B), T(T), H(H), D(D), Dv(Dv), width(width), q(drawn({B, T, H, D}, 1, scale, dtype)), k(drawn({B, T, H, D}, 2, scale, dtype)),
        v(drawn({B, T, H, Dv}, 3, 1, dtype)) {
    options.weight_q = drawn({H, D, width}, 4, 1 / std::sqrt(double(D)), dtype);
    options.weight_k = drawn({H, D, width}, 5, 1 / std::sqrt(double(D)), dtype);
    options.bias_q = parameter({H, width}, "bias_q", dtype);
    options.bias_k = parameter({H, width}, "bias_k", dtype);
  }
  /// f32 numbers in either dtype, so that both start from the same.
  static Tensor drawn(const Shape& shape, std::uint32_t id, double scale, Dtype dtype) {
    Tensor x = parameter(shape, "x" + std::to_string(id), dtype);
    std::vector<double> values = draw(shape.size(), 11, id);
    for (double& value : values) value = double(float(scale * value));
    x.copy_from(values);
    return x;
  }
  Tensors parameters() const { return {q, k, v, options.weight_q, options.weight_k, options.bias_q, options.bias_k}; }
  Tensor run() const { return linear_attention(q, k, v, options).o; }
};

void set(const Tensor& x, std::int64_t first, std::int64_t count, double value) {
  std::vector<double> all = x.to_vector();
  std::fill_n(all.begin() + first, count, value);
  x.copy_from(all);
}

Tensor tokens(std::int64_t B, std::int64_t T, const std::function<int(std::int64_t, std::int64_t)>& f) {
  std::vector<double> values;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) values.push_back(f(b, t));
  return constant({B, T}, values, Dtype::i32);
}

Tensor cotangent_for(const Tensor& y, std::uint32_t id = 77) { return constant(y.shape(), draw(y.size(), 3, id), y.dtype()); }

/// Result and gradients of all parameters for a fixed random cotangent.
std::vector<std::vector<double>> outcome(const Tensor& y, const Tensors& parameters, const Tensor& cotangent = {}) {
  for (const Tensor& p : parameters) p.grad().fill(0);
  std::vector<std::vector<double>> out{y.to_vector()};
  backward(y, cotangent ? cotangent : cotangent_for(y));
  for (const Tensor& p : parameters) out.push_back(p.grad().to_vector());
  return out;
}

bool finite(const std::vector<std::vector<double>>& all) {
  for (const auto& values : all)
    for (double x : values)
      if (!std::isfinite(x)) return false;
  return true;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) { return rms(difference(a, b)) / std::max(rms(b), 1e-300); }

/// Hedgehog attention by its definition, in double and without any shift: one head, causal.
std::vector<double> naive_hedgehog(const Problem& p) {
  const auto q = p.q.to_vector(), k = p.k.to_vector(), v = p.v.to_vector(), wq = p.options.weight_q.to_vector(),
             wk = p.options.weight_k.to_vector(), bq = p.options.bias_q.to_vector(), bk = p.options.bias_k.to_vector();
  auto feature = [&](const std::vector<double>& x, const std::vector<double>& w, const std::vector<double>& b, std::int64_t t, std::int64_t r) {
    double u = b[r];
    for (std::int64_t d = 0; d < p.D; ++d) u += x[t * p.D + d] * w[d * p.width + r];
    return u;
  };
  std::vector<double> o(std::size_t(p.T * p.Dv));
  for (std::int64_t i = 0; i < p.T; ++i) {
    double den = 0;
    for (std::int64_t j = 0; j <= i; ++j) {
      double score = 0;
      for (std::int64_t r = 0; r < p.width; ++r) score += 2 * std::cosh(feature(q, wq, bq, i, r) + feature(k, wk, bk, j, r));
      den += score;
      for (std::int64_t e = 0; e < p.Dv; ++e) o[i * p.Dv + e] += score * v[j * p.Dv + e];
    }
    for (std::int64_t e = 0; e < p.Dv; ++e) o[i * p.Dv + e] /= den;
  }
  return o;
}

/// One key of one feature stands at u = 120, in the middle of a chunk: rows before it see only what it dwarfs.
Problem with_outlier(Dtype dtype) {
  Problem p(dtype, 1, 9, 1, 3, 2, 3);
  p.options.weight_q.copy_from({1, 0, 0, 0, 1, 0, 0, 0, 1});
  p.options.weight_k.copy_from({1, 0, 0, 0, 1, 0, 0, 0, 1});
  set(p.k, 4 * 3 + 1, 1, 120);
  p.options.chunk = 6;
  return p;
}

}  // namespace

TEST_CASE("attention: NaN is not hidden by floors, nor in rows of nothing but NaN") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const char* map : {"relu", "elu", "hedgehog", "exp"})
    CHECK(std::isnan(feature_map(constant({1, 1, 1, 2}, {nan, nan}, Dtype::f64), {}, {}, map).to_vector()[0]));
  const Tensor q = constant({1, 2, 1, 2}, {1, 2, 3, 4}, Dtype::f64), k = constant({1, 2, 1, 2}, {nan, nan, nan, nan}, Dtype::f64);
  for (double y : softmax_attention(q, k, q).to_vector()) CHECK(std::isnan(y));
}

TEST_CASE("linear attention: the chunked, recurrent and quadratic forms agree, with the state carried across calls") {
  // f64: a few hundred roundings
  constexpr double kTolerance = 1e-12;
  for (const std::string& map : kMaps) {
    CAPTURE(map);
    Problem p(Dtype::f64, 2, 13, 3, 4, 5, 6);
    p.options.map = map;
    if (map == "identity")
      for (const Tensor& x : {p.q, p.k, p.options.weight_q, p.options.weight_k}) {
        std::vector<double> values = x.to_vector();
        for (double& value : values) value = std::abs(value) + 0.1;
        x.copy_from(values);
      }
    std::vector<std::vector<double>> whole;
    {
      const Expand guard = Expand::composed();
      whole = outcome(p.run(), p.parameters());
    }
    for (std::int64_t chunk : {0, 1, 3, 5, 12, 13, 64}) {
      CAPTURE(chunk);
      p.options.chunk = chunk;
      const auto ours = outcome(p.run(), p.parameters());
      for (std::size_t i = 0; i < ours.size(); ++i) CHECK(distance(ours[i], whole[i]) <= kTolerance);
    }
    // two calls, the second starting from the state of the first
    p.options.chunk = 4;
    const std::int64_t first = 6;
    const Tensors q = split(p.q, {first, p.T - first}, 1), k = split(p.k, {first, p.T - first}, 1), v = split(p.v, {first, p.T - first}, 1);
    LinearAttentionOptions options = p.options;
    options.final_state = true;
    const LinearAttentionResult begin = linear_attention(q[0], k[0], v[0], options);
    options.final_state = false;
    options.initial_state = begin.final_state;
    const Tensor o = concat({begin.o, linear_attention(q[1], k[1], v[1], options).o}, 1);
    const auto carried = outcome(o, p.parameters());
    for (std::size_t i = 0; i < carried.size(); ++i) CHECK(distance(carried[i], whole[i]) <= kTolerance);
    // prefill, then token by token
    const no_grad guard;
    const LinearAttentionStepOptions maps{p.options.weight_q, p.options.weight_k, p.options.bias_q, p.options.bias_k, map, 1};
    const Tensor memory = state(begin.final_state.shape(), Dtype::f64, "state");
    memory.copy_from(begin.final_state.to_vector());
    std::vector<std::int64_t> ones(std::size_t(p.T - first), 1);
    const Tensors qs = split(q[1], ones, 1), ks = split(k[1], ones, 1), vs = split(v[1], ones, 1);
    Tensors rows{begin.o};
    for (std::size_t t = 0; t < ones.size(); ++t) rows.push_back(linear_attention_step(qs[t], ks[t], vs[t], memory, maps));
    CHECK(distance(concat(rows, 1).to_vector(), whole[0]) <= kTolerance);
    // and from nothing, several tokens a call
    memory.fill(0);
    CHECK(distance(linear_attention_step(p.q, p.k, p.v, memory, maps).to_vector(), whole[0]) <= kTolerance);
  }
}

TEST_CASE("linear attention: values of one head by the definition") {
  Problem p(Dtype::f64, 1, 11, 1, 3, 4, 5);
  p.options.chunk = 4;
  CHECK(distance(p.run().to_vector(), naive_hedgehog(p)) <= 1e-13);
  clear_tape();
}

TEST_CASE("attention: documents and padding do not leak, not by a bit, forward or backward") {
  // tokens [0, 5) are one document, [5, 11) the next; token 3 is padding
  constexpr std::int64_t kT = 11, kCut = 5, kPad = 3;
  for (int kind = 0; kind < 5; ++kind)
    for (bool causal : {true, false}) {
      CAPTURE(kind);
      CAPTURE(causal);
      Problem p(Dtype::f32, 2, kT, 2, 4, 3, 4);
      const Tensor start = tokens(2, kT, [](std::int64_t, std::int64_t t) { return t < kCut ? 0 : int(kCut); });
      const Tensor mask = tokens(2, kT, [](std::int64_t, std::int64_t t) { return t != kPad; });
      p.options.document_start = start, p.options.mask = mask;
      p.options.causal = causal;
      p.options.chunk = 4;
      if (kind) p.options.map = kMaps[std::size_t(kind - 1) * 2 % 6];
      auto run = [&] { return kind ? p.run() : softmax_attention(p.q, p.k, p.v, {start, mask, causal, 0}); };
      // only rows of the first document are asked for
      std::vector<double> numbers = draw(2 * kT * 2 * 3, 3, 78);
      for (std::size_t i = 0; i < numbers.size(); ++i)
        if (std::int64_t(i) / 6 % kT >= kCut) numbers[i] = 0;
      const Tensor cotangent = constant({2, kT, 2, 3}, numbers);
      const auto before = outcome(run(), p.parameters(), cotangent);
      for (std::size_t i = 1; i <= 3; ++i)
        for (std::int64_t e = 0; e < std::int64_t(before[i].size()); ++e) {
          const std::int64_t t = e / (2 * (i == 3 ? 3 : 4)) % kT;
          if (t >= kCut || (t == kPad && i > 1)) REQUIRE(before[i][std::size_t(e)] == 0);
        }
      // other numbers in the second document, and in the padding where it is a key
      for (std::int64_t b = 0; b < 2; ++b) {
        for (const Tensor& x : {p.q, p.k}) set(x, (b * kT + kCut) * 8, (kT - kCut) * 8, 7);
        set(p.v, (b * kT + kCut) * 6, (kT - kCut) * 6, -9);
        set(p.k, (b * kT + kPad) * 8, 8, 50);
        set(p.v, (b * kT + kPad) * 6, 6, 1e6);
      }
      const auto after = outcome(run(), p.parameters(), cotangent);
      for (std::int64_t e = 0; e < std::int64_t(before[0].size()); ++e)
        if (e / 6 % kT < kCut) REQUIRE(before[0][std::size_t(e)] == after[0][std::size_t(e)]);
      for (std::size_t i = 1; i < before.size(); ++i) CHECK(before[i] == after[i]);
    }
}

TEST_CASE("attention: a row that sees no token gives 0 and no gradient") {
  for (bool causal : {true, false})
    for (int kind = 0; kind < 2; ++kind) {
      Problem p(Dtype::f32, 1, 6, 1, 3, 2, 3);
      p.options.mask = tokens(1, 6, [&](std::int64_t, std::int64_t t) { return causal && t > 3; });
      p.options.causal = causal;
      p.options.chunk = 4;
      const auto all = outcome(kind ? softmax_attention(p.q, p.k, p.v, {{}, p.options.mask, causal, 0}) : p.run(), p.parameters());
      CHECK(finite(all));
      for (std::size_t e = 0; e < 8; ++e) CHECK(all[0][e] == 0);
      for (std::size_t e = 0; e < 12; ++e) CHECK(all[1][e] == 0);
    }
}

TEST_CASE("linear attention: the gradient of the normaliser reaches k") {
  all_ops();
  const Op& op = find_op("linear_attention");
  const auto fault = std::find_if(op.faults.begin(), op.faults.end(), [](const Fault& f) { return f.name == "normaliser to k"; });
  REQUIRE(fault != op.faults.end());
  Problem p(Dtype::f64, 1, 12, 2, 4, 3, 4);
  const auto right = outcome(p.run(), p.parameters());
  const Tensors arguments{p.q, p.k, p.v, p.options.weight_q, p.options.weight_k, p.options.bias_q, p.options.bias_k};
  const auto wrong = outcome(fault->composed(complete(op, {}), arguments)[0], p.parameters());
  CHECK(distance(wrong[0], right[0]) <= 1e-12);
  CHECK(distance(wrong[1], right[1]) <= 1e-12);
  CHECK(distance(wrong[2], right[2]) >= 0.2);
  CHECK(distance(wrong[3], right[3]) <= 1e-12);
}

TEST_CASE("stabilisation: +t on a feature of the keys and -t on that of the queries changes nothing") {
  for (const char* map : {"hedgehog", "exp"})
    for (bool causal : {true, false})
      for (double t : {20.0, 50.0, 200.0}) {
        CAPTURE(map);
        CAPTURE(causal);
        CAPTURE(t);
        Problem p(Dtype::f32, 2, 19, 2, 4, 3, 5);
        p.options.map = map;
        p.options.causal = causal;
        p.options.chunk = 4;
        const auto before = outcome(p.run(), p.parameters());
        // two features of the first head in opposite directions, one of the second
        p.options.bias_k.copy_from({0, t, 0, -t, 0, t, 0, 0, 0, 0});
        p.options.bias_q.copy_from({0, -t, 0, t, 0, -t, 0, 0, 0, 0});
        const auto after = outcome(p.run(), p.parameters());
        // u is rounded at t 2^-24, its exponential with that relative error; a handful of them in each quotient
        const double tolerance = 16 * (t + 4) * 0x1p-24;
        for (std::size_t i = 0; i < before.size(); ++i) {
          CAPTURE(i);
          CHECK(distance(after[i], before[i]) <= tolerance);
        }
      }
}

TEST_CASE("stabilisation: any scale of the inputs is finite and right") {
  for (const std::string& map : kMaps) {
    if (map == "identity") continue;
    for (double scale : {1.0, 4.0, 16.0, 64.0}) {
      CAPTURE(map);
      CAPTURE(scale);
      for (bool causal : {true, false}) {
        Problem narrow(Dtype::f32, 2, 21, 2, 4, 3, 5, scale), wide(Dtype::f64, 2, 21, 2, 4, 3, 5, scale);
        for (Problem* p : {&narrow, &wide}) p->options.map = map, p->options.causal = causal, p->options.chunk = 8;
        const auto ours = outcome(narrow.run(), narrow.parameters());
        CHECK(finite(ours));
        const auto exact = outcome(wide.run(), wide.parameters());
        CHECK(finite(exact));
        // exponents reach some 10 · scale and are rounded at 2^-24 of that
        CHECK(distance(ours[0], exact[0]) <= 64 * (scale + 4) * 0x1p-24);
      }
    }
    // far beyond what f32 resolves: still no NaN
    for (double scale : {1e3, 1e8, 1e15}) {
      if (map == "elu" || map == "relu") continue;
      CAPTURE(map);
      CAPTURE(scale);
      Problem p(Dtype::f32, 1, 21, 1, 4, 3, 5, scale);
      p.options.map = map;
      for (bool causal : {true, false}) {
        p.options.causal = causal;
        CHECK(finite(outcome(p.run(), p.parameters())));
      }
    }
  }
}

TEST_CASE("stabilisation: rows that a later key of the chunk dwarfs are redone in log space") {
  const Problem narrow = with_outlier(Dtype::f32), wide = with_outlier(Dtype::f64);
  const std::vector<double> exact = naive_hedgehog(wide);
  const std::int64_t before = linear_attention_log_space_rows();
  const auto ours = outcome(narrow.run(), narrow.parameters());
  const std::int64_t redone = linear_attention_log_space_rows() - before;
  // tokens 0 to 3 come before the outlier
  CHECK(redone == 4);
  CHECK(finite(ours));
  // exponents of 120 are rounded at 120 · 2^-24
  CHECK(distance(ours[0], exact) <= 16 * 120 * 0x1p-24);
  const auto in_f64 = outcome(wide.run(), wide.parameters());
  CHECK(distance(in_f64[0], exact) <= 1e-12);
  for (std::size_t i = 1; i < ours.size(); ++i) CHECK(distance(ours[i], in_f64[i]) <= 32 * 120 * 0x1p-24);
  // with a state before the chunk, too
  Problem p = with_outlier(Dtype::f64);
  p.options.chunk = 3;
  const std::int64_t earlier = linear_attention_log_space_rows();
  GradcheckReport report = gradcheck([&](const Tensors&) { return Tensors{p.run()}; }, {p.q, p.v, p.options.weight_q, p.options.bias_q});
  CHECK(report.passed());
  CHECK(linear_attention_log_space_rows() > earlier);
  const auto chunked = outcome(p.run(), p.parameters());
  for (std::size_t i = 0; i < chunked.size(); ++i) CHECK(distance(chunked[i], in_f64[i]) <= 1e-11);
}

TEST_CASE("attention: long sequences in f32 stay at rounding of f64") {
  Problem narrow(Dtype::f32, 1, 700, 2, 6, 5, 6), wide(Dtype::f64, 1, 700, 2, 6, 5, 6);
  const auto ours = outcome(narrow.run(), narrow.parameters()), exact = outcome(wide.run(), wide.parameters());
  for (std::size_t i = 0; i < 6; ++i) CHECK(distance(ours[i], exact[i]) <= 200 * 0x1p-24);
  const auto soft = outcome(softmax_attention(narrow.q, narrow.k, narrow.v), {narrow.q, narrow.k, narrow.v});
  const auto soft_exact = outcome(softmax_attention(wide.q, wide.k, wide.v), {wide.q, wide.k, wide.v});
  for (std::size_t i = 0; i < soft.size(); ++i) CHECK(distance(soft[i], soft_exact[i]) <= 200 * 0x1p-24);
}

TEST_CASE("attention: the same bits for any number of threads") {
  const int threads = thread_count();
  Problem p(Dtype::f32, 3, 90, 3, 8, 8, 8);
  p.options.chunk = 32;
  std::vector<std::vector<double>> linear, soft;
  for (int count : {1, 2, 5}) {
    set_thread_count(count);
    const auto a = outcome(p.run(), p.parameters()), b = outcome(softmax_attention(p.q, p.k, p.v), {p.q, p.k, p.v});
    if (count == 1) linear = a, soft = b;
    CHECK(a == linear);
    CHECK(b == soft);
  }
  set_thread_count(threads);
}

TEST_CASE("softmax attention: decoding with a cache gives the rows of the whole, and a full cache is an error") {
  const no_grad guard;
  Problem p(Dtype::f64, 2, 9, 4, 3, 3, 3);
  const Tensor k = Problem::drawn({2, 9, 2, 3}, 8, 1, Dtype::f64), v = Problem::drawn({2, 9, 2, 3}, 9, 1, Dtype::f64);
  const std::vector<double> whole = softmax_attention(p.q, k, v).to_vector();
  const Tensor cache = state({2, 9, 2, 2, 3}, Dtype::f64, "cache"), position = state({1}, Dtype::i32, "position");
  const std::vector<std::int64_t> cuts{4, 1, 1, 3};
  const Tensors qs = split(p.q, cuts, 1), ks = split(k, cuts, 1), vs = split(v, cuts, 1);
  Tensors rows;
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    rows.push_back(softmax_attention_step(qs[i], ks[i], vs[i], cache, position));
    position.as<std::int32_t>()[0] += std::int32_t(cuts[i]);
  }
  CHECK(distance(concat(rows, 1).to_vector(), whole) <= 1e-13);
  CHECK_THROWS_AS(softmax_attention_step(qs[1], ks[1], vs[1], cache, position), Error);
  CHECK(position.item() == 9);  // read, not raised: all layers of a model share it
}
TEST_CASE("attention: wrong arguments are refused with what was expected") {
  auto message = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const ShapeError& e) {
      return e.what();
    }
    return "";
  };
  const Tensor q = input({2, 5, 6, 4}, "q"), k = input({2, 5, 4, 4}, "k"), v = input({2, 5, 4, 3}, "v");
  CHECK(message([&] { linear_attention(q, k, v); }).find("multiple of the key heads") != std::string::npos);
  CHECK(message([&] { linear_attention(k, k, v, {.map = "hedgehg"}); }).find("did you mean 'hedgehog'?") != std::string::npos);
  CHECK(message([&] { linear_attention(k, k, v, {.weight_q = input({4, 4, 4}, "w")}); }).find("give both or neither") != std::string::npos);
  CHECK(message([&] { linear_attention(k, k, v, {.chunk = -1}); }).find("chunk must be positive") != std::string::npos);
  CHECK(message([&] { linear_attention(k, k, v, {.temperature = 2}); }).find("temperature belongs to the map 'exp'") != std::string::npos);
  const Tensor odd = input({2, 5, 4, 3}, "odd"), memory = state({2, 4, 6, 5}, Dtype::f32, "memory"), table = input({5, 3}, "table");
  const auto says = [&](const char* part, const std::function<void()>& call) { CHECK(message(call).find(part) != std::string::npos); };
  says("rotary must have shape (T, D) = (5, 4)", [&] { linear_attention(k, k, v, {.rotary = input({4, 4}, "table")}); });
  says("rotary must be f32", [&] { linear_attention(k, k, v, {.rotary = input({5, 4}, "table", Dtype::f64)}); });
  says("D must be even", [&] { linear_attention(odd, odd, v, {.rotary = table}); });
  says("D must be even", [&] { linear_attention_step(odd, odd, odd, memory, {.rotary = table}); });
  CHECK(message([&] { softmax_attention(k, k, v, {.mask = input({2, 5}, "mask")}); }).find("mask must be i32") != std::string::npos);
}
