#include "train/gradcheck_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.h"
#include "core/gradcheck.h"
#include "core/parallel.h"
#include "ops/cpu.h"
#include "ops/register.h"
#include "train/commands.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

/// One input of one op over all its samples and draws.
struct Row {
  std::string op, input;
  std::int64_t samples = 0;  // samples that give this input
  std::int64_t checked = 0;  // elements and directions compared
  double worst = 0;          // largest error
  double smallest = 0;       // the smallest max |numeric| of all checks
  bool passed = true;
};

bool has_backward(const Op& op) { return op.views || op.backward.cpu; }

/// Every sample and draw of one op; on the CPU in parallel: kernels then run in one thread each, and the bits are the same.
std::vector<GradcheckReport> reports_of(const Op& op, const GradcheckCommand& command) {
  std::vector<GradcheckReport> reports(op.samples.size() * std::size_t(command.draws));
  std::vector<std::exception_ptr> errors(reports.size());
  const auto check = [&](std::int64_t i) {
    try {
      GradcheckOptions options;
      options.seed = command.seed + std::uint64_t(i % command.draws);
      reports[std::size_t(i)] = gradcheck(op, op.samples[std::size_t(i / command.draws)], options);
    } catch (...) {
      errors[std::size_t(i)] = std::current_exception();
    }
    clear_tape();
  };
  const auto count = std::int64_t(reports.size());
  if (current_device().host()) parallel_tasks(count, check);
  else for (std::int64_t i = 0; i < count; ++i) check(i);
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
  return reports;
}

/// The rows of one op, in the order of its arguments.
std::vector<Row> check_op(const Op& op, const GradcheckCommand& command) {
  std::vector<Row> rows;
  for (const Argument& a : op.arguments) rows.push_back({op.name, a.name});
  const std::vector<GradcheckReport> reports = reports_of(op, command);
  for (std::size_t i = 0; i < reports.size(); ++i)
    for (const GradcheckRow& r : reports[i].rows) {
      Row& row = *std::find_if(rows.begin(), rows.end(), [&](const Row& x) { return x.input == r.argument; });
      row.smallest = row.checked ? std::min(row.smallest, r.largest) : r.largest;
      row.samples += i % std::size_t(command.draws) == 0;
      row.checked += r.checked;
      row.worst = std::max(row.worst, r.error);
      row.passed = row.passed && r.passed;
    }
  std::erase_if(rows, [](const Row& r) { return r.checked == 0; });
  return rows;
}

void print_row(std::FILE* out, const Row& r, bool first) {
  fmt::print(out, "{:<24} {:<18} {:>7} {:>10}   {:>8.1e}   {}\n", first ? r.op : "", r.input, r.samples, r.checked, r.worst,
             r.passed              ? "ok"
             : r.smallest < GradcheckOptions{}.smallest ? "FAILED: gradient too small to judge"
                                                        : "FAILED");
  std::fflush(out);
}

nlohmann::json to_json(const std::vector<Row>& rows, const GradcheckCommand& command, bool passed) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& r : rows)
    list.push_back({{"op", r.op}, {"input", r.input}, {"samples", r.samples}, {"gradients", r.checked}, {"worst_error", r.worst},
                    {"passed", r.passed}});
  return {{"device", current_device().name()}, {"threads", thread_count()}, {"dtype", "f64"}, {"draws", command.draws}, {"seed", command.seed},
          {"tolerance", GradcheckOptions{}.tolerance}, {"passed", passed}, {"rows", list}};
}

}  // namespace

int run_gradcheck(const GradcheckCommand& command, std::FILE* out) {
  register_ops();
  if (command.op.empty()) return run_gradcheck(command, registered_ops(), out);
  return run_gradcheck(command, {&find_op(command.op)}, out);
}

int run_gradcheck(const GradcheckCommand& command, const std::vector<const Op*>& ops, std::FILE* out) {
  if (command.draws < 1) throw UsageError(fmt::format("--draws must be at least 1, got {}", command.draws));
  if (!command.json)
    fmt::print(out, "{}, f64, {} draws a sample; error = max|a - n| / max|n|, at most {:g}\n\n{:<24} {:<18} {:>7} {:>10}   {:>8}\n",
               current_device().name(), command.draws, GradcheckOptions{}.tolerance, "op", "input", "samples", "gradients", "error");
  std::vector<Row> all;
  std::string without, unchecked;
  std::int64_t ops_checked = 0;
  for (const Op* op : ops) {
    if (!has_backward(*op)) {
      without += (without.empty() ? "" : ", ") + op->name;
      continue;
    }
    const std::vector<Row> rows = check_op(*op, command);
    ops_checked += !rows.empty();
    // an op that claims a backward and checks nothing would pass unseen
    if (rows.empty()) unchecked += (unchecked.empty() ? "" : ", ") + op->name;
    for (std::size_t i = 0; !command.json && i < rows.size(); ++i) print_row(out, rows[i], i == 0);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  const auto failed = std::count_if(all.begin(), all.end(), [](const Row& r) { return !r.passed; });
  const bool passed = failed == 0 && unchecked.empty();
  if (command.json) {
    fmt::print(out, "{}\n", to_json(all, command, passed).dump(2));
    return passed ? kGood : kRunFailed;
  }
  std::int64_t checked = 0;
  for (const Row& r : all) checked += r.checked;
  if (!without.empty()) fmt::print(out, "\nwithout a gradient: {}\n", without);
  if (!unchecked.empty()) fmt::print(out, "\nFAILED, no sample wants a gradient: {}\n", unchecked);
  fmt::print(out, "\n{} inputs of {} ops, {} gradients compared: {}\n", all.size(), ops_checked, checked,
             passed ? "all passed" : fmt::format("{} failed", failed));
  return passed ? kGood : kRunFailed;
}

int gradcheck_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  GradcheckCommand command;
  command.op = config.has("op") ? config.text("op") : "";
  command.draws = config.integer("draws");
  command.seed = std::uint64_t(config.integer("seed"));
  command.json = config.flag("json");
  return run_gradcheck(command, stdout);
}

}  // namespace hedgehog
