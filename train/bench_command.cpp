#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <nlohmann/json.hpp>

#include "ops/blas.h"
#include "ops/cpu.h"
#include "core/random.h"
#include "train/bench_attention.h"
#include "train/bench_step.h"
#include "train/ceilings.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

using nlohmann::ordered_json;

std::vector<float> random_floats(std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = Random{7, 1, 0}.uniform(i) - 0.5f;
  return x;
}

/// One product with our tiles, and with the library's own threads, in turn.
ordered_json bench_product(std::int64_t m, std::int64_t n, std::int64_t k, const Ceilings& ceilings) {
  const auto a = random_floats(m * k), b = random_floats(k * n);
  std::vector<float> c(static_cast<std::size_t>(m * n));
  const double flops = 2.0 * double(m) * double(n) * double(k);
  std::vector<double> ratios;
  Timed ours, library;
  for (int round = 0; round < 3; ++round) {
    ours = time_repeated([&] { gemm(false, false, m, n, k, 1.0f, a.data(), k, b.data(), n, 0.0f, c.data(), n); }, 3, 0.2);
    library = time_repeated([&] { gemm_library_threads(m, n, k, a.data(), b.data(), c.data()); }, 3, 0.2);
    ratios.push_back(library.median / ours.median);
  }
  std::sort(ratios.begin(), ratios.end());
  return {{"shape", fmt::format("{} x {} x {}", m, n, k)},
          {"gflops", flops / ours.median / 1e9},
          {"share_of_peak", flops / ours.median / ceilings.flops},
          {"against_library_threads", ratios[1]},
          {"lowest", ratios.front()},
          {"highest", ratios.back()}};
}

void print_report(const ordered_json& out) {
  const bool cpu = out["device"] == "cpu";
  if (cpu) {
    fmt::print("{}, {} threads, {}\n", out["processor"].get<std::string>(), out["threads"].get<int>(), out["blas"].get<std::string>());
  } else {
    fmt::print("{}\nops without a kernel, which run composed: ", out["processor"].get<std::string>());
    for (const auto& name : out["composed_ops"]) fmt::print("{} ", name.get<std::string>());
    fmt::print("{}\n", out["composed_ops"].empty() ? "none" : "");
  }
  fmt::print("ceilings: {:.0f} GFLOP/s {}, {:.1f} GB/s copy\n", out["peak_gflops"].get<double>(),
             cpu ? "multiply-adds in registers (f32)" : "in a large bf16 product of the library", out["copy_gbytes_per_s"].get<double>());
  if (!out["products"].empty()) fmt::print("\n{:<28} {:>9} {:>9} {}\n", "matrix product", "GFLOP/s", "of peak", cpu ? "against the library's threads" : "");
  for (const auto& p : out["products"]) {
    fmt::print("{:<28} {:>9.1f} {:>8.1f}%", p["shape"].get<std::string>(), p["gflops"].get<double>(), 100 * p["share_of_peak"].get<double>());
    if (cpu)
      fmt::print(" {:>13.3f} ({:.3f} to {:.3f})", p["against_library_threads"].get<double>(), p["lowest"].get<double>(), p["highest"].get<double>());
    fmt::print("\n");
  }
  print_attention(out["attention"]);
  for (const char* part : {"steps", "distillation"})
    for (const auto& s : out[part]) print_step(s);
  if (!out["decoding"].empty()) fmt::print("\n{:<32} {:<10} {:>16} {:>16}\n", "decoding, one stream", "attention", "at token 0", "far away");
  for (const auto& d : out["decoding"])
    fmt::print("{:<32} {:<10} {:>11.0f} tok/s {:>11.0f} tok/s at token {}\n", d["model"].get<std::string>(), d["attention"].get<std::string>(),
               d["tokens_per_second_at_start"].get<double>(), d["tokens_per_second_far"].get<double>(), d["far"].get<std::int64_t>());
}

}  // namespace

namespace {

void describe_machine(ordered_json& out) {
  if (!current_device().host()) {
    out["processor"] = current_device().description();
    out["composed_ops"] = composed_ops();
    return;
  }
  const auto machine = machine_description();
  out["processor"] = machine.at("processor");
  out["threads"] = thread_count();
  out["blas"] = machine.at("blas") + ", kernel chosen by " + blas_info().chosen_by;
}

void products_on_gpu(ordered_json& out) {
  for (const auto& [m, n, k, dtype] : {std::tuple{8192, 8192, 8192, Dtype::bf16}, {32768, 2304, 768, Dtype::bf16}, {32768, 3072, 768, Dtype::bf16},
                                      {32768, 768, 3072, Dtype::bf16}, {16384, 1152, 384, Dtype::bf16}, {4096, 4096, 4096, Dtype::f32}}) {
    const Timed t = timed_product({.m = m, .n = n, .k = k, .dtype = dtype});
    const double flops = 2.0 * m * n * k;
    out["products"].push_back({{"shape", fmt::format("{} x {} x {} {}", m, n, k, name_of(dtype))},
                               {"gflops", flops / t.median / 1e9},
                               {"share_of_peak", flops / t.median / 1e9 / out["peak_gflops"].get<double>()}});
  }
}

void products_on_cpu(ordered_json& out, const Ceilings& ceilings) {
  for (const auto [m, n, k] : {std::array<std::int64_t, 3>{2048, 2048, 2048}, {1024, 1024, 1024}, {768, 512, 128}, {2048, 1536, 384}})
    out["products"].push_back(bench_product(m, n, k, ceilings));
}

}  // namespace

int bench_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  const Dtype dtype = configure_dtype(config);
  const std::string only = config.text("only");
  auto measures = [&](const char* part) { return only == part || only == "all"; };
  // these refuse what does not fit before anything is measured
  const std::vector<StepCase> steps = measures("steps") || measures("decoding") ? step_cases(config) : std::vector<StepCase>{};
  const std::vector<StepCase> distillations = measures("distillation") ? distillation_cases(config) : std::vector<StepCase>{};
  if (only == "distillation" && distillations.empty())
    throw UsageError("--only=distillation needs an attention whose maps learn, such as hedgehog, without --window and --decay_gate");
  const Ceilings ceilings{measured_peak_flops(), measured_copy_bandwidth()};
  ordered_json out{{"device", current_device().name()},
                   {"processor", ""},
                   {"version", machine_description().at("version")},
                   {"peak_gflops", ceilings.flops / 1e9},
                   {"copy_gbytes_per_s", ceilings.bandwidth / 1e9}};
  for (const char* part : {"products", "attention", "steps", "distillation", "decoding"}) out[part] = ordered_json::array();
  const bool cpu = current_device().host();
  describe_machine(out);
  if (measures("products")) cpu ? products_on_cpu(out, ceilings) : products_on_gpu(out);
  if (only == "attention" || (only == "all" && !cpu))
    for (const AttentionCase& c : attention_cases(config)) out["attention"].push_back(bench_attention(c, dtype));
  for (const StepCase& c : steps) {
    if (measures("steps")) out["steps"].push_back(bench_step(c, ceilings));
    if (measures("decoding") && c.decodes) out["decoding"].push_back(bench_decoding(c));
  }
  for (const StepCase& c : distillations) out["distillation"].push_back(bench_distillation(c, ceilings));
  if (config.flag("json")) fmt::print("{}\n", out.dump(2));
  else print_report(out);
  return kGood;
}

}  // namespace hedgehog
