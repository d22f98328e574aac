#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/device.h"
#include "core/error.h"
#include "core/executor.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/tape_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

std::vector<double> counting(std::int64_t n, double first = 0) {
  std::vector<double> v(static_cast<std::size_t>(n));
  std::iota(v.begin(), v.end(), first);
  return v;
}

void storage_and_copies() {
  Device& device = current_device();
  const Storage block(1000), other(1000);
  CHECK(&block.device() == &device);
  CHECK(reinterpret_cast<std::uintptr_t>(block.data()) % (device.host() ? 64 : 256) == 0);
  std::vector<unsigned char> host(1000);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<unsigned char>(i * 7);
  device.copy_in(block.data(), host.data(), 1000);
  const std::vector<unsigned char> sent = host;
  std::fill(host.begin(), host.end(), 0);  // free to change as soon as copy_in returns
  device.copy(other.data(), block.data(), 1000);
  device.fill(other.data() + 100, 0xab, 50);
  device.copy_out(host.data(), other.data(), 1000);
  for (std::size_t i = 0; i < host.size(); ++i) {
    CAPTURE(i);
    REQUIRE(int(host[i]) == int(i >= 100 && i < 150 ? 0xab : sent[i]));
  }
  const auto owner = std::make_shared<Storage>(64);
  Storage borrowed(owner->data() + 16, 16, owner);
  CHECK(&borrowed.device() == &device);
  CHECK(&borrowed.whole() == owner.get());
  device.synchronize();
}

void tensors_by_copies() {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32}) {
    CAPTURE(std::string(name_of(dtype)));
    const Tensor x = input({3, 8}, "x", dtype);
    CHECK(x.to_vector() == std::vector<double>(24, 0.0));
    x.copy_from(counting(24));
    CHECK(x.to_vector() == counting(24));
    const std::uint64_t version = x.version();
    x.fill(5);
    CHECK(x.to_vector() == std::vector<double>(24, 5.0));
    x.fill(0);
    CHECK(x.to_vector() == std::vector<double>(24, 0.0));
    CHECK(x.version() > version);
  }
  const Tensor x = input({3, 8}, "x");
  x.copy_from(counting(24));
  float three[3] = {};
  x.read(three, 10, 3);
  CHECK(three[0] == 10);
  CHECK(three[2] == 12);
  const float written[2] = {-1, -2};
  x.write(written, 22, 2);
  CHECK(x.to_vector()[21] == 21);
  CHECK(x.to_vector()[22] == -1);
  CHECK(x.to_vector()[23] == -2);
  CHECK_THROWS_AS(x.copy_from(counting(23)), ShapeError);
}

void strided_views() {
  const Tensor x = input({3, 8}, "x");
  x.copy_from(counting(24));
  const Tensors parts = split(x, {3, 4, 1});
  CHECK(parts[1].to_vector() == std::vector<double>{3, 4, 5, 6, 11, 12, 13, 14, 19, 20, 21, 22});
  parts[1].copy_from(std::vector<double>(12, -1.0));
  // nothing beside the window changed
  CHECK(parts[0].to_vector() == std::vector<double>{0, 1, 2, 8, 9, 10, 16, 17, 18});
  CHECK(parts[2].to_vector() == std::vector<double>{7, 15, 23});
  parts[2].fill(0);
  CHECK(x.to_vector()[23] == 0);
  CHECK(x.to_vector()[22] == -1);
  CHECK(x.to_vector()[16] == 16);
  CHECK(contiguous(parts[0]).to_vector() == parts[0].to_vector());
}

/// Tensors of every size and type that a step is fed, through more steps than there are slots.
void feed_in_order() {
  Device& device = current_device();
  const Tensor ids = input({5}, "ids", Dtype::i32), scale = input({1}, "scale");
  const Tensor slots = state({4}, Dtype::f64, "slots");
  const Tensor slot = declare({1}, Dtype::f64);
  slot->base = slots;
  slot->offset = 2;
  const auto feed = device.feed({ids, scale, slot});
  const auto results = device.readback();
  auto stage = [&](int step) {
    auto* to = static_cast<std::int32_t*>(feed->stage(0));
    for (int i = 0; i < 5; ++i) to[i] = 10 * step + i;
    *static_cast<float*>(feed->stage(1)) = 0.5f * float(step);
    *static_cast<double*>(feed->stage(2)) = 0.1 * step;
    feed->commit();
  };
  auto check = [&](int step) {
    CAPTURE(step);
    const std::vector<double> got = results->fetch();
    REQUIRE(got.size() == 10);
    for (int i = 0; i < 5; ++i) CHECK(got[std::size_t(i)] == 10 * step + i);
    CHECK(got[5] == 0.5 * step);
    CHECK(got[6] == 0);
    CHECK(got[7] == 0);
    CHECK(got[8] == 0.1 * step);
    CHECK(got[9] == 0);
  };
  for (int step = 0; step < 9; ++step) {
    stage(step);
    feed->run([&] { feed->take(); });
    results->take({ids, scale, slots});
    // the result of one step is fetched while the next is under way
    if (step > 0) check(step - 1);
  }
  check(8);
  // the GPU has two slots: what is staged while a step runs belongs to the step after it
  if (device.host()) return;
  stage(20);
  stage(21);
  for (int step : {20, 21}) {
    feed->run([&] { feed->take(); });
    results->take({ids, scale, slots});
    check(step);
  }
}

/// A captured step takes what is fed for each of its runs.
void feed_of_a_replayed_step() {
  Device& device = current_device();
  const Tensor x = input({3}, "x"), w = parameter({3}, "w");
  w.copy_from({1, 2, 3});
  const Program program = record([&] {
    const Tensor y = sum(x * w);
    backward(y);
    return Tensors{y};
  });
  const std::shared_ptr<Feed> feed = device.feed({x});
  Executor run(program, {.graph = true, .first = [feed] { feed->take(); }});
  const auto losses = device.readback();
  double gradient = 0;
  for (int step = 1; step <= 7; ++step) {
    auto* to = static_cast<float*>(feed->stage(0));
    for (int i = 0; i < 3; ++i) to[i] = float(step);
    feed->commit();
    feed->run([&] { run.run(); });
    losses->take({run.output(0)});
    CHECK(losses->fetch()[0] == 6 * step);
    gradient += step;
    CHECK(w.grad().to_vector() == std::vector<double>(3, gradient));
  }
}

void readback_keeps_what_was() {
  const auto results = current_device().readback();
  const Tensor x = input({2}, "x"), n = input({1}, "n", Dtype::i32), b = input({1}, "b", Dtype::bf16);
  for (int i = 0; i < Readback::kDepth; ++i) {
    x.copy_from({double(i), -double(i)});
    n.copy_from({100.0 + i});
    b.copy_from({0.5 * i});
    results->take({x, n, b});
  }
  for (int i = 0; i < Readback::kDepth; ++i) CHECK(results->fetch() == std::vector<double>{double(i), -double(i), 100.0 + i, 0.5 * i});
}

void capture_replays() {
  Device& device = current_device();
  const Tensor x = state({4}, Dtype::f32, "x"), one = constant({4}, {1, 1, 1, 1});
  const Tensor y = state({4}, Dtype::f32, "y");
  auto add_once = [&] {
    device.copy(y.data(), x.data(), 16);
    device.copy(x.data(), one.data(), 16);
  };
  x.fill(3);
  add_once();  // kernels that a capture must not wait for are loaded
  CHECK(y.to_vector() == std::vector<double>(4, 3.0));
  x.fill(7);
  const auto replay = device.capture(add_once);
  // nothing ran
  CHECK(y.to_vector() == std::vector<double>(4, 3.0));
  CHECK(x.to_vector() == std::vector<double>(4, 7.0));
  replay->run();
  CHECK(y.to_vector() == std::vector<double>(4, 7.0));
  replay->run();
  CHECK(y.to_vector() == std::vector<double>(4, 1.0));
  // an error inside a capture leaves the device usable; the CPU looks at the work only when it runs
  if (!device.host()) CHECK_THROWS_AS(device.capture([&] { throw Error("[test] stop"); }), Error);
  x.fill(9);
  replay->run();
  CHECK(y.to_vector() == std::vector<double>(4, 9.0));
}

/// A small product and sum, whose parameters may be moved.
struct Small {
  Tensor x = input({4, 8}, "x"), w = parameter({8, 8}, "w");
  Program program;
  Small() {
    x.copy_from(draw(32, 1, 1));
    w.copy_from(draw(64, 1, 2));
    program = record([this] {
      const Tensor loss = sum(square(matmul(x, w)));
      backward(loss);
      return Tensors{loss};
    });
  }
};

void moved_tensor_is_refused_or_followed() {
  const Small s;
  Executor planned(s.program), graph(s.program, {.graph = true});
  for (int i = 0; i < 3; ++i) graph.run();
  planned.run();
  const double loss = planned.output(0).item();
  CHECK(graph.output(0).item() == loss);
  const std::vector<double> values = s.w.to_vector();
  const auto kept = s.w->storage;  // so that the new block lies elsewhere
  s.w->storage = std::make_shared<Storage>(kept->bytes());
  s.w.copy_from(values);
  CHECK(mentions(error_of([&] { graph.run(); }), "has moved"));
  planned.run();
  CHECK(planned.output(0).item() == loss);
}

/// In whatever order executors that share an arena run, each gives its own result.
void shared_arena_in_any_order() {
  const Small a, b;
  b.x.copy_from(draw(32, 5, 1));
  Executor alone_a(a.program), alone_b(b.program);
  alone_a.run();
  alone_b.run();
  const double expected_a = alone_a.output(0).item(), expected_b = alone_b.output(0).item();
  REQUIRE(expected_a != expected_b);
  for (const bool graph : {false, true}) {
    CAPTURE(graph);
    const auto arena = std::make_shared<Arena>();
    Executor first(a.program, {.arena = arena, .graph = graph}), second(b.program, {.arena = arena, .graph = graph});
    for (const char which : std::string("abbabaaabbab")) {
      Executor& run = which == 'a' ? first : second;
      run.run();
      CHECK(run.output(0).item() == (which == 'a' ? expected_a : expected_b));
    }
  }
}

}  // namespace

HH_ON_BOTH("device: storage, copies and fills", storage_and_copies)
HH_ON_BOTH("device: tensors are written and read whole, in part and filled", tensors_by_copies)
HH_ON_BOTH("device: strided windows are written and read alone", strided_views)
HH_ON_BOTH("device: a feed keeps steps in order", feed_in_order)
HH_ON_BOTH("device: a feed of a replayed step", feed_of_a_replayed_step)
HH_ON_BOTH("device: a readback hands out what was there when it was taken", readback_keeps_what_was)
HH_ON_BOTH("device: a capture runs nothing, its replays do", capture_replays)
HH_ON_BOTH("device: a moved tensor is followed by a planned run and refused by a replay", moved_tensor_is_refused_or_followed)
HH_ON_BOTH("device: executors that share an arena run in any order", shared_arena_in_any_order)

TEST_CASE("device: without one, the reason is a sentence") {
  const std::string why = cuda_unavailable();
  if (why.empty()) {
    CHECK(std::string(cuda_device().name()) == "cuda");
    CHECK(!cuda_device().description().empty());
    return;
  }
  CHECK(mentions(error_of([] { cuda_device(); }), "[cuda] " + why));
  CHECK(std::count(why.begin(), why.end(), ' ') >= 4);
}

TEST_CASE("device: OnDevice nests, and ends with the thread's device as before") {
  CHECK(&current_device() == &cpu_device());
  {
    const OnDevice outer(cpu_device());
    const OnDevice inner(cpu_device());
  }
  CHECK(&current_device() == &cpu_device());
}

TEST_SUITE("device") {
  TEST_CASE("device: the host is refused a tensor's memory, with a sentence that says what to do") {
    on_cuda([] {
      const Tensor x = input({2, 3}, "weights");
      const std::string message = error_of([&] { x.as<float>(); });
      CAPTURE(message);
      CHECK(mentions(message, "'weights' (2, 3) lives on cuda"));
      CHECK(mentions(message, "to_vector"));
    });
  }

  TEST_CASE("device: too much memory is refused with a sentence, and the device goes on") {
    on_cuda([] {
      const std::string message = error_of([] { const Storage block(std::size_t(1) << 46); });
      CAPTURE(message);
      CHECK(mentions(message, "[memory] 65536.00 GiB of GPU memory could not be allocated"));
      CHECK(mentions(message, "smaller batch"));
      CHECK(current_device().free_memory() > 0);
      tensors_by_copies();
    });
  }

  TEST_CASE("device: tensors of two devices live side by side") {
    on_cuda([] {
      const Tensor there = constant({2}, {1, 2});
      Tensor here;
      {
        const OnDevice guard(cpu_device());
        here = constant({2}, {3, 4});
        CHECK((here + here).to_vector() == std::vector<double>{6, 8});
        CHECK(there.to_vector() == std::vector<double>{1, 2});
      }
      CHECK((there + there).to_vector() == std::vector<double>{2, 4});
      CHECK(here.as<float>()[1] == 4);
    });
  }

  TEST_CASE("device: an op without a kernel runs by its reference, one without either is refused") {
    on_cuda([] {
      auto infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; };
      // the kernel would give another result: it must not be called
      auto host_only = [](const Call&) { FAIL("the CPU's kernel was called with the GPU's memory"); };
      static const Op composed{.name = "test_composed",
                               .arguments = {{"x"}},
                               .results = {"y"},
                               .infer = infer,
                               .forward = {host_only},
                               .backward = {host_only},
                               .reference = [](const Attributes&, const Tensors& in) { return Tensors{square(in[0]) + in[0]}; }};
      static const Op alone{.name = "test_alone", .arguments = {{"x"}}, .results = {"y"}, .infer = infer, .forward = {host_only}};
      const Tensor x = parameter({3}, "x");
      x.copy_from({1, 2, 3});
      const Tensor y = apply(composed, {}, {x})[0];
      CHECK(y.to_vector() == std::vector<double>{2, 6, 12});
      backward(sum(y));
      CHECK(x.grad().to_vector() == std::vector<double>{3, 5, 7});
      const std::string message = error_of([&] { apply(alone, {}, {x}); });
      CAPTURE(message);
      CHECK(mentions(message, "[test_alone] has no forward kernel on cuda; compute on the CPU"));
      clear_tape();
    });
  }
}
