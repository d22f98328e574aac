// What the plain forms of a run in bf16 are made of: programs in f32 on the CPU, with roundings put in.
#include <algorithm>
#include <bit>
#include <cmath>

#include "core/device.h"
#include "core/error.h"
#include "core/executor.h"
#include "core/parallel.h"
#include "tests/parity.h"
#include "tests/parity_run.h"
#include "tests/shape_device.h"

namespace hedgehog::test {
namespace {

/// To nearest, ties to even, of an f32.
double rounded_to_digits(double x, int digits) {
  if (!std::isfinite(x)) return x;
  const int drop = 24 - digits;
  const auto u = std::bit_cast<std::uint32_t>(float(x));
  return std::bit_cast<float>((u + (1u << (drop - 1)) - 1 + (u >> drop & 1u)) >> drop << drop);
}

template <class T>
void round_rows(const Ref& from, const Ref& to, int digits) {
  const std::int64_t columns = std::max<std::int64_t>(from.columns, 1);
  parallel_for(from.size(), 16384, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t at = i / columns * from.stride + i % columns;
      to.as<T>()[to.stride == from.stride ? at : i] = T(rounded_to_digits(from.as<T>()[at], digits));
    }
  });
}

/// y = x with so many significant bits; x itself if there is no y.
const Op kRounded{
    .name = "rounded",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"digits", 8}},
    .infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; },
    .forward = {[](const Call& c) {
      const Ref &x = c.inputs[0], &y = c.outputs.empty() ? x : c.outputs[0];
      const int digits = int(c.attributes.integer("digits"));
      if (x.dtype == Dtype::f64) round_rows<double>(x, y, digits);
      else round_rows<float>(x, y, digits);
    }},
    .strided = bits(0),
};

Entry rounding(const Tensor& x, int digits) {
  Entry entry;
  entry.op = &kRounded;
  entry.attributes = {{"digits", digits}};
  entry.inputs = {x};
  entry.versions = {x.version()};
  return entry;
}

/// The program with everything rounded as soon as it is written that `narrow`, the same program in bf16, keeps in bf16.
Program with_rounded_storage(Program program, const Program& narrow, int digits) {
  if (program.entries.size() != narrow.entries.size()) throw Error("[parity] a case makes other calls in bf16 than in f32");
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < program.entries.size(); ++i) {
    const Entry &e = entries.emplace_back(std::move(program.entries[i])), &n = narrow.entries[i];
    if (e.op->views) continue;
    std::vector<Entry> after;
    auto round = [&](const Tensors& wide, const Tensors& kept) {
      for (std::size_t j = 0; j < wide.size(); ++j)
        if (wide[j] && is_floating(wide[j].dtype()) && kept[j].dtype() == Dtype::bf16) after.push_back(rounding(wide[j], digits));
    };
    if (e.backward) {
      round(e.dx, n.dx);
    } else {
      round(e.outputs, n.outputs);
      round(e.saved, n.saved);
    }
    for (Entry& r : after) entries.push_back(std::move(r));
  }
  program.entries = std::move(entries);
  return program;
}

/// The program with results that are kept in bf16 rounded where they are made, and with what `op` stores on its way.
Program with_rounded_results(Program program, const Kept& kept, const Op& op) {
  // ops/cross_entropy.h: a tile of logits is stored in the dtype of x
  const bool products = op.name == "classifier_cross_entropy";
  // ops/mlp.h: dh is stored in the dtype of x before anything is made of it
  auto is_dh = [&](const Entry& e) {
    return op.name == "mlp" && e.backward && (e.op->name.starts_with("gelu") || e.op->name == "silu" || e.op->name == "relu");
  };
  // ops/linear_attention.h: on tensor cores, which take the calls of attention_cases.h, features enter the final state as bf16 numbers,
  // for its value and for the gradient of its shift
  Tensors features;
  for (const Entry& e : program.entries)
    if (op.name == "linear_attention of packed" && !e.backward && e.op->name == "matmul" && e.attributes.flag("transpose_a"))
      features.push_back(e.inputs[0]);
  std::vector<Entry> entries;
  for (Entry& e : program.entries) {
    // ops/norm_linear_attention_step.h: q, k and v are rounded to the dtype of x on their way
    if (op.name == "norm_linear_attention_step" && e.op->name == "linear_attention_step")
      for (int part = 0; part < 3; ++part) entries.push_back(rounding(e.inputs[std::size_t(part)], 8));
    Tensors stored;
    if (is_dh(e)) stored.push_back(e.dx[0]);
    for (const Tensor& y : e.backward ? Tensors{} : e.outputs) {
      bool narrow = (products && e.op->name == "matmul") || std::find(features.begin(), features.end(), y) != features.end();
      for (std::size_t j = 0; j < program.outputs.size(); ++j) narrow |= program.outputs[j] == y && kept.dtypes[j] == Dtype::bf16;
      if (narrow) stored.push_back(y);
    }
    entries.push_back(std::move(e));
    for (const Tensor& y : stored) entries.push_back(rounding(y, 8));
  }
  program.entries = std::move(entries);
  return program;
}

/// Runs what `change` makes of the recorded case. Every tensor is rounded to what it is kept in at the end.
Outcome run_program(const ParityCase& c, const Drawn& drawn, const Kept& kept, Dtype dtype, bool composed,
                    const std::function<Program(Program)>& change) {
  const Tensors arguments = arguments_of(c, drawn, dtype);
  Executor run(change(record([&] { return forward_and_backward(c, arguments, composed, drawn.cotangents); })));
  for (int pass = 0; pass < c.passes; ++pass) run.run();
  Tensors results;
  for (std::size_t j = 0; j < run.program().outputs.size(); ++j) results.push_back(run.output(j));
  Outcome out = outcome_of(c, results, arguments);
  for (std::size_t i = 0; i < out.size(); ++i) round_numbers(out[i].values, kept.dtypes.at(i));
  return out;
}

/// How many products add up in each element of the gradient: those of every matrix product whose backward adds to it.
std::int64_t terms_of(const Program& composed, const Tensor& gradient) {
  std::int64_t terms = 0;
  for (const Entry& e : composed.entries) {
    if (!e.backward || e.op->name != "matmul") continue;
    const std::int64_t k = e.inputs[0].shape()[e.attributes.flag("transpose_a") ? -2 : -1];
    for (std::size_t i = 0; i < e.dx.size(); ++i)
      if (e.dx[i] && e.dx[i].root() == gradient) terms += e.outputs[0].size() * k / e.inputs[i].size();
  }
  return terms;
}

}  // namespace

bool is_composite(const ParityCase& c) { return c.function || c.op->reference; }

Program with_rounded_products(Program program) {
  std::vector<Entry> entries;
  for (Entry& e : program.entries) {
    auto round = [&](Tensor& x) {
      if (!x) return;
      Entry entry = rounding(x, 8);
      x = declare(x.shape(), x.dtype());
      entry.outputs = {x};
      entries.push_back(std::move(entry));
    };
    if (e.op->name == "matmul") {
      for (Tensor& x : e.inputs) round(x);
      for (Tensor& dy : e.dy) round(dy);
    }
    entries.push_back(std::move(e));
  }
  program.entries = std::move(entries);
  return program;
}

Outcome run_stored(const ParityCase& c, const Drawn& drawn, const Kept& kept, Dtype dtype, int digits) {
  return run_program(c, drawn, kept, dtype, false,
                     [&](Program program) { return with_rounded_storage(std::move(program), kept.program, digits); });
}

Outcome run_products(const ParityCase& c, const Drawn& drawn, const Kept& kept, Dtype dtype) {
  return run_program(c, drawn, kept, dtype, true, [&](Program program) {
    return with_rounded_products(with_rounded_results(std::move(program), kept, *c.op));
  });
}

std::optional<Kept> kept_in(const ParityCase& c, Dtype dtype) {
  const OnDevice guard(shape_device());
  const Tensors arguments = empty_arguments(*c.op, c.sample, dtype);
  Kept kept;
  Program composed;
  try {
    kept.program = record([&] { return forward_and_backward(c, arguments, false, {}); });
    composed = record([&] { return forward_and_backward(c, arguments, true, {}); });
  } catch (const ShapeError&) {
    return {};
  }
  for (const Tensor& x : arguments) kept.arguments.push_back(x ? x.dtype() : Dtype::f32);
  for (const Tensor& y : kept.program.outputs) {
    kept.dtypes.push_back(y.dtype());
    kept.terms.push_back(0);
    kept.cotangents.push_back(y.wants_gradient() ? y.size() : 0);
  }
  for (const Tensor& x : arguments) {
    if (x && x.wants_gradient()) {
      kept.dtypes.push_back(c.activations ? x.dtype() : x.grad().dtype());
      kept.terms.push_back(terms_of(composed, x.grad()));
    }
    if (x && x.role() == Role::state) {
      kept.dtypes.push_back(x.dtype());
      kept.terms.push_back(0);
    }
  }
  return kept;
}

}  // namespace hedgehog::test
