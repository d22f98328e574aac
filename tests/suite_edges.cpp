#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/error.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// What came of a call: nothing (it worked), or the message of a ShapeError. Any other exception fails the test.
std::optional<std::string> refusal(const Op& op, const Attributes& attributes, const Tensors& arguments) {
  std::optional<std::string> message;
  try {
    const no_grad guard;
    apply(op, attributes, arguments);
  } catch (const ShapeError& e) {
    message = e.what();
  } catch (const std::exception& e) {
    FAIL_CHECK("not a ShapeError: " << e.what());
  }
  clear_tape();
  return message;
}

/// "[op_name] a sentence".
void check_sentence(const Op& op, const std::string& message) {
  CAPTURE(message);
  const std::string start = "[" + op.name + "] ";
  CHECK(message.rfind(start, 0) == 0);
  // a sentence has several words and says more than that something is wrong
  CHECK(std::count(message.begin(), message.end(), ' ') >= 4);
}

void must_refuse(const Op& op, const Attributes& attributes, const Tensors& arguments) {
  const auto message = refusal(op, attributes, arguments);
  CHECK(message.has_value());
  if (message) check_sentence(op, *message);
}

void works_or_refuses(const Op& op, const Attributes& attributes, const Tensors& arguments) {
  if (const auto message = refusal(op, attributes, arguments)) check_sentence(op, *message);
}

/// The sample with one argument of another shape, drawn anew.
Tensors with_shape(const Op& op, Sample sample, std::size_t argument, const Shape& shape, Dtype dtype = Dtype::f64) {
  sample.inputs[argument].shape = shape;
  if (!sample.inputs[argument].values.empty()) sample.inputs[argument].values.resize(std::size_t(shape.size()), 0.0);
  return draw_arguments(op, sample, 1, dtype);
}

bool given(const Sample& sample, std::size_t argument) { return sample.inputs[argument].fill != SampleInput::Fill::none; }

template <class F>
void for_each_argument(F&& f) {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      for (std::size_t a = 0; a < sample.inputs.size(); ++a) {
        if (!given(sample, a)) continue;
        CAPTURE(op->arguments[a].name);
        f(*op, sample, a);
      }
    }
  }
}

Shape shape_of(std::vector<std::int64_t> extents) {
  Shape s;
  for (std::int64_t e : extents) s.push_back(e);
  return s;
}
std::vector<std::int64_t> extents_of(const Shape& s) {
  std::vector<std::int64_t> out;
  for (int i = 0; i < s.rank(); ++i) out.push_back(s[i]);
  return out;
}

}  // namespace

TEST_CASE("edges: an empty argument is refused with a sentence by every op") {
  for_each_argument([](const Op& op, const Sample& sample, std::size_t a) {
    for (int axis = 0; axis < sample.inputs[a].shape.rank(); ++axis) {
      CAPTURE(axis);
      Tensors arguments = draw_arguments(op, sample, 1);
      Shape s = sample.inputs[a].shape;
      s.set(axis, 0);
      arguments[a] = arguments[a].role() == Role::state ? state(s, arguments[a].dtype(), "x") : input(s, "x", arguments[a].dtype());
      must_refuse(op, sample.attributes, arguments);
    }
  });
}

TEST_CASE("edges: one extent more, one axis more and one axis less work or are refused with a sentence") {
  for_each_argument([](const Op& op, const Sample& sample, std::size_t a) {
    const Shape& shape = sample.inputs[a].shape;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      CAPTURE(axis);
      Shape s = shape;
      s.set(axis, s[axis] + 1);
      works_or_refuses(op, sample.attributes, with_shape(op, sample, a, s));
    }
    std::vector<std::int64_t> extents = extents_of(shape);
    if (extents.size() < std::size_t(Shape::kMaxRank)) {
      auto more = extents;
      more.insert(more.begin(), 2);
      works_or_refuses(op, sample.attributes, with_shape(op, sample, a, shape_of(more)));
      more.front() = 1;
      works_or_refuses(op, sample.attributes, with_shape(op, sample, a, shape_of(more)));
    }
    if (!extents.empty()) {
      extents.erase(extents.begin());
      works_or_refuses(op, sample.attributes, with_shape(op, sample, a, shape_of(extents)));
      works_or_refuses(op, sample.attributes, with_shape(op, sample, a, Shape{}));
    }
  });
}

TEST_CASE("edges: another dtype works or is refused with a sentence") {
  for_each_argument([](const Op& op, const Sample& sample, std::size_t a) {
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32}) {
      CAPTURE(std::string(name_of(dtype)));
      Tensors arguments = draw_arguments(op, sample, 1);
      if (arguments[a].dtype() == dtype) continue;
      // elements stay 0: an index argument that were read in the wrong dtype would then still be in range
      arguments[a] = op.updates >> a & 1u ? state(sample.inputs[a].shape, dtype, "x") : input(sample.inputs[a].shape, "x", dtype);
      works_or_refuses(op, sample.attributes, arguments);
    }
  });
}

TEST_CASE("edges: every op refuses all arguments in i32 where it computes, and in bf16 on the CPU, or moves them") {
  for (const Op* op : all_ops())
    for (const Sample& sample : op->samples) {
      CAPTURE(op->name);
      CAPTURE(sample.label);
      for (Dtype dtype : {Dtype::i32, Dtype::bf16}) {
        CAPTURE(std::string(name_of(dtype)));
        Tensors arguments = draw_arguments(*op, sample, 1);
        for (std::size_t a = 0; a < arguments.size(); ++a)
          if (arguments[a])
            arguments[a] = op->updates >> a & 1u ? state(sample.inputs[a].shape, dtype, "x") : input(sample.inputs[a].shape, "x", dtype);
        works_or_refuses(*op, sample.attributes, arguments);
      }
    }
}

TEST_CASE("edges: unknown attributes, and known ones of another type, are refused") {
  for (const Op* op : all_ops()) {
    if (op->samples.empty()) continue;
    CAPTURE(op->name);
    const Sample& sample = op->samples.front();
    const Tensors arguments = draw_arguments(*op, sample, 1);
    Attributes unknown = sample.attributes;
    unknown.set({"no_such_attribute", 1});
    must_refuse(*op, unknown, arguments);
    for (const auto& item : op->attributes) {
      CAPTURE(item.name);
      Attributes wrong = sample.attributes;
      if (std::holds_alternative<std::string>(item.value)) wrong.set({item.name, 2.5});
      else wrong.set({item.name, "not a value"});
      CHECK_THROWS_AS(apply(*op, wrong, arguments), Error);
      if (!std::holds_alternative<std::string>(item.value)) continue;
      wrong.set({item.name, "not a value"});
      must_refuse(*op, wrong, arguments);
    }
    clear_tape();
  }
}

TEST_CASE("edges: a missing required argument and one argument too many are refused") {
  for (const Op* op : all_ops()) {
    if (op->samples.empty()) continue;
    CAPTURE(op->name);
    const Sample& sample = op->samples.front();
    const Tensors arguments = draw_arguments(*op, sample, 1);
    for (std::size_t a = 0; a < op->arguments.size(); ++a) {
      if (op->arguments[a].optional) continue;
      CAPTURE(op->arguments[a].name);
      Tensors fewer = arguments;
      fewer[a] = {};
      must_refuse(*op, sample.attributes, fewer);
      fewer.resize(a);
      must_refuse(*op, sample.attributes, fewer);
    }
    Tensors more = arguments;
    more.resize(op->arguments.size());
    more.push_back(input({1}, "extra"));
    must_refuse(*op, sample.attributes, more);
  }
}

TEST_CASE("edges: an optional argument may be left out, or the op says that it must be there") {
  for_each_argument([](const Op& op, const Sample& sample, std::size_t a) {
    if (!op.arguments[a].optional) return;
    Tensors arguments = draw_arguments(op, sample, 1);
    arguments[a] = {};
    works_or_refuses(op, sample.attributes, arguments);
  });
}

TEST_CASE("edges: an op that overwrites refuses an activation and an input") {
  for_each_argument([](const Op& op, const Sample& sample, std::size_t a) {
    if (!(op.updates >> a & 1u)) return;
    for (Role role : {Role::activation, Role::input}) {
      Tensors arguments = draw_arguments(op, sample, 1);
      const std::vector<double> before = arguments[a].to_vector();
      Tensor wrong = allocate(arguments[a].shape(), arguments[a].dtype(), role, "wrong");
      wrong.copy_from(before);
      arguments[a] = wrong;
      must_refuse(op, sample.attributes, arguments);
      CHECK(wrong.to_vector() == before);
    }
  });
}

TEST_CASE("edges: any length works: 1, chunk - 1, chunk, chunk + 1 and 3 chunk + 5") {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    const bool chunked = std::any_of(op->attributes.begin(), op->attributes.end(), [](const auto& a) { return a.name == "chunk"; });
    if (!chunked) continue;
    CAPTURE(op->name);
    int lengths = 0;
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      // every argument (B, T, ...) follows the first one's T
      const std::int64_t length = sample.inputs[0].shape[1];
      constexpr int kChunk = 4;
      for (int t : {1, kChunk - 1, kChunk, kChunk + 1, 3 * kChunk + 5}) {
        CAPTURE(t);
        Sample changed = sample;
        changed.attributes.set({"chunk", kChunk});
        for (SampleInput& in : changed.inputs)
          if (in.shape.rank() >= 2 && in.shape[0] == sample.inputs[0].shape[0] && in.shape[1] == length) in.shape.set(1, t);
        const Tensors arguments = draw_arguments(*op, changed, 1);
        if (const auto message = refusal(*op, changed.attributes, arguments)) {
          check_sentence(*op, *message);
          continue;
        }
        ++lengths;
        GradcheckOptions options;
        options.full = 4;
        // with one token some gradients vanish (the weights of a single key sum to 1): analytic and numeric may then be as
        // far apart as for the smallest gradient that is judged
        for (const GradcheckRow& row : gradcheck(*op, changed, options).rows) {
          CAPTURE(row.argument);
          CAPTURE(row.error);
          CAPTURE(row.largest);
          const bool vanishes = row.largest < options.smallest;
          CHECK((row.passed || (vanishes && row.error * row.largest <= options.tolerance * options.smallest)));
        }
        clear_tape();
        if (!op->reference) continue;
        const no_grad guard;
        const Tensors ours = apply(*op, changed.attributes, arguments);
        const Expand expand = Expand::composed();
        const Tensors composed = apply(*op, changed.attributes, arguments);
        for (std::size_t j = 0; j < ours.size(); ++j)
          // as in suite_reference: f64 rounding through sums, quotients and exponentials
          CHECK(rms(difference(ours[j].to_vector(), composed[j].to_vector())) <= 1e-11 * rms(composed[j].to_vector()));
      }
    }
    CHECK(lengths >= 5);
  }
}
