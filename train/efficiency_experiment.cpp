#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/account.h"
#include "core/error.h"
#include "train/bench_attention.h"
#include "train/ceilings.h"
#include "train/experiments.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

using Json = ExperimentJson;

/// One sequence, causal, rows of several heads of 64.
struct EfficiencyShape {
  std::int64_t heads, head_size, shortest, longest;
};
EfficiencyShape shape_of(const ReproduceRequest& request) {
  return request.small() ? EfficiencyShape{2, 64, 128, 32768} : EfficiencyShape{12, 64, 128, 131072};
}
Dtype dtype_of() { return current_device().host() ? Dtype::f32 : Dtype::bf16; }

const std::vector<std::string>& attentions() {
  static const std::vector<std::string> names = {"softmax", "hedgehog"};
  return names;
}

std::vector<std::int64_t> lengths_of(const ReproduceRequest& request) {
  const EfficiencyShape s = shape_of(request);
  std::vector<std::int64_t> lengths;
  for (std::int64_t n = s.shortest; n <= s.longest; n *= 2) lengths.push_back(n);
  return lengths;
}

std::string part_name(std::int64_t length) { return fmt::format("n{}", length); }

Json settings_json(const ReproduceRequest& request) {
  const EfficiencyShape s = shape_of(request);
  return {{"heads", s.heads}, {"head_size", s.head_size}, {"shortest", s.shortest}, {"longest", s.longest}, {"rows", 1}, {"causal", true}};
}

std::vector<ExperimentPart> parts_of(const ReproduceRequest& request) {
  std::vector<ExperimentPart> parts;
  for (const std::int64_t n : lengths_of(request)) parts.push_back({part_name(n)});
  return parts;
}

/// Runs the programs in turn, once for warm-up and then `repeats` times each: what else the machine does slows all of them alike. On a GPU
/// one after the other by its own clock.
std::vector<Timed> timed_in_turn(std::vector<Executor>& executors, int repeats, const std::function<bool()>& stopped) {
  std::vector<Timed> result;
  if (!current_device().host()) {
    for (Executor& e : executors) result.push_back(timed_runs(e));
    return result;
  }
  using Clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> seconds(executors.size());
  for (int run = -1; run < repeats; ++run)
    for (std::size_t i = 0; i < executors.size(); ++i) {
      if (stopped()) throw Stopped{};
      const Clock::time_point start = Clock::now();
      executors[i].run();
      if (run >= 0) seconds[i].push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
  for (std::vector<double>& s : seconds) {
    std::sort(s.begin(), s.end());
    result.push_back({s[s.size() / 2], s.front(), s.back(), int(s.size())});
  }
  return result;
}

/// Median and spread of both attentions, what they take beyond their arguments, results and their gradients, and their peak with these.
std::vector<Json> measured(const EfficiencyShape& s, std::int64_t n, bool gradients, const std::function<bool()>& stopped) {
  std::vector<Json> result;
  std::vector<Executor> executors;
  for (const std::string& attention : attentions()) {
    Program program = attention_program({.attention = attention, .rows = 1, .time = n, .heads = s.heads, .head_size = s.head_size}, dtype_of(), gradients);
    const Cost cost = account(program);
    result.push_back({{"peak_bytes", cost.peak}, {"extra_bytes", extra_memory(program)}, {"flops", cost.flops}});
    executors.emplace_back(std::move(program), ExecutorOptions{.poison = false});
  }
  const std::vector<Timed> times = timed_in_turn(executors, n <= 4096 ? 15 : n <= 8192 ? 5 : 3, stopped);
  for (std::size_t i = 0; i < times.size(); ++i)
    result[i].update({{"seconds", times[i].median}, {"fastest", times[i].fastest}, {"slowest", times[i].slowest}, {"repeats", times[i].repeats}});
  return result;
}

Json run_part(const ExperimentPart& part, const PartContext& context) {
  const EfficiencyShape s = shape_of(context.request);
  for (const std::int64_t n : lengths_of(context.request)) {
    if (part.name != part_name(n)) continue;
    Json json;
    for (const char* pass : {"forward", "training"}) {
      const std::vector<Json> both = measured(s, n, std::string(pass) == "training", context.stopped);
      for (std::size_t i = 0; i < both.size(); ++i) json[attentions()[i]][pass] = both[i];
    }
    return json;
  }
  throw Error(fmt::format("[efficiency] no part is called {}", part.name));
}

/// One length's measurement of one attention.
const Json* found(const PartResults& results, std::int64_t n, const std::string& attention, const char* pass) {
  const auto part = results.find(part_name(n));
  return part == results.end() ? nullptr : &part->second.result.at(attention).at(pass);
}

double ratio(const PartResults& results, std::int64_t n, const char* pass) {
  return found(results, n, "softmax", pass)->at("seconds").get<double>() / found(results, n, "hedgehog", pass)->at("seconds").get<double>();
}

/// Where Hedgehog becomes the faster one for good, by straight lines between lengths in logarithms.
std::string crossover_text(const std::vector<std::int64_t>& lengths, const PartResults& results, const char* pass) {
  for (std::size_t i = lengths.size(); i-- > 0;) {
    const double here = std::log(ratio(results, lengths[i], pass));
    if (here > 0) continue;
    if (i + 1 == lengths.size()) return fmt::format("not up to {} tokens", lengths[i]);
    const double next = std::log(ratio(results, lengths[i + 1], pass));
    return fmt::format("from about {:.0f} tokens on", std::exp2(std::log2(double(lengths[i])) - here / (next - here)));
  }
  return fmt::format("at {} tokens already", lengths.front());
}

std::string time_text(const Json& t) {
  const auto ms = [&](const char* field) {
    const double value = 1e3 * t.at(field).get<double>();
    return fmt::format(fmt::runtime(value < 1000 ? "{:.3g}" : "{:.0f}"), value);
  };
  return fmt::format("{} ({}–{})", ms("seconds"), ms("fastest"), ms("slowest"));
}

ExperimentJson chart(const std::string& title, const std::vector<std::int64_t>& lengths, const PartResults& results, const char* field, double unit) {
  std::vector<ChartLine> lines;
  for (const std::string& attention : attentions())
    for (const char* pass : {"forward", "training"}) {
      ChartLine line{fmt::format("{}, {}", attention, pass), {}, {}};
      for (const std::int64_t n : lengths) {
        line.x.push_back(std::log2(double(n)));
        line.y.push_back(unit * found(results, n, attention, pass)->at(field).get<double>());
      }
      lines.push_back(std::move(line));
    }
  ExperimentJson json = chart_of(title, "log2 of the tokens", lines);
  json["log"] = true;
  json["zero"] = false;
  return json;
}

Findings collect(const ReproduceRequest& request, const PartResults& results) {
  const EfficiencyShape s = shape_of(request);
  Findings f;
  f.columns = {"tokens", "forward, ms: softmax", "Hedgehog", "ratio", "training, ms: softmax", "Hedgehog", "ratio", "paper", "training memory: softmax", "Hedgehog"};
  std::vector<std::int64_t> lengths;
  for (const std::int64_t n : lengths_of(request)) {
    if (!results.contains(part_name(n))) continue;
    lengths.push_back(n);
    const auto get = [&](const char* attention, const char* pass) -> const Json& { return *found(results, n, attention, pass); };
    const auto memory = [&](const char* attention) { return bytes_text(get(attention, "training").at("peak_bytes").get<double>()); };
    f.rows.push_back({std::to_string(n), time_text(get("softmax", "forward")), time_text(get("hedgehog", "forward")),
                      fmt::format("{:.2f}", ratio(results, n, "forward")), time_text(get("softmax", "training")), time_text(get("hedgehog", "training")),
                      fmt::format("{:.2f}", ratio(results, n, "training")), n == 32768 ? "near 6" : "", memory("softmax"), memory("hedgehog")});
    f.figures[part_name(n)] = results.at(part_name(n)).result;
  }
  if (lengths.empty()) return f;
  f.notes.push_back(fmt::format("Hedgehog is the faster one: forward {}, training {}", crossover_text(lengths, results, "forward"),
                                crossover_text(lengths, results, "training")));
  f.notes.push_back(fmt::format("one causal sequence, {} heads of {}; medians (fastest–slowest) of the op alone, its maps included; training: forward and backward; "
                                "ratio: softmax over Hedgehog; on the CPU both run in turn", s.heads, s.head_size));
  f.notes.push_back("memory: the planned peak with arguments and gradients. Softmax runs in tiles and keeps no (n, n) weights, so both grow in a straight line");
  f.notes.push_back("the paper's factor is of a whole model on its own GPU, and its cells were not to be had: a landmark, no target");
  f.charts.push_back(chart("Milliseconds", lengths, results, "seconds", 1e3));
  f.charts.push_back(chart("Memory (MiB)", lengths, results, "peak_bytes", 1.0 / (1 << 20)));
  return f;
}

}  // namespace

Experiment efficiency_experiment() {
  return {"efficiency",
          "time and memory grow in a straight line with the length, near 6 times faster than softmax at 32K tokens (section 5, figure of wall clock and memory)",
          settings_json,
          parts_of,
          run_part,
          collect};
}

}  // namespace hedgehog
