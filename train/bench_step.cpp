#include "train/bench_step.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/random.h"
#include "ops/blas.h"
#include "ops/cpu.h"
#include "ops/register.h"
#include "train/ceilings.h"
#include "train/distillation_step.h"
#include "train/generation.h"
#include "train/setup.h"
#include "train/step_products.h"

namespace hedgehog {

using nlohmann::ordered_json;

namespace {

/// A preset, perhaps on longer rows than it has: 0 stands for its own context and positions.
struct Recipe {
  const char* name;
  const char* preset;
  std::int64_t rows, vocabulary;
  std::vector<std::string> attentions = {"softmax", "hedgehog"};
  std::int64_t context = 0;
  const char* positions = "none";  // learned ones end with the context
  bool if_it_fits = false;
};

std::vector<Recipe> cpu_recipes() {
  return {{"char-cpu", "char-cpu", 12, 128}, {"char (width 384, context 256)", "char", 8, 128}};
}

std::vector<Recipe> gpu_recipes() {
  std::vector<Recipe> all{{"char (width 384, context 256)", "char", 64, 128}, {"gpt2 (width 768, context 1024)", "gpt2", 32, 50257}};
  auto longer = [&](const char* name, std::int64_t rows, std::int64_t context, const char* positions, bool if_it_fits) {
    all.push_back({name, "gpt2", rows, 50257, {"hedgehog"}, context, positions, if_it_fits});
  };
  longer("gpt2 (context 4096)", 8, 4096, "none", false);
  longer("gpt2 (context 16384)", 2, 16384, "none", false);
  longer("gpt2 (context 32768)", 1, 32768, "none", false);
  longer("gpt2 (context 32768, rotary)", 1, 32768, "rotary", false);
  // as many tokens in short rows and in a single one
  longer("gpt2 (context 4096, 256 rows)", 256, 4096, "none", true);
  longer("gpt2 (context 1048576)", 1, 1 << 20, "none", true);
  return all;
}

}  // namespace

namespace {

/// The model that the options describe, if any of them is given.
std::vector<StepCase> given_case(const Config& config) {
  const auto& table = option_table();
  const bool preset = config.has("preset"), gpt2 = preset && config.text("preset").starts_with("gpt2");
  if (std::any_of(table.begin(), table.end(), [&](const Option& o) {
        return (o.name == "batch" || (o.group == "model" && o.name != "attention")) && config.was_set(o.name);
      }))
    return {{"given", gpt_options(config, gpt2 ? 50257 : 128), config.integer("batch"), memory_options(config)}};
  return {};
}

}  // namespace

std::vector<StepCase> step_cases(const Config& config) {
  if (const auto given = given_case(config); !given.empty()) {
    StepShape shape{given[0].rows, given[0].model.context, 1, false};
    check_memory(given[0].model, shape, {}, given[0].memory);
    return given;
  }
  std::vector<StepCase> cases;
  auto add = [&](const Recipe& recipe) {
    std::vector<std::string> attentions = recipe.attentions;
    if (config.was_set("attention")) attentions = {config.text("attention")};
    for (const std::string& attention : attentions) {
      Config c = config;
      c.apply_preset(recipe.preset);
      c.set("attention", attention, OptionSource::kFlag);
      c.set("dropout", "0", OptionSource::kFlag);
      if (recipe.context) {
        c.set("context", std::to_string(recipe.context), OptionSource::kFlag);
        c.set("positions", recipe.positions, OptionSource::kFlag);
      }
      cases.push_back({recipe.name, gpt_options(c, recipe.vocabulary), recipe.rows, memory_options(c), recipe.context == 0, recipe.if_it_fits});
    }
  };
  for (const Recipe& recipe : current_device().host() ? cpu_recipes() : gpu_recipes()) add(recipe);
  return cases;
}

std::vector<StepCase> distillation_cases(const Config& config) {
  std::vector<StepCase> cases = given_case(config);
  const auto add = [&](const char* name, const char* preset, std::int64_t rows, std::int64_t vocabulary, std::int64_t context) {
    Config c = config;
    c.apply_preset(preset);
    if (!config.was_set("attention")) c.set("attention", "hedgehog", OptionSource::kFlag);
    c.set("dropout", "0", OptionSource::kFlag);
    if (context) c.set("context", std::to_string(context), OptionSource::kFlag), c.set("positions", "none", OptionSource::kFlag);
    cases.push_back({name, gpt_options(c, vocabulary), rows, memory_options(c)});
  };
  if (!cases.empty()) {}  // that alone
  else if (current_device().host()) {
    add("char-cpu", "char-cpu", 12, 128, 0);
  } else {
    add("gpt2 (width 768, context 1024)", "gpt2", 8, 50257, 0);
    add("gpt2 (context 8192)", "gpt2", 1, 50257, 8192);
    add("gpt2 (context 32768)", "gpt2", 1, 50257, 32768);
  }
  // a teacher has no gate, and weights within a window are no distribution over all keys
  std::erase_if(cases, [](const StepCase& c) {
    return c.model.attention == "softmax" || c.model.decay_gate || c.model.window > 0 || !has_maps(Gpt::declared(c.model));
  });
  return cases;
}

namespace {

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

/// Steps one after the other, the next submitted before the last is waited for, as training does on a GPU.
Timed time_steps(TrainingStep& step, const std::vector<Batch>& batches) {
  if (current_device().host()) return time_repeated([&] { step.run(batches, 1e-4); }, 7, 2.0);
  const double first_seconds = time_repeated([&] { step.run(batches, 1e-4); }, 1, 0).median;
  const int each = int(std::clamp(0.5 / first_seconds, 1.0, 10.0));
  Timed t = time_repeated([&] {
    for (int i = 0; i < each; ++i) {
      step.submit(batches, 1e-4);
      if (step.unfinished() == 2) step.finish();
    }
    while (step.unfinished()) step.finish();
  }, first_seconds > 0.5 ? 3 : 7, 1.0);
  for (double* x : {&t.median, &t.fastest, &t.slowest}) *x /= each;
  return t;
}

/// "linear", "norm", …: what an op's time is counted under.
std::string family_of(const std::string& op) {
  for (const auto& [part, family] : std::initializer_list<std::pair<const char*, const char*>>{
           {"classifier", "classifier and loss"}, {"linear_attention", "attention"}, {"softmax_attention", "attention"},
           {"_features", "attention"},
           {"matmul", "matrix products"},         {"linear", "matrix products"},     {"mlp", "matrix products"},
           {"norm", "norms"},                     {"adamw", "optimiser"},         {"embedding", "embedding"}})
    if (op.find(part) != std::string::npos) return op.starts_with("gradient_norm") ? "optimiser" : family;
  return "elementwise and copies";
}

/// `free_before`: bytes of the device before there was a model.
ordered_json measured_step(Gpt& model, const StepShape& shape, const StepLoss& loss, std::int64_t free_before, const Ceilings& ceilings,
                           std::map<ProductShape, double>& products_made) {
  TrainingStep step(model, shape, {}, 1, {}, loss);
  const std::vector<Batch> batches{random_batch(model.options(), shape.rows)};
  const Cost cost = step.cost();
  const Timed t = time_steps(step, batches);
  const std::int64_t used = current_device().host() ? 0 : free_before - current_device().free_memory();
  products_made = products_of(step.gradient_executor().program());
  // the share inside matrix products and the table by op come from a second, instrumented stretch
  Executor& executor = step.gradient_executor();
  executor.profile(true);
  GemmClock::start();
  const Timed instrumented = time_repeated([&] { step.run(batches, 1e-4); }, t.median > 0.5 ? 1 : 5, 0.5);
  const double runs = instrumented.repeats + 1;
  const double products = GemmClock::stop() / thread_count();
  double total = 0;
  for (const auto& [name, timing] : executor.timings()) total += timing.seconds;
  ordered_json ops = ordered_json::array(), families;
  std::vector<std::pair<double, std::string>> order;
  std::map<std::string, double> by_family;
  for (const auto& [name, timing] : executor.timings()) {
    order.emplace_back(-timing.seconds, name);
    by_family[family_of(name)] += timing.seconds;
  }
  std::sort(order.begin(), order.end());
  for (const auto& [seconds, name] : order) {
    const Timing& timing = executor.timings().at(name);
    const Work& work = cost.by_op.at(name);
    // the work at full speed of whichever of the two ceilings takes longer
    const double arithmetic = work.flops / ceilings.flops, traffic = work.bytes / ceilings.bandwidth, least = std::max(arithmetic, traffic);
    ops.push_back({{"op", name},
                   {"ms", 1e3 * timing.seconds / runs},
                   {"share", timing.seconds / total},
                   {"gflops", work.flops * runs / timing.seconds / 1e9},
                   {"gbytes_per_s", work.bytes * runs / timing.seconds / 1e9},
                   {"bound", traffic >= arithmetic ? "memory" : "arithmetic"},
                   {"share_of_ceiling", least * runs / timing.seconds}});
  }
  for (const auto& [family, seconds] : by_family) families[family] = 1e3 * seconds / runs;
  const double tokens = double(shape.rows * shape.context);
  return {{"parameters", model.parameters().count()},
          {"ms", 1e3 * t.median},
          {"fastest_ms", 1e3 * t.fastest},
          {"slowest_ms", 1e3 * t.slowest},
          {"tokens_per_second", tokens / t.median},
          {"gflops", cost.own_flops() / t.median / 1e9},
          {"share_of_peak", cost.own_flops() / t.median / ceilings.flops},
          {"recomputed_share", cost.repeated / cost.own_flops()},
          {"ops_ms", 1e3 * total / runs},
          {"share_outside_products", current_device().host() ? 1 - products / total : 1 - by_family["matrix products"] / total},
          {"peak_memory", cost.peak},
          {"used_memory", used},
          {"families_ms", families},
          {"ops", ops}};
}

}  // namespace

namespace {

std::int64_t free_memory() { return current_device().host() ? 0 : current_device().free_memory(); }

ordered_json row_of(const char* what, const StepCase& c) {
  return {{"step", what},
          {"model", c.name},
          {"attention", c.model.attention},
          {"dtype", name_of(c.model.dtype)},
          {"positions", c.model.positions},
          {"batch", fmt::format("{} x {}", c.rows, c.model.context)}};
}

}  // namespace

ordered_json bench_step(const StepCase& c, const Ceilings& ceilings) {
  ordered_json row = row_of("training", c);
  StepShape shape{c.rows, c.model.context, 1, false};
  try {
    check_memory(c.model, shape, {}, c.memory);
  } catch (const UsageError& e) {
    if (!c.if_it_fits) throw;
    row["left_out"] = e.what();
    return row;
  }
  std::map<ProductShape, double> products;
  {
    const std::int64_t free_before = free_memory();
    Gpt model(c.model);
    row.update(measured_step(model, shape, next_token_loss, free_before, ceilings, products));
  }
  if (current_device().host()) return row;
  // the step is gone, so that its memory is free for them
  const double alone = seconds_of(products);
  row["products_alone_ms"] = 1e3 * alone;
  row["products_alone_gflops"] = flops_of(products) / alone / 1e9;
  row["step_over_products"] = row["ms"].get<double>() / (1e3 * alone);
  return row;
}

ordered_json bench_distillation(const StepCase& c, const Ceilings& ceilings) {
  const std::int64_t free_before = free_memory();
  GptOptions of_teacher = c.model;
  of_teacher.attention = "softmax";
  const Gpt teacher(of_teacher);
  Gpt student(student_options(of_teacher, c.model.attention));
  copy_weights(teacher, student);
  student.parameters().train_only(is_map);
  ordered_json row = row_of("distillation", c);
  std::map<ProductShape, double> products;
  row.update(measured_step(student, {c.rows, c.model.context, 1, false}, distils_from(teacher, "weights"), free_before, ceilings, products));
  return row;
}

void print_step(const ordered_json& s) {
  if (s.contains("left_out")) {
    fmt::print("\n{} step: {}, {} attention, batch {}: left out, {}\n", s["step"].get<std::string>(), s["model"].get<std::string>(), s["attention"].get<std::string>(),
               s["batch"].get<std::string>(), s["left_out"].get<std::string>());
    return;
  }
  fmt::print("\n{} step: {}, {} attention, {}, {} parameters, batch {}\n", s["step"].get<std::string>(), s["model"].get<std::string>(), s["attention"].get<std::string>(),
             s["dtype"].get<std::string>(), count_text(s["parameters"].get<double>()), s["batch"].get<std::string>());
  fmt::print("  {:.2f} ms ({:.2f} to {:.2f}), {:.0f} tokens/s, {:.1f} GFLOP/s = {:.1f} % of peak, {:.1f} % outside matrix products, {}{}\n",
             s["ms"].get<double>(), s["fastest_ms"].get<double>(), s["slowest_ms"].get<double>(), s["tokens_per_second"].get<double>(),
             s["gflops"].get<double>(), 100 * s["share_of_peak"].get<double>(), 100 * s["share_outside_products"].get<double>(),
             bytes_text(s["peak_memory"].get<double>()),
             s["used_memory"] == 0 ? "" : fmt::format(" predicted, {} taken", bytes_text(s["used_memory"].get<double>())));
  if (s.contains("recomputed_share") && s["recomputed_share"] > 0.0)
    fmt::print("  {:.1f} % more arithmetic to recompute what was not kept\n", 100 * s["recomputed_share"].get<double>());
  if (s.contains("products_alone_ms"))
    fmt::print("  its matrix products timed alone {:.2f} ms ({:.0f} GFLOP/s): the step takes {:.2f} times as long\n",
               s["products_alone_ms"].get<double>(), s["products_alone_gflops"].get<double>(), s["step_over_products"].get<double>());
  fmt::print("  ops one by one {:.2f} ms:", s["ops_ms"].get<double>());
  for (const auto& [family, ms] : s["families_ms"].items()) fmt::print(" {} {:.2f}{}", family, ms.get<double>(), family == s["families_ms"].rbegin().key() ? "\n" : ",");
  fmt::print("  {:<36} {:>8} {:>7} {:>9} {:>8} {:>11} {}\n", "op", "ms", "share", "GFLOP/s", "GB/s", "of ceiling", "bound by");
  for (const auto& op : s["ops"])
    fmt::print("  {:<36} {:>8.3f} {:>6.1f}% {:>9.1f} {:>8.1f} {:>10.1f}% {}\n", op["op"].get<std::string>(), op["ms"].get<double>(),
               100 * op["share"].get<double>(), op["gflops"].get<double>(), op["gbytes_per_s"].get<double>(),
               100 * op["share_of_ceiling"].get<double>(), op["bound"].get<std::string>());
}

ordered_json bench_decoding(const StepCase& c) {
  GptOptions o = c.model;
  // learned positions end with the context, and rotary ones need an even head width
  o.positions = o.query_width() % 2 ? "none" : "rotary";
  const bool gpu = !current_device().host(), constant = o.attention != "softmax";
  // a state of constant size costs the same anywhere; a cache has to be filled first
  const std::int64_t count = gpu ? 512 : 64, far = gpu && constant ? 1'000'000 : 2048;
  o.features.cosformer_length = far + 8 * count;
  Gpt model(o);
  Generator generator(model, far + 8 * count);
  const Sampling sampling;
  const std::int32_t first = 1;
  auto rate = [&] {
    generator.read(std::span(&first, 1));
    auto go = [&] { generator.generate(count, sampling, {1, 0}, [](std::int32_t) { return true; }); };
    return double(count) / time_repeated(go, 3, 0).median;
  };
  const double near = rate();
  if (gpu && constant) generator.set_position(far);
  else generator.read(std::vector<std::int32_t>(std::size_t(far - generator.position()), 1));
  return {{"model", c.name},
          {"attention", o.attention},
          {"tokens_per_second_at_start", near},
          {"far", far},
          {"tokens_per_second_far", rate()}};
}

std::vector<std::string> composed_ops() {
  register_ops();
  const Device& device = current_device();
  std::vector<std::string> names;
  for (const Op* op : registered_ops())
    if (op->reference && (!device.kernel(*op, false) || (op->backward.cpu && !device.kernel(*op, true)))) names.push_back(op->name);
  return names;
}

}  // namespace hedgehog
