#include <doctest/doctest.h>

#include <cmath>

#include "core/stepper.h"
#include "core/text.h"
#include "core/trace.h"
#include "ops/ops.h"
#include "tests/tape_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// L = (x y + 3)^2 at x = 2, y = -1: dL/dx = 2 (x y + 3) y = -2, dL/dy = 2 (x y + 3) x = 4.
struct Scalar {
  Tensor x = leaf({}, {2}, "x"), y = leaf({}, {-1}, "y");
  Program program = record([&] {
    const Tensor p = x * y;
    p->name = "p";
    const Tensor loss = square(p + 3.0);
    loss->name = "L";
    backward(loss);
    return Tensors{loss};
  });
};

/// L = mean((X W)^2), with W read twice.
struct Product {
  Tensor x = constant({4, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 3, 5}, Dtype::f64, "x");
  Tensor w = leaf({3, 2}, {0.1, -0.2, 0.3, 0.4, -0.5, 0.6}, "w");
  Program program = record([&] {
    const Tensor loss = mean(square(matmul(x, w))) + sum(square(w));
    backward(loss);
    return Tensors{loss};
  });
};

double only(const Stepper& s, const std::string& name) { return s.trace().value(s.find(name), s.size()).at(0); }

}  // namespace

TEST_CASE("trace: every value and gradient of a scalar program, at every position, and nothing of the caller's changes") {
  Scalar s;
  const Stepper stepper(s.program);
  CHECK(only(stepper, "p") == -2);
  CHECK(only(stepper, "L") == 1);
  CHECK(only(stepper, "p.grad") == 2);
  CHECK(only(stepper, "x.grad") == -2);
  CHECK(only(stepper, "y.grad") == 4);
  CHECK(s.x.grad().item() == 0);
  const Tensor p = stepper.find("p");
  CHECK(!stepper.trace().known(p, 0));
  CHECK(stepper.trace().known(p, 1));
  CHECK(stepper.trace().value(stepper.find("x.grad"), 0) == std::vector<double>{0});
  CHECK(mentions(error_of([&] { (void)stepper.trace().value(p, 0); }), "no value yet at step 0"));
}

TEST_CASE("trace: what an update overwrites is there before it and gone after it") {
  const Tensor total = state({2}, Dtype::f64, "total");
  total.copy_from({1, 2});
  const Tensor x = constant({2}, {10, 20}, Dtype::f64, "x");
  const Trace trace(record([&] {
    apply(add_to_state(), {}, {total, x});
    apply(add_to_state(), {}, {total, x});
    return Tensors{};
  }));
  CHECK(trace.value(total, 0) == std::vector<double>{1, 2});
  CHECK(trace.value(total, 1) == std::vector<double>{11, 22});
  CHECK(trace.value(total, 2) == std::vector<double>{21, 42});
  CHECK(total.to_vector() == std::vector<double>{1, 2});
  CHECK(trace.written(total) == std::vector<std::size_t>{0, 1, 2});
}

TEST_CASE("stepper: the chain rule of a scalar program, term by term") {
  Scalar s;
  const Stepper stepper(s.program);
  const Why why = stepper.why(s.x, 0);
  REQUIRE(why.terms.size() == 1);
  CHECK(why.terms[0].upstream == 2);
  CHECK(why.terms[0].local == -1);
  CHECK(why.gradient == -2);
  CHECK(why.sum() == -2);
  const Why end = stepper.why(stepper.find("L"), 0);
  CHECK(end.seed == 1);
  CHECK(end.terms.empty());
  CHECK(end.sum() == 1);
}

TEST_CASE("stepper: a gradient is the sum over all paths, and a limit moves terms to the rest without changing the sum") {
  Product p;
  const Stepper stepper(p.program);
  for (std::int64_t i = 0; i < p.w.size(); ++i) {
    CAPTURE(i);
    const Why all = stepper.why(p.w, i), few = stepper.why(p.w, i, 1);
    CHECK(all.terms.size() == 4 + 1);  // four rows of x w that have it, and its own square
    CHECK(few.others > 0);
    CHECK(few.terms.size() < all.terms.size());
    CHECK(all.sum() == doctest::Approx(all.gradient).epsilon(1e-12));
    CHECK(few.sum() == doctest::Approx(all.gradient).epsilon(1e-12));
    for (const Contribution& c : all.terms) CHECK(stepper.local_difference(c, i) == doctest::Approx(c.local).epsilon(1e-8));
  }
}

TEST_CASE("stepper: parts of a split tensor, and a gradient that was there before, are accounted for") {
  const Tensor x = leaf({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8}, "x");
  x.grad().fill(0.5);
  const Stepper stepper(record([&] {
    const Tensor y = x * 2.0;
    const Tensors parts = split(y, {2, 2});
    const Tensor loss = sum(parts[0] * parts[1]) + sum(square(reshape(y, {8})));
    backward(loss);
    return Tensors{loss};
  }));
  for (std::int64_t i = 0; i < 8; ++i) {
    const Why why = stepper.why(x, i);
    CHECK(why.before == 0.5);
    CHECK(why.sum() == doctest::Approx(why.gradient).epsilon(1e-12));
    CHECK(stepper.check(x, i).passed);
    CHECK(stepper.why(stepper.find("affine1"), i).sum() == doctest::Approx(stepper.trace().value(stepper.find("affine1.grad"), stepper.size())[std::size_t(i)]));
  }
  const Tensor part = stepper.find("split1.1");
  CHECK(stepper.why(part, 3).sum() == doctest::Approx(stepper.trace().value(stepper.gradient_of(part), stepper.size())[3]));
}

TEST_CASE("stepper: check passes for right gradients of leaves and inner results, and a planted fault is caught") {
  Product p;
  const Stepper right(p.program);
  for (std::int64_t i = 0; i < p.w.size(); ++i) CHECK(right.check(p.w, i).passed);
  CHECK(right.check(right.find("matmul1"), 3).passed);
  CHECK(right.check_direction(p.w).passed);
  Op wrong = find_op("square");
  wrong.backward.cpu = [](const Call& c) {
    for (std::int64_t i = 0; i < c.dx[0].size(); ++i) c.dx[0].as<double>()[i] = c.inputs[0].as<double>()[i] * c.dy[0].as<double>()[i];
  };
  const Tensor w = leaf({2}, {1, 2}, "w");
  const Stepper planted(record([&] {
    const Tensor loss = sum(apply(wrong, {}, {w * 3.0})[0]);
    backward(loss);
    return Tensors{loss};
  }));
  const DifferenceCheck check = planted.check(w, 1);
  CHECK(!check.passed);
  CHECK(!check.kink);
  CHECK(check.error == doctest::Approx(0.5));
  CHECK(!planted.check_direction(w).passed);
}

TEST_CASE("stepper: where a function has a kink, check says so instead of failing") {
  const Tensor x = leaf({2}, {0, 1}, "x");
  const Stepper stepper(record([&] {
    const Tensor loss = sum(relu(x));
    backward(loss);
    return Tensors{loss};
  }));
  const DifferenceCheck check = stepper.check(x, 0);
  CHECK(!check.passed);
  CHECK(check.kink);
  CHECK(check.left == doctest::Approx(0));
  CHECK(check.right == doctest::Approx(1));
  CHECK(stepper.check(x, 1).passed);
}

TEST_CASE("stepper: what-if predicts the change of the loss to first order and computes it anew") {
  Scalar s;
  const Stepper stepper(s.program);
  const WhatIf change = stepper.what_if(s.x, 0, 0.1);
  CHECK(change.loss == 1);
  CHECK(change.predicted == doctest::Approx(-0.2));
  CHECK(change.actual == doctest::Approx(std::pow(2.1 * -1 + 3, 2) - 1));
  CHECK(s.x.item() == 2);
}

TEST_CASE("stepper: a fused op opens into primitive ops with the same results and gradients") {
  const Tensor x = leaf({2, 3}, {1, -2, 3, 0.5, 0.25, -1}, "x"), weight = leaf({3}, {1, 2, 3}, "weight"), bias = leaf({3}, {0, 1, -1}, "bias");
  const Stepper stepper(record([&] {
    const Tensor loss = sum(square(layer_norm(x, weight, bias)));
    backward(loss);
    return Tensors{loss};
  }));
  std::size_t norm = 0;
  while (stepper.entries()[norm].op->name != "layer_norm") ++norm;
  for (const std::size_t at : {norm, *stepper.partner(norm)}) {
    const Stepper inside(stepper.expand(at));
    CHECK(inside.size() > 5);
    const auto values = inside.trace().value(inside.trace().program().outputs[0], inside.size());
    const auto fused = stepper.trace().value(stepper.find("layer_norm1"), stepper.size());
    for (std::size_t i = 0; i < fused.size(); ++i) CHECK(values[i] == doctest::Approx(fused[i]).epsilon(1e-12));
    for (const char* name : {"x.grad", "weight.grad", "bias.grad"}) {
      const auto own = inside.trace().value(inside.find(name), inside.size()), whole = stepper.trace().value(stepper.find(name), stepper.size());
      for (std::size_t i = 0; i < whole.size(); ++i) CHECK(own[i] == doctest::Approx(whole[i]).epsilon(1e-10));
    }
  }
  CHECK(mentions(error_of([&] { (void)stepper.expand(norm + 1); }), "primitive"));
}

TEST_CASE("stepper: inside an expanded op its results keep their names, the loss too") {
  const Tensor x = leaf({2, 3}, {1, -2, 3, 0.5, 0.25, -1}, "x"), w = leaf({4, 3}, std::vector<double>(12, 0.5), "w");
  const Tensor targets = constant({2}, {0, 3}, Dtype::i32, "targets");
  const Stepper stepper(record([&] {
    const Scope scope("classifier");
    const Tensor loss = named(classifier_cross_entropy(x, w, targets).loss, "L");
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(stepper.short_name(stepper.find("classifier/L")) == "L");
  for (const std::size_t at : {std::size_t(0), stepper.size() - 1}) {
    const Stepper inside(stepper.expand(at));
    REQUIRE(inside.seeds().size() == 1);
    CHECK(inside.name(inside.seeds()[0].result) == "L");
    CHECK(inside.loss() == doctest::Approx(stepper.loss()).epsilon(1e-12));
    CHECK(inside.trace().known(inside.find("L.grad"), inside.size()));
  }
}

TEST_CASE("stepper: classic mistakes are said") {
  const Tensor used = leaf({2}, {1, 2}, "used"), cut = leaf({2}, {1, 2}, "cut"), still = leaf({2}, {1, 2}, "still");
  still.grad().fill(1);
  const auto warnings = Stepper(record([&] {
                          const Tensor loss = sum(used * detach(cut) + relu(used * -1.0) + square(still));
                          backward(loss);
                          return Tensors{loss};
                        })).warnings();
  const auto said = [&](const std::string& part) { return std::any_of(warnings.begin(), warnings.end(), [&](const std::string& w) { return mentions(w, part); }); };
  CHECK(said("'cut' was detached"));
  CHECK(said("'still' was not zero before backward"));
  CHECK(!said("'used'"));
  const auto none = Stepper(record([&] { return Tensors{sum(square(used))}; })).warnings();
  REQUIRE(!none.empty());
  CHECK(mentions(none[0], "no backward pass"));
  CHECK(mentions(error_of([&] {
          record([&] {
            const Tensor loss = sum(square(used));
            backward(loss);
            backward(loss);
            return Tensors{loss};
          });
        }),
                 "already differentiated once"));
}

TEST_CASE("stepper: names, unknown names and elements that are not there") {
  Product p;
  const Stepper stepper(p.program);
  CHECK(stepper.find("w") == p.w);
  CHECK(stepper.name(stepper.find("matmul1")) == "matmul1");
  CHECK(mentions(error_of([&] { (void)stepper.find("matmul"); }), "did you mean 'matmul1'"));
  CHECK(mentions(error_of([&] { (void)stepper.find("x.grad"); }), "no gradient reaches 'x'"));
  CHECK(mentions(error_of([&] { (void)stepper.why(p.w, 6); }), "elements count from 0 to 5"));
  CHECK(mentions(error_of([&] { (void)stepper.why(p.x, 0); }), "no gradient reaches 'x'"));
}

TEST_CASE("stepper: a check that rounding hides is no tick, and a steep smooth function is no kink") {
  const Tensor x = leaf({}, {1e16}, "x"), y = leaf({}, {1}, "y");
  const Stepper large(record([&] {
    const Tensor loss = x + y;
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(!large.check(y, 0).passed);
  CHECK(large.check(y, 0).unresolved);
  const auto steep = [](const std::function<Tensor(const Tensor&)>& f, double at) {
    const Tensor v = leaf({}, {at}, "v");
    return Stepper(record([&] {
             const Tensor loss = f(v);
             backward(loss);
             return Tensors{loss};
           }))
        .check(v, 0);
  };
  CHECK(steep([](const Tensor& v) { return log(v); }, 1e-6).passed);
  CHECK(steep([](const Tensor& v) { return reciprocal(v); }, 1e-5).passed);
  CHECK(steep([](const Tensor& v) { return sqrt(v); }, 1e-10).passed);
  CHECK(steep([](const Tensor& v) { return relu(v); }, 0).kink);
}

TEST_CASE("stepper: in f32 right gradients pass, wrong ones and those that cannot be told do not, and terms add up") {
  const auto check = [](bool mistake) {
    const Tensor v = parameter({4}, "v");
    v.copy_from({0.5, -1, 2, 0.25});
    const Stepper stepper(record([&] {
      const Tensor e = exp(v);
      const Tensor z = sum(e);
      const Tensor loss = sum(square(e) / (mistake ? detach(z) : z));
      backward(loss);
      return Tensors{loss};
    }));
    CHECK(stepper.why(v, 2).adds_up(std::abs(stepper.why(v, 2).gradient)));
    return stepper.check(v, 2);
  };
  CHECK(check(false).passed);
  CHECK(!check(true).passed);
}

TEST_CASE("stepper: two backward passes in one program have one loss, the sum, and parts of a tensor may be results") {
  const Tensor w = leaf({4}, {1, 2, -1, 3}, "w");
  const Stepper twice(record([&] {
    const Tensor first = sum(square(w));
    backward(first);
    const Tensor second = sum(exp(w));
    backward(second);
    return Tensors{first, second};
  }));
  CHECK(twice.loss() == doctest::Approx(15 + std::exp(1) + std::exp(2) + std::exp(-1) + std::exp(3)));
  for (std::int64_t i = 0; i < 4; ++i) CHECK(twice.check(w, i).passed);
  const Tensor c = constant({2, 2}, {1, 2, 3, 4}, Dtype::f64, "c"), x = leaf({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8}, "x");
  const Stepper parts(record([&] {
    const Tensors two = split(square(x), {2, 2});
    backward({two[0], two[1]}, {c, {}});
    return two;
  }));
  CHECK(parts.loss() == doctest::Approx(1 * 1 + 2 * 4 + 3 * 25 + 4 * 36 + 9 + 16 + 49 + 64));
  for (std::int64_t i = 0; i < 8; ++i) {
    CHECK(parts.check(x, i).passed);
    const Why why = parts.why(parts.find("square1"), i);
    CHECK(why.sum() == why.gradient);
  }
}

TEST_CASE("stepper: a detached look at a tensor has no gradient, and cannot be changed") {
  const Tensor u = leaf({2}, {1, 2}, "u");
  const Stepper stepper(record([&] {
    const Tensor loss = sum(u * detach(u));
    backward(loss);
    return Tensors{loss};
  }));
  const Tensor look = stepper.find("u.detached");
  CHECK(mentions(error_of([&] { (void)stepper.why(look, 0); }), "no gradient reaches 'u.detached'"));
  CHECK(mentions(error_of([&] { (void)stepper.what_if(look, 0, 0.1); }), "detached look at 'u'"));
  const Stepper rows(record([&] {
    const Tensor loss = sum(gather_last(reshape(u, {1, 2}), constant({1}, {1}, Dtype::i32, "index")));
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(mentions(error_of([&] { (void)rows.what_if(rows.find("index"), 0, -0.5); }), "whole numbers"));
  CHECK(rows.what_if(rows.find("index"), 0, -1).actual == doctest::Approx(-1));
  CHECK(!rows.what_if(rows.find("index"), 0, -1).differentiable);
}

TEST_CASE("stepper: a gradient of 0 that is only rounding is proved beside larger ones, and not where rounding hides those too") {
  const auto check = [](double scale, bool mistake) {
    const Tensor x = leaf({2}, {1, 1}, "x"), c = constant({2}, {1e-17, 1}, Dtype::f64, "c");
    const Tensor first = constant({2}, {1, 0}, Dtype::f64, "first"), one = constant({1}, {1}, Dtype::f64, "one");
    const Stepper stepper(record([&] {
      // dL/dx[0] = scale 1e-17, which is 0 for a difference: L is about 1. The mistake: it is 1 more
      const Tensor own = sum(x * c) * scale, other = mistake ? sum(detach(x) * first) : sum(one);
      const Tensor loss = own + other;
      backward(loss);
      return Tensors{loss};
    }));
    return stepper.check(x, 0);
  };
  CHECK(check(1, false).passed);
  CHECK(check(1, false).analytic == 0);
  CHECK(!check(1, true).passed);
  CHECK(!check(1, true).unresolved);
  CHECK(!check(1e-12, false).passed);
  CHECK(check(1e-12, false).unresolved);
}
