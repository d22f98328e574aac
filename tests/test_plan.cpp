#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/executor.h"
#include "core/plan.h"
#include "nn/recompute.h"
#include "core/random.h"
#include "tests/op_cases.h"
#include "tests/shape_device.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// A program of random calls on tensors of three widths, with backward; about `calls` forward entries.
Program random_program(std::uint64_t seed, int calls, const Tensor& x, const Tensors& weights) {
  return record([&] {
    const Random random{seed, 4, 0};
    std::uint64_t draw = 0;
    auto below = [&](std::size_t n) { return std::size_t(random.below(draw++, std::uint32_t(n))); };
    Tensors pool{tanh(matmul(x, weights[0]))};
    for (int i = 0; i < calls; ++i) {
      const Tensor a = pool[below(pool.size())];
      switch (below(6)) {
        case 0: pool.push_back(tanh(a)); break;
        case 1: pool.push_back(sigmoid(a)); break;
        case 2: pool.push_back(multiply(a, a)); break;
        case 3: pool.push_back(tanh(matmul(a, weights[below(weights.size())]))); break;
        case 4: {
          const std::int64_t half = a.shape().last() / 2;
          const Tensors b = split(a, {half, a.shape().last() - half});
          pool.push_back(concat({tanh(b[1]), b[0]}));
          break;
        }
        default: {
          const Tensor b = pool[below(pool.size())];
          pool.push_back(scale(add(a, b), 0.5));
        }
      }
    }
    Tensor loss = sum(pool.back());
    for (std::size_t i = 0; i + 1 < pool.size(); i += 3) loss = loss + sum(pool[i]);
    backward(loss);
    return Tensors{loss, pool[pool.size() / 2]};
  });
}

struct Model {
  Tensor x;
  Tensors weights;

  explicit Model(std::int64_t rows = 5, std::int64_t width = 8) : x(input({rows, width}, "x")) {
    x.copy_from(draw(x.size(), 1, 1));
    for (std::uint32_t i = 0; i < 3; ++i) {
      weights.push_back(parameter({width, width}, "w" + std::to_string(i)));
      weights.back().copy_from(draw(width * width, 2, i));
    }
  }
  void clear() const {
    for (const Tensor& w : weights) w.grad().fill(0);
  }
  std::vector<std::vector<std::byte>> run(const Program& program, const ExecutorOptions& options) const {
    clear();
    Executor executor(program, options);
    executor.run();
    std::vector<std::vector<std::byte>> out{bits_of(executor.output(0)), bits_of(executor.output(1))};
    for (const Tensor& w : weights) out.push_back(bits_of(w.grad()));
    return out;
  }
};

/// Lifetimes worked out again, from the list alone: every planned root from its first to its last touch.
struct Life {
  int first, last;
  Bytes bytes;
};
std::unordered_map<const Value*, Life> lifetimes(const Program& program) {
  std::unordered_map<const Value*, Life> lives;
  const int n = int(program.entries.size());
  for (int i = 0; i < n; ++i)
    for_each_touched(program.entries[std::size_t(i)], [&](const Tensor& t, bool) {
      const Tensor root = t.root();
      if (root.role() != Role::activation || root->storage) return;
      auto& life = lives.try_emplace(root.get(), Life{i, i, root.size() * size_of(root.dtype())}).first->second;
      life.last = i;
    });
  for (const Tensor& y : program.outputs)
    if (auto found = lives.find(y.root().get()); found != lives.end()) found->second.last = n;
  return lives;
}

}  // namespace

TEST_CASE("plan: no two tensors that live at the same time overlap, and each lies in the arena for its whole life") {
  const Model model;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    const Program program = random_program(seed, 12, model.x, model.weights);
    for (bool guards : {false, true}) {
      const Plan p = plan(program, {.reuse = true, .guards = guards});
      const Bytes gap = guards ? 64 : 0;
      for (const auto& [value, life] : lifetimes(program)) {
        REQUIRE(p.slot_of.count(value) == 1);
        const Slot& s = p.slots[std::size_t(p.slot_of.at(value))];
        CHECK(s.first <= life.first);
        CHECK(s.last >= life.last);
        CHECK(s.bytes >= life.bytes);
        CHECK(s.offset % 64 == 0);
        CHECK(s.offset >= gap);
        CHECK(s.offset + s.bytes + gap <= p.arena);
      }
      for (std::size_t a = 0; a < p.slots.size(); ++a)
        for (std::size_t b = a + 1; b < p.slots.size(); ++b) {
          const Slot &s = p.slots[a], &t = p.slots[b];
          if (s.bytes == 0 || t.bytes == 0 || s.last < t.first || t.last < s.first) continue;
          CHECK((s.offset + s.bytes + gap <= t.offset || t.offset + t.bytes + gap <= s.offset));
        }
    }
  }
}

TEST_CASE("plan: tensors that share a slot live one after the other, meeting in one entry that works in place") {
  const Model model;
  int shared = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    const Program program = random_program(seed, 12, model.x, model.weights);
    const Plan p = plan(program);
    std::unordered_map<int, std::vector<Life>> tenants;
    for (const auto& [value, life] : lifetimes(program)) tenants[p.slot_of.at(value)].push_back(life);
    for (auto& [slot, lives] : tenants) {
      std::sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.first < b.first; });
      for (std::size_t i = 1; i < lives.size(); ++i) {
        CHECK(lives[i - 1].last <= lives[i].first);
        ++shared;
      }
    }
  }
  CHECK(shared > 0);
}

TEST_CASE("plan: the arena holds at least what lives at once, and no more than everything") {
  const Model model;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    const Program program = random_program(seed, 15, model.x, model.weights);
    const Plan p = plan(program), apart = plan(program, {.reuse = false});
    Bytes most = 0;
    for (int i = 0; i <= int(program.entries.size()); ++i) {
      Bytes live = 0;
      for (const Slot& s : p.slots)
        if (s.first <= i && i <= s.last) live += s.bytes;
      most = std::max(most, live);
    }
    CHECK(p.arena >= most);
    CHECK(p.arena <= apart.arena);
    Bytes all = 0;
    for (const Slot& s : apart.slots) all += s.bytes;
    CHECK(apart.arena == all);
    // a plan depends on the list alone
    CHECK(plan(program).arena == p.arena);
  }
}

TEST_CASE("plan: a planned run of random programs has the bits of one without reuse, and of one with poison and guards") {
  const Model model;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    const Program program = random_program(seed, 12, model.x, model.weights);
    const auto apart = model.run(program, {.reuse = false});
    CHECK(model.run(program, {}) == apart);
    CHECK(model.run(program, {.poison = true}) == apart);
    const Program leaner = recompute(program, 0);
    CHECK(plan(leaner).arena <= plan(program).arena);
    CHECK(model.run(leaner, {}) == apart);
    CHECK(model.run(leaner, {.poison = true}) == apart);
  }
}

TEST_CASE("plan: executors may share one arena") {
  const Model model;
  const auto arena = std::make_shared<Arena>();
  const Program small = random_program(1, 4, model.x, model.weights), large = random_program(2, 20, model.x, model.weights);
  const auto expected_small = model.run(small, {}), expected_large = model.run(large, {});
  Executor first(small, {.arena = arena});
  const auto generation = arena->generation();
  Executor second(large, {.arena = arena});
  CHECK(arena->generation() > generation);
  for (int i = 0; i < 2; ++i) {
    first.run();
    CHECK(bits_of(first.output(0)) == expected_small[0]);
    second.run();
    CHECK(bits_of(second.output(0)) == expected_large[0]);
  }
}

TEST_CASE("plan: what a device keeps for itself lives until backward") {
  /// Keeps numbers of its own of every tanh.
  class KeepingDevice final : public ShapeDevice {
   public:
    std::vector<Meta> kept(const Op& op, const Attributes&, std::span<const Meta>) const override {
      return op.name == "tanh" ? std::vector<Meta>{{Shape{33}, Dtype::f32}} : std::vector<Meta>{};
    }
  } device;
  const OnDevice guard(device);
  const Tensor x = parameter({3, 5}, "x");
  const Program program = record([&] {
    const Tensor loss = sum(tanh(x));
    backward(loss);
    return Tensors{loss};
  });
  Tensor kept;
  int written = 0, read = 0;
  for (const Entry& e : program.entries) {
    if (e.op->name != "tanh") continue;
    REQUIRE(!e.saved.empty());
    if (!e.backward) kept = e.saved.back();
    CHECK(e.saved.back() == kept);
    for_each_touched(e, [&](const Tensor& t, bool writes) { (t == kept && (writes ? ++written : ++read)); });
  }
  CHECK(kept.shape() == Shape{33});
  CHECK(written == 1);
  CHECK(read == 1);
  Executor(program).run();
}

TEST_CASE("plan: recompute trades memory for repeated calls") {
  // a long chain of cheap calls whose results backward all reads
  const Model model(64, 32);
  const Program program = record([&] {
    Tensor y = matmul(model.x, model.weights[0]);
    for (int i = 0; i < 8; ++i) {
      Tensor h = tanh(y);
      y = matmul(gelu(add(h, y)), model.weights[std::size_t(i) % 3]);
    }
    const Tensor loss = sum(y);
    backward(loss);
    return Tensors{loss, loss};
  });
  const Bytes before = plan(program).arena;
  const Program leaner = recompute(program, 0);
  CHECK(plan(leaner).arena < before * 9 / 10);
  CHECK(leaner.entries.size() > program.entries.size());
  CHECK(account(leaner).flops > account(program).flops);
  CHECK(model.run(leaner, {.poison = true}) == model.run(program, {}));
  // with room enough nothing changes
  CHECK(recompute(program, before).entries.size() == program.entries.size());
  // a budget in between is kept, and takes no more repeats than the smallest
  const Bytes budget = (before + plan(leaner).arena) / 2;
  const Program between = recompute(program, budget);
  CHECK(plan(between).arena <= budget);
  CHECK(between.entries.size() <= leaner.entries.size());
}

TEST_CASE("plan: the account knows the FLOPs of a product, forward and backward, and the peak memory") {
  const std::int64_t rows = 6, inner = 10, columns = 14;
  const Tensor x = parameter({rows, inner}, "x"), w = parameter({inner, columns}, "w");
  const Program program = record([&] {
    const Tensor y = matmul(x, w);
    backward(y);
    return Tensors{y};
  });
  const Cost cost = account(program);
  REQUIRE(cost.by_op.count("matmul") == 1);
  REQUIRE(cost.by_op.count("matmul backward") == 1);
  // one product of 2 · rows · inner · columns; backward has two of the same size
  CHECK(cost.by_op.at("matmul").flops == 2.0 * double(rows * inner * columns));
  CHECK(cost.by_op.at("matmul backward").flops == 4.0 * double(rows * inner * columns));
  double flops = 0, bytes = 0;
  for (const auto& [name, work] : cost.by_op) flops += work.flops, bytes += work.bytes;
  CHECK(cost.flops == flops);
  CHECK(cost.bytes == bytes);
  CHECK(cost.peak == cost.arena + cost.persistent);
  // parameters and gradients; y and dy live together
  CHECK(cost.persistent >= 4 * 2 * (rows * inner + inner * columns));
  CHECK(cost.arena >= 4 * 2 * rows * columns);
  // nothing ran
  for (double g : w.grad().to_vector()) CHECK(g == 0);
}

TEST_CASE("plan: every op states its cost as a finite number above 0") {
  for (const Op* op : all_ops()) {
    if (op->views) continue;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      const Tensors arguments = draw_arguments(*op, sample, 1, Dtype::f32);
      const Cost cost = account(record([&] {
        const Tensors results = apply(*op, sample.attributes, arguments);
        for (const Tensor& y : results)
          if (y.wants_gradient()) {
            backward(y, input(y.shape(), "dy", y.dtype()));
            break;
          }
        return results;
      }));
      for (const auto& [name, work] : cost.by_op) {
        CAPTURE(name);
        CHECK(std::isfinite(work.flops));
        CHECK(work.flops >= 0);
        CHECK(work.bytes > 0);
      }
    }
  }
}
