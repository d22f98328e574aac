#include "train/bench_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "core/random.h"
#include "ops/hybrid_attention.h"
#include "ops/linear_attention.h"
#include "ops/rotary.h"
#include "ops/shape.h"
#include "ops/softmax_attention.h"
#include "train/ceilings.h"
#include "train/setup.h"

namespace hedgehog {

using nlohmann::ordered_json;

std::vector<AttentionCase> attention_cases(const Config& config) {
  const bool host = current_device().host();
  const std::int64_t tokens = host ? 2048 : 32768, width = host ? 128 : 768, shortest = host ? 256 : 1024;
  std::vector<AttentionCase> cases;
  auto add = [&](AttentionCase c) {
    c.rows = tokens / c.time;
    c.heads = width / c.head_size;
    if (!config.was_set("attention") || config.text("attention") == c.attention) cases.push_back(std::move(c));
  };
  for (std::int64_t T = shortest; T < tokens; T *= 4) add({.time = T, .head_size = 64});
  add({.time = tokens, .head_size = 64});
  for (std::int64_t D : {32, 96, 128})
    if (width % D == 0)
      for (std::int64_t T : {shortest, tokens}) add({.time = T, .head_size = D});
  for (std::int64_t T : {shortest, tokens}) {
    for (const char* map : {"hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp"}) add({.attention = map, .time = T, .head_size = 64});
    add({.time = T, .head_size = 64, .causal = false});
    add({.time = T, .head_size = 64, .documents = true});
    add({.time = T, .head_size = 64, .turned = true});
    add({.time = T, .head_size = 64, .window = 64});
    add({.time = T, .head_size = 64, .states = true});
  }
  add({.attention = "softmax", .time = shortest, .head_size = 64});
  return cases;
}

namespace {

/// Index of the first token of each token's document; lengths up to half a row, which end anywhere in a chunk.
Tensor random_documents(std::int64_t rows, std::int64_t time) {
  std::vector<double> start;
  const Random random{13, 1, 0};
  for (std::int64_t row = 0, draws = 0; row < rows; ++row)
    for (std::int64_t t = 0; t < time;) {
      const std::int64_t longest = std::max<std::int64_t>(time / 2, 1);
      const std::int64_t end = std::min(time, t + 1 + std::int64_t(random.below(std::uint64_t(draws++), std::uint32_t(longest))));
      for (std::int64_t first = t; t < end; ++t) start.push_back(double(first));
    }
  return constant({rows, time}, start, Dtype::i32, "document_start");
}

/// Weights of the size that keeps a map's u as large as its input.
Tensor map_weight(const AttentionCase& c, Dtype dtype, const char* name, std::uint32_t id) {
  const Tensor weight = parameter({c.heads, c.head_size, c.head_size}, name, dtype);
  std::vector<double> draws(std::size_t(weight.size()));
  for (std::size_t i = 0; i < draws.size(); ++i) draws[i] = Random{5, id, 0}.normal(i) / std::sqrt(double(c.head_size));
  weight.copy_from(draws);
  return weight;
}

/// [S | z | c] of sums that some tokens may have left: z and c of every feature are 1 and 0.
Tensor initial_state(const AttentionCase& c, std::int64_t features, Dtype dtype) {
  const std::int64_t D = c.head_size;
  std::vector<double> x(std::size_t(c.rows * c.heads * features * (D + 2)));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::int64_t column = std::int64_t(i) % (D + 2);
    x[i] = column == D ? 1 : column == D + 1 ? 0 : Random{5, 9, 0}.normal(i);
  }
  const Tensor state = constant({c.rows, c.heads, features, D + 2}, x, accumulator_of(dtype), "initial_state");
  state->wants_gradient = true;
  return state;
}

/// The upstream gradients of the results are taken from the inputs where they are, not from copies.
void skip_copies_of(const Tensors& cotangents, Program& program) {
  std::unordered_map<const Value*, Tensor> seeds;
  std::erase_if(program.entries, [&](const Entry& e) {
    if (e.op != &detail::kCopy || std::find(cotangents.begin(), cotangents.end(), e.inputs[0]) == cotangents.end()) return false;
    seeds[e.outputs[0].get()] = e.inputs[0];
    return true;
  });
  for (Entry& e : program.entries)
    for (Tensor& dy : e.dy)
      if (auto seed = seeds.find(dy.get()); seed != seeds.end()) dy = seed->second;
}

}  // namespace

Program attention_program(const AttentionCase& c, Dtype dtype, bool gradients) {
  const std::int64_t B = c.rows, T = c.time, C = c.heads * c.head_size;
  const bool softmax = c.attention == "softmax", maps = c.attention.starts_with("hedgehog");
  const Tensor packed = random_input({B, T, 3 * C}, dtype, 1);
  packed->wants_gradient = true;
  LinearAttentionOptions o;
  o.map = softmax ? "hedgehog" : c.attention;
  o.causal = c.causal;
  o.final_state = c.states;
  if (maps) {
    o.weight_q = map_weight(c, dtype, "weight_q", 2);
    o.weight_k = map_weight(c, dtype, "weight_k", 3);
  }
  if (c.documents) o.document_start = random_documents(B, T);
  if (c.turned) {
    const no_grad guard;
    o.rotary = rotary_table(T, c.head_size, 10000, {}, accumulator_of(dtype));
  }
  if (c.states) o.initial_state = initial_state(c, (maps ? 2 : 1) * c.head_size, dtype);
  Tensor factor;
  if (c.window > 0) {
    factor = parameter({c.heads}, "log_factor", accumulator_of(dtype));
    factor.copy_from(std::vector<double>(std::size_t(c.heads), 0));
  }
  Tensors cotangents{random_input({B, T, c.heads, c.head_size}, dtype, 4)};
  if (c.states) cotangents.push_back(random_input(o.initial_state.shape(), accumulator_of(dtype), 5));

  const auto forward = [&] {
    Tensors parts = split(packed, {C, C, C});
    for (Tensor& x : parts) x = reshape(x, {B, T, c.heads, c.head_size});
    if (softmax) return Tensors{softmax_attention(parts[0], parts[1], parts[2], {.document_start = o.document_start, .causal = c.causal})};
    if (c.window > 0)
      return Tensors{hybrid_attention(parts[0], parts[1], parts[2],
                                      {.weight_q = o.weight_q, .weight_k = o.weight_k, .log_factor = factor, .window = c.window})};
    const LinearAttentionResult y = linear_attention(parts[0], parts[1], parts[2], o);
    return c.states ? Tensors{y.o, y.final_state} : Tensors{y.o};
  };
  if (!gradients) {
    const no_grad guard;
    return record(forward);
  }
  Program program = record([&] {
    const Tensors results = forward();
    backward(results, cotangents);
    return results;
  });
  skip_copies_of(cotangents, program);
  return program;
}

std::int64_t extra_memory(const Program& attention) {
  std::int64_t saved = 0, workspace = 0;
  for (const Entry& e : attention.entries) {
    workspace = std::max(workspace, e.workspace);
    if (e.backward) continue;
    for (const Tensor& x : e.saved) saved += x.size() * size_of(x.dtype());
  }
  return saved + workspace;
}

namespace {

const char* variant_of(const AttentionCase& c) {
  if (c.states) return "initial and final state";
  if (c.documents) return "packed documents";
  if (c.turned) return "rotary positions";
  if (c.window > 0) return "softmax in a window";
  return c.causal ? "causal" : "bidirectional";
}

}  // namespace

ordered_json bench_attention(const AttentionCase& c, Dtype dtype) {
  auto time = [&](bool gradients, std::int64_t* bytes) {
    const Program program = attention_program(c, dtype, gradients);
    if (bytes) *bytes = extra_memory(program);
    Executor executor(program, {.poison = false});
    const Timed t = timed_runs(executor);
    return ordered_json{{"ms", 1e3 * t.median}, {"fastest_ms", 1e3 * t.fastest}, {"slowest_ms", 1e3 * t.slowest}};
  };
  std::int64_t bytes = 0;
  ordered_json forward = time(false, nullptr), both = time(true, &bytes);
  return {{"attention", c.attention},
          {"variant", variant_of(c)},
          {"dtype", name_of(dtype)},
          {"batch", c.rows},
          {"time", c.time},
          {"heads", c.heads},
          {"head_size", c.head_size},
          {"forward", std::move(forward)},
          {"forward_and_backward", std::move(both)},
          {"extra_memory", bytes}};
}

void print_attention(const ordered_json& rows) {
  if (rows.empty()) return;
  fmt::print("\nattention alone, {}, medians of milliseconds (fastest to slowest); memory beyond arguments, results and their gradients\n",
             rows[0]["dtype"].get<std::string>());
  fmt::print("{:<18} {:<24} {:>20} {:>25} {:>28} {:>10}\n", "attention", "variant", "batch x time x H x D", "forward", "forward and backward", "memory");
  auto spread = [](const ordered_json& t) {
    return fmt::format("{:.3f} ({:.3f} to {:.3f})", t["ms"].get<double>(), t["fastest_ms"].get<double>(), t["slowest_ms"].get<double>());
  };
  for (const auto& r : rows)
    fmt::print("{:<18} {:<24} {:>20} {:>25} {:>28} {:>10}\n", r["attention"].get<std::string>(), r["variant"].get<std::string>(),
               fmt::format("{} x {} x {} x {}", r["batch"].get<std::int64_t>(), r["time"].get<std::int64_t>(), r["heads"].get<std::int64_t>(),
                           r["head_size"].get<std::int64_t>()),
               spread(r["forward"]), spread(r["forward_and_backward"]), bytes_text(r["extra_memory"].get<double>()));
}

}  // namespace hedgehog
