#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ops/blas.h"
#include "ops/cpu.h"
#include "core/random.h"
#include "train/ceilings.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/generation.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

using nlohmann::ordered_json;

struct Ceilings {
  double flops = 0;      // FLOP/s, f32
  double bandwidth = 0;  // bytes/s
};

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

struct StepCase {
  const char* name;
  GptOptions model;
  std::int64_t rows;
};

/// The model that preset, model options and --batch describe if any is given, else two models of nanoGPT's recipes with
/// the attention, type and seed asked for.
std::vector<StepCase> step_cases(const Config& config) {
  const auto& table = option_table();
  if (std::any_of(table.begin(), table.end(), [&](const Option& o) {
        return (o.name == "batch" || (o.group == "model" && o.name != "attention")) && config.was_set(o.name);
      }))
    return {{"given", gpt_options(config, 128), config.integer("batch")}};
  std::vector<StepCase> cases;
  auto add = [&](const char* name, const char* preset, std::int64_t rows) {
    std::vector<std::string> attentions{"softmax", "hedgehog"};
    if (config.was_set("attention")) attentions = {config.text("attention")};
    for (const std::string& attention : attentions) {
      Config c = config;
      c.apply_preset(preset);
      c.set("attention", attention, OptionSource::kFlag);
      c.set("dropout", "0", OptionSource::kFlag);
      cases.push_back({name, gpt_options(c, 128), rows});
    }
  };
  add("char-cpu", "char-cpu", 12);
  add("char (width 384, context 256)", "char", 8);
  return cases;
}

Batch random_batch(const GptOptions& o, std::int64_t rows) {
  Batch batch;
  batch.rows = rows;
  batch.time = o.context;
  const Random random{11, 3, 0};
  for (std::int64_t i = 0; i < rows * o.context; ++i) {
    batch.tokens.push_back(std::int32_t(random.below(std::uint64_t(2 * i), std::uint32_t(o.vocabulary))));
    batch.targets.push_back(std::int32_t(random.below(std::uint64_t(2 * i + 1), std::uint32_t(o.vocabulary))));
  }
  batch.document_start.assign(batch.tokens.size(), 0);
  batch.valid = std::int64_t(batch.tokens.size());
  return batch;
}

ordered_json bench_step(const StepCase& c, const Ceilings& ceilings) {
  Gpt model(c.model);
  TrainingStep step(model, {c.rows, c.model.context, 1, false}, {}, 1);
  const std::vector<Batch> batches{random_batch(c.model, c.rows)};
  const Cost cost = step.cost();
  const Timed t = time_repeated([&] { step.run(batches, 1e-4); }, 7, 2.0);
  // the share inside matrix products and the table by op come from a second, instrumented stretch
  Executor& executor = step.gradient_executor();
  executor.profile(true);
  GemmClock::start();
  const Timed instrumented = time_repeated([&] { step.run(batches, 1e-4); }, 5, 0.5);
  const double runs = instrumented.repeats + 1;
  const double products = GemmClock::stop() / thread_count();
  double total = 0;
  for (const auto& [name, timing] : executor.timings()) total += timing.seconds;
  ordered_json ops;
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [name, timing] : executor.timings()) order.emplace_back(-timing.seconds, name);
  std::sort(order.begin(), order.end());
  for (const auto& [seconds, name] : order) {
    const Timing& timing = executor.timings().at(name);
    const Work& work = cost.by_op.at(name);
    ops.push_back({{"op", name},
                   {"ms", 1e3 * timing.seconds / runs},
                   {"share", timing.seconds / total},
                   {"gflops", work.flops * runs / timing.seconds / 1e9},
                   {"gbytes_per_s", work.bytes * runs / timing.seconds / 1e9}});
  }
  const double tokens = double(c.rows * c.model.context);
  return {{"model", c.name},
          {"attention", c.model.attention},
          {"batch", fmt::format("{} x {}", c.rows, c.model.context)},
          {"parameters", model.parameters().count()},
          {"ms", 1e3 * t.median},
          {"fastest_ms", 1e3 * t.fastest},
          {"slowest_ms", 1e3 * t.slowest},
          {"tokens_per_second", tokens / t.median},
          {"gflops", cost.flops / t.median / 1e9},
          {"share_of_peak", cost.flops / t.median / ceilings.flops},
          {"share_outside_products", 1 - products / total},
          {"peak_memory", cost.peak},
          {"ops", ops}};
}

ordered_json bench_decoding(const StepCase& c) {
  GptOptions o = c.model;
  // learned positions end with the context, and rotary ones need an even head width
  o.positions = o.width / o.heads % 2 ? "none" : "rotary";
  Gpt model(o);
  constexpr std::int64_t kFar = 2048;
  Generator generator(model, kFar + 512);
  const std::vector<std::int32_t> some(64, 1), many(kFar - 64 * 3, 1);
  auto rate = [&] { return 64.0 / time_repeated([&] { generator.read(some); }, 1, 0).median; };
  const double near = rate();
  generator.read(many);
  const double far = rate();
  return {{"model", c.name}, {"attention", o.attention}, {"tokens_per_second_at_start", near}, {"tokens_per_second_at_2048", far}};
}

void print_report(const ordered_json& out) {
  fmt::print("{}, {} threads, {}\n", out["processor"].get<std::string>(), out["threads"].get<int>(), out["blas"].get<std::string>());
  fmt::print("ceilings: {:.0f} GFLOP/s multiply-adds in registers (f32), {:.1f} GB/s copy\n\n", out["peak_gflops"].get<double>(),
             out["copy_gbytes_per_s"].get<double>());
  fmt::print("{:<22} {:>9} {:>9} {:>28}\n", "matrix product, f32", "GFLOP/s", "of peak", "against the library's threads");
  for (const auto& p : out["products"])
    fmt::print("{:<22} {:>9.1f} {:>8.1f}% {:>13.3f} ({:.3f} to {:.3f})\n", p["shape"].get<std::string>(), p["gflops"].get<double>(),
               100 * p["share_of_peak"].get<double>(), p["against_library_threads"].get<double>(), p["lowest"].get<double>(),
               p["highest"].get<double>());
  for (const auto& s : out["steps"]) {
    fmt::print("\ntraining step: {}, {} attention, {} parameters, batch {}\n", s["model"].get<std::string>(), s["attention"].get<std::string>(),
               count_text(s["parameters"].get<double>()), s["batch"].get<std::string>());
    fmt::print("  {:.2f} ms ({:.2f} to {:.2f}), {:.0f} tokens/s, {:.1f} GFLOP/s = {:.1f} % of peak, {:.1f} % outside matrix products, {}\n",
               s["ms"].get<double>(), s["fastest_ms"].get<double>(), s["slowest_ms"].get<double>(), s["tokens_per_second"].get<double>(),
               s["gflops"].get<double>(), 100 * s["share_of_peak"].get<double>(), 100 * s["share_outside_products"].get<double>(),
               bytes_text(s["peak_memory"].get<double>()));
    fmt::print("  {:<36} {:>8} {:>7} {:>9} {:>8}\n", "op", "ms", "share", "GFLOP/s", "GB/s");
    for (const auto& op : s["ops"])
      fmt::print("  {:<36} {:>8.3f} {:>6.1f}% {:>9.1f} {:>8.1f}\n", op["op"].get<std::string>(), op["ms"].get<double>(),
                 100 * op["share"].get<double>(), op["gflops"].get<double>(), op["gbytes_per_s"].get<double>());
  }
  fmt::print("\n{:<32} {:<10} {:>16} {:>16}\n", "decoding, one stream", "attention", "at token 0", "at token 2048");
  for (const auto& d : out["decoding"])
    fmt::print("{:<32} {:<10} {:>11.0f} tok/s {:>11.0f} tok/s\n", d["model"].get<std::string>(), d["attention"].get<std::string>(),
               d["tokens_per_second_at_start"].get<double>(), d["tokens_per_second_at_2048"].get<double>());
}

}  // namespace

int bench_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  const auto machine = machine_description();
  const Ceilings ceilings{measured_peak_flops(), measured_copy_bandwidth()};
  ordered_json out{{"processor", machine.at("processor")},
                   {"threads", thread_count()},
                   {"blas", machine.at("blas") + ", kernel chosen by " + blas_info().chosen_by},
                   {"version", machine.at("version")},
                   {"peak_gflops", ceilings.flops / 1e9},
                   {"copy_gbytes_per_s", ceilings.bandwidth / 1e9}};
  out["products"] = ordered_json::array();
  for (const auto [m, n, k] : {std::array<std::int64_t, 3>{2048, 2048, 2048}, {1024, 1024, 1024}, {768, 512, 128}, {2048, 1536, 384}})
    out["products"].push_back(bench_product(m, n, k, ceilings));
  out["steps"] = ordered_json::array();
  out["decoding"] = ordered_json::array();
  for (const StepCase& c : step_cases(config)) {
    out["steps"].push_back(bench_step(c, ceilings));
    out["decoding"].push_back(bench_decoding(c));
  }
  if (config.flag("json")) fmt::print("{}\n", out.dump(2));
  else print_report(out);
  return kGood;
}

}  // namespace hedgehog
