#include "ops/dropout.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/random.h"
#include "ops/check.h"

namespace hedgehog {

extern const Op kDropout;

namespace {

Layout infer_dropout(const Attributes& a, std::span<const Meta> in) {
  const double rate = a.real("rate");
  const std::int64_t id = a.integer("id");
  check_floating(kDropout, "x", in[0]);
  if (!(rate >= 0 && rate < 1)) fail(kDropout, fmt::format("rate must be in [0, 1), but is {}; 0.1 is usual", rate));
  if (id < 0 || id >= (std::int64_t(1) << 32)) fail(kDropout, fmt::format("id must be from 0 to 2^32 - 1, but is {}", id));
  if (!(in[1].dtype == Dtype::f64 && in[1].shape == Shape{kStepStateSize}))
    fail(kDropout, fmt::format("step must be f64 (8), but is {} {}; make it with step_state()", name_of(in[1].dtype), in[1].shape.text()));
  return {{in[0]}, {}};
}

/// Random words of `kLanes` blocks of four elements each, from block `first` on: Random::words, lane by lane so that it
/// vectorises.
constexpr int kLanes = 16;
inline void draw_words(const Random& random, std::uint64_t first, std::uint32_t* words) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::uint64_t block = first + std::uint64_t(lane);
    std::uint32_t c0 = std::uint32_t(block), c1 = std::uint32_t(block >> 32), c2 = random.id, c3 = random.step;
    std::uint32_t k0 = std::uint32_t(random.seed), k1 = std::uint32_t(random.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t(0xD2511F53u) * c0, b = std::uint64_t(0xCD9E8D57u) * c2;
      const std::uint32_t n0 = std::uint32_t(b >> 32) ^ c1 ^ k0, n2 = std::uint32_t(a >> 32) ^ c3 ^ k1;
      c1 = std::uint32_t(b);
      c3 = std::uint32_t(a);
      c0 = n0;
      c2 = n2;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[4 * lane] = c0;
    words[4 * lane + 1] = c1;
    words[4 * lane + 2] = c2;
    words[4 * lane + 3] = c3;
  }
}

/// y (+)= x / (1 - rate) where kept. `masks` false: everything is kept, as a wrong backward would.
template <class T>
void drop(const Call& c, const Ref& x, const Ref& y, Mode mode, bool masks) {
  const double* const step = c.inputs[1].as<double>();
  const Random random{std::uint64_t(step[kSeed]), std::uint32_t(c.attributes.integer("id")), std::uint32_t(std::int64_t(step[kRngStep]))};
  const double rate = c.attributes.real("rate");
  // as Random::uniform compares: 24 bits, in f32
  const float threshold = masks ? float(rate) : 0.0f;
  const T factor = T(1.0 / (1.0 - rate));
  const std::int64_t size = x.size(), sequence = x.shape.rank() ? size / x.shape[0] : 1;
  const std::int64_t origin = std::int64_t(step[kFirstSequence]) * sequence;
  const bool add = mode == Mode::accumulate;
  constexpr std::int64_t kRun = 4 * kLanes;
  // runs start at whole blocks of the global index, so the first and the last may be partial
  const std::int64_t first_run = origin / kRun, runs = (origin + size + kRun - 1) / kRun - first_run;
  parallel_for(runs, 64, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) std::uint32_t words[kRun];
    for (std::int64_t run = begin; run < end; ++run) {
      const std::int64_t start = (first_run + run) * kRun;  // global index of words[0]
      draw_words(random, std::uint64_t(start / 4), words);
      const std::int64_t from = std::max<std::int64_t>(0, origin - start), to = std::min(kRun, origin + size - start);
      const std::uint32_t* const word = words + from;
      const T* const in = x.as<T>() + (start - origin + from);
      T* const out = y.as<T>() + (start - origin + from);
#pragma omp simd
      for (std::int64_t i = 0; i < to - from; ++i) {
        const T kept = float(std::int32_t(word[i] >> 8)) * 0x1p-24f >= threshold ? factor * in[i] : T(0);
        out[i] = add ? out[i] + kept : kept;
      }
    }
  });
}

void backward_dropout(const Call& c, bool masks) {
  if (!c.dx[0]) return;
  dispatch(c.dx[0].dtype, [&](auto zero) { drop<decltype(zero)>(c, c.dy[0], c.dx[0], c.modes[0], masks); });
}

}  // namespace

const Op kDropout{
    .name = "dropout",
    .arguments = {{"x"}, {"step", false, false}},
    .results = {"y"},
    .attributes = {{"rate", 0.1}, {"id", 0}},
    .infer = infer_dropout,
    .forward = {[](const Call& c) {
      dispatch(c.inputs[0].dtype, [&](auto zero) { drop<decltype(zero)>(c, c.inputs[0], c.outputs[0], Mode::write, true); });
    }},
    .backward = {[](const Call& c) { backward_dropout(c, true); }},
    .reads = {.inputs = bits(1)},
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double n = 20.0 * double(in[0].shape.size());
      return std::pair{Work{n}, Work{n}};
    },
    .formula_forward = "y = x / (1 - rate) where uniform(seed, id, rng step, element) >= rate, else 0",
    .formula_backward = "dx = dy / (1 - rate) where uniform >= rate, else 0",
    .samples = {{"smallest", {{"rate", 0.25}}, {normal({1}), numbers({8}, {0, 0, 0, 0, 3, 0, 0, 0})}},
                {"half", {{"rate", 0.5}, {"id", 3}}, {normal({3, 37}), numbers({8}, {0, 2, 2, 0, 11, 0, 0, 0})}},
                {"second half of the batch", {{"rate", 0.2}, {"id", 1}}, {normal({2, 5, 7}), numbers({8}, {0, 2, 5, 0, 11, 2, 0, 0})}},
                {"none", {{"rate", 0.0}}, {normal({2, 3}), numbers({8}, {0, 0, 0, 0, 0, 0, 0, 0})}}},
    .faults = {{"mask", "dropped elements still get a gradient", [](const Call& c) { backward_dropout(c, false); }, {}, "half"}},
};

Tensor dropout(const Tensor& x, const Tensor& step, double rate, std::int64_t id, SourceLine where) {
  if (rate == 0 && x) return x;
  return apply(kDropout, {{"rate", rate}, {"id", id}}, {x, step}, where)[0];
}

}  // namespace hedgehog
