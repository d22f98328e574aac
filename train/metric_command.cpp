#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/nearest_name.h"
#include "core/parallel.h"
#include "train/commands.h"
#include "train/item_file.h"
#include "train/metrics.h"
#include "train/rouge.h"

namespace hedgehog {
namespace {

using Items = std::vector<std::string>;

const Items kMetrics{"accuracy", "f1", "mcc", "pearson", "spearman", "rouge"};

Items parts_of(const std::string& list) {
  Items parts;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

struct Compared {
  std::string predictions_file;
  Items reference_files, predictions;
  std::vector<Items> references;  // of each file
  std::string positive;
  bool positive_set = false;
};

/// The files of predictions and references, of one length.
Compared read_files(const Config& config) {
  Compared c;
  for (const char* option : {"predictions", "references"})
    if (!config.was_set(option))
      throw UsageError(fmt::format("--metric needs --{}=FILE, with a label, number or text a line; see hedgehog eval --help", option));
  for (const char* option : {"checkpoint", "data", "stride", "words", "evaluate_batches", "linear_branch"})
    if (config.was_set(option))
      throw UsageError(fmt::format("--metric compares two files, no model's loss: leave --{} out", option));
  c.predictions_file = config.text("predictions");
  std::error_code ignored;
  const std::string references = config.text("references");
  c.reference_files = std::filesystem::exists(references, ignored) ? Items{references} : parts_of(references);
  const auto column = [&](const char* option) { return config.has(option) ? config.text(option) : ""; };
  c.predictions = read_items(c.predictions_file, column("prediction_column"));
  for (const std::string& file : c.reference_files) {
    c.references.push_back(read_items(file, column("reference_column")));
    if (c.references.back().size() != c.predictions.size())
      throw FileError(fmt::format("[eval] {} has {} items, but {} has {}; item i of the one must belong to item i of the other",
                                  c.predictions_file, c.predictions.size(), file, c.references.back().size()));
  }
  c.positive = config.text("positive");
  c.positive_set = config.was_set("positive");
  return c;
}

/// Refuses an F1 that would not be of two classes, and a positive label that nobody gives.
void check_positive(const Compared& c) {
  std::set<std::string> labels(c.predictions.begin(), c.predictions.end());
  labels.insert(c.references[0].begin(), c.references[0].end());
  const Items some(labels.begin(), std::next(labels.begin(), std::ptrdiff_t(std::min<std::size_t>(labels.size(), 5))));
  if (!labels.contains(c.positive))
    throw FileError(fmt::format("[eval] no prediction and no reference is '{}', so its F1 is undefined; name the label that counts as "
                                "positive by --positive=LABEL, here among '{}'", c.positive, fmt::join(some, "', '")));
  if (labels.size() > 2 && !c.positive_set)
    throw UsageError(fmt::format("F1 is that of one label against the rest, but there are {} labels ('{}'{}); say which by "
                                 "--positive=LABEL", labels.size(), fmt::join(some, "', '"), labels.size() > some.size() ? ", …" : ""));
}

double label_metric(const std::string& metric, const Compared& c) {
  for (const auto& [items, file] : {std::pair(&c.predictions, c.predictions_file), {&c.references[0], c.reference_files[0]}})
    for (std::size_t i = 0; i < items->size(); ++i)
      if ((*items)[i].empty()) throw FileError(fmt::format("[eval] {}: item {} is empty, but must be a label", file, i + 1));
  if (metric == "accuracy") return accuracy(c.predictions, c.references[0]);
  if (metric == "f1") return check_positive(c), f1_score(c.predictions, c.references[0], c.positive);
  const double mcc = matthews_correlation(c.predictions, c.references[0]);
  if (!std::isnan(mcc)) return mcc;
  const bool constant = std::set(c.predictions.begin(), c.predictions.end()).size() == 1;
  fmt::print(stderr, "note: mcc is undefined, as all {} of {} are one label; by convention it is 0\n",
             constant ? "predictions" : "references", constant ? c.predictions_file : c.reference_files[0]);
  return 0;
}

double number_metric(const std::string& metric, const Compared& c) {
  const std::vector<double> x = numbers_of(c.predictions, c.predictions_file), y = numbers_of(c.references[0], c.reference_files[0]);
  const double r = metric == "pearson" ? pearson_correlation(x, y) : spearman_correlation(x, y);
  if (!std::isnan(r)) return r;
  const bool constant = std::set(x.begin(), x.end()).size() == 1;
  throw FileError(fmt::format("[eval] {} is undefined: all {} items of {} are {}, and what does not vary is correlated with nothing",
                              metric, x.size(), constant ? c.predictions_file : c.reference_files[0], constant ? x[0] : y[0]));
}

/// Two characters \n stand for the end of a line.
std::string with_lines(const std::string& item) {
  std::string text;
  for (std::size_t i = 0; i < item.size(); ++i) {
    const bool line = item.compare(i, 2, "\\n") == 0;
    text += line ? '\n' : item[i];
    i += line;
  }
  return text;
}

/// Means over the items.
Rouge mean_rouge(const Compared& c) {
  std::vector<Rouge> all(c.predictions.size());
  parallel_tasks(std::int64_t(all.size()), [&](std::int64_t i) {
    Items references;
    for (const Items& items : c.references) references.push_back(with_lines(items[std::size_t(i)]));
    const std::vector<std::string_view> views(references.begin(), references.end());
    all[std::size_t(i)] = best_rouge(with_lines(c.predictions[std::size_t(i)]), views);
  });
  Rouge mean;
  for (RougeScore Rouge::*kind : {&Rouge::rouge1, &Rouge::rouge2, &Rouge::rouge_l, &Rouge::rouge_lsum})
    for (double RougeScore::*part : {&RougeScore::precision, &RougeScore::recall, &RougeScore::f1}) {
      for (const Rouge& one : all) mean.*kind.*part += one.*kind.*part;
      mean.*kind.*part /= double(all.size());
    }
  return mean;
}

}  // namespace

int metric_command(const Config& config) {
  const Items metrics = parts_of(config.text("metric"));
  for (const std::string& metric : metrics)
    if (std::find(kMetrics.begin(), kMetrics.end(), metric) == kMetrics.end()) {
      const std::string nearest = nearest_name(metric, kMetrics);
      throw UsageError(fmt::format("--metric: '{}' is not known{}; there are {}", metric,
                                   nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest), fmt::join(kMetrics, ", ")));
    }
  const Compared c = read_files(config);
  nlohmann::json out{{"items", c.predictions.size()}};
  std::string table;
  for (const std::string& metric : metrics) {
    if (c.references.size() > 1 && metric != "rouge")
      throw UsageError(fmt::format("{} has one reference an item, but --references names {} files; only rouge takes the best of several",
                                   metric, c.references.size()));
    if (metric == "rouge") {
      const Rouge mean = mean_rouge(c);
      table += fmt::format("{:<10} {:>9} {:>9} {:>9}\n", "", "precision", "recall", "F1");
      for (const auto& [name, s] :
           {std::pair("rouge1", mean.rouge1), {"rouge2", mean.rouge2}, {"rougeL", mean.rouge_l}, {"rougeLsum", mean.rouge_lsum}}) {
        out["rouge"][name] = {{"precision", s.precision}, {"recall", s.recall}, {"f1", s.f1}};
        table += fmt::format("{:<10} {:>9.4f} {:>9.4f} {:>9.4f}\n", name, s.precision, s.recall, s.f1);
      }
      continue;
    }
    const bool numbers = metric == "pearson" || metric == "spearman";
    const double value = numbers ? number_metric(metric, c) : label_metric(metric, c);
    out[metric] = value;
    table += fmt::format("{:<10} {:>9.4f}\n", metric, value);
  }
  if (config.flag("json")) fmt::print("{}\n", out.dump(2));
  else fmt::print("{:<10} {:>9}\n{}", "items", c.predictions.size(), table);
  return kGood;
}

}  // namespace hedgehog
