#include "train/conversion_report.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace hedgehog {
namespace {

struct Row {
  const char* name;
  double loss;
  const Divergence* divergence;
};

std::vector<Row> rows_of(const ConversionFigures& f) {
  std::vector<Row> rows{{"teacher", f.teacher, nullptr}};
  if (f.finetuned_teacher) rows.push_back({"teacher finetuned as long", *f.finetuned_teacher, nullptr});
  rows.push_back({"student after the swap", f.swapped, &f.before});
  if (f.distilled) rows.push_back({"student after distillation", *f.distilled, f.after ? &*f.after : nullptr});
  if (f.finetuned) rows.push_back({"student after finetuning", *f.finetuned, nullptr});
  return rows;
}

const char* reference_name(const ConversionFigures& f) { return f.finetuned_teacher ? "finetuned teacher" : "teacher"; }

ReportTable loss_table(const ConversionFigures& f) {
  ReportTable table{"Loss over the validation set",
                    "nats a token; KL divergence of the student's weights of attention from the teacher's, nats a row", {}};
  table.rows.push_back({"", "loss", "perplexity", fmt::format("times that of the {}", reference_name(f)), "KL divergence"});
  for (const Row& r : rows_of(f))
    table.rows.push_back({r.name, fmt::format("{:.4f}", r.loss), fmt::format("{:.3f}", std::exp(r.loss)),
                          fmt::format("{:.4f}", r.loss / f.reference()), r.divergence ? fmt::format("{:.4f}", r.divergence->mean()) : ""});
  return table;
}

ReportTable divergence_table(const ConversionFigures& f) {
  ReportTable table{"KL divergence of every layer and head",
                    f.after ? "nats a row: before → after distillation, on the teacher's queries and keys"
                            : "nats a row, on the teacher's queries and keys", {}};
  table.rows.push_back({"layer"});
  for (std::size_t h = 0; h < f.before.heads[0].size(); ++h) table.rows[0].push_back(fmt::format("head {}", h));
  for (std::size_t layer = 0; layer < f.before.heads.size(); ++layer) {
    table.rows.push_back({std::to_string(layer)});
    for (std::size_t h = 0; h < f.before.heads[layer].size(); ++h)
      table.rows.back().push_back(f.after ? fmt::format("{:.4f} → {:.4f}", f.before.heads[layer][h], f.after->heads[layer][h])
                                          : fmt::format("{:.4f}", f.before.heads[layer][h]));
  }
  return table;
}

}  // namespace

std::string figures_text(const ConversionFigures& f) {
  std::string text = fmt::format("{:<28} {:>8} {:>11} {:>10} {:>8}\n", "", "loss", "perplexity", "relative", "KL");
  for (const Row& r : rows_of(f)) {
    text += fmt::format("{:<28} {:>8.4f} {:>11.3f} {:>10.4f}", r.name, r.loss, std::exp(r.loss), r.loss / f.reference());
    text += r.divergence ? fmt::format(" {:>8.4f}\n", r.divergence->mean()) : "\n";
  }
  text += fmt::format("\nrelative    loss over that of the {}\n", reference_name(f));
  text += fmt::format("won back    {:.1f} % of the loss that the swap cost\n", 100 * f.recovered());
  return text + fmt::format("kept        {:.1f} %: perplexity of the {} over that of the student\n", 100 * f.kept(), reference_name(f));
}

nlohmann::ordered_json figures_json(const ConversionFigures& f) {
  nlohmann::ordered_json out;
  auto& loss = out["loss"];
  loss["teacher"] = f.teacher;
  if (f.finetuned_teacher) loss["teacher_finetuned"] = *f.finetuned_teacher;
  loss["swapped"] = f.swapped;
  if (f.distilled) loss["distilled"] = *f.distilled;
  if (f.finetuned) loss["finetuned"] = *f.finetuned;
  auto divergence = [](const Divergence& d) { return nlohmann::ordered_json{{"mean", d.mean()}, {"heads", d.heads}}; };
  out["divergence"]["before"] = divergence(f.before);
  if (f.after) out["divergence"]["after"] = divergence(*f.after);
  out["times_reference"] = f.student() / f.reference();
  out["recovered"] = f.recovered();
  out["kept"] = f.kept();
  out["steps"] = {{"distillation", f.distillation.steps}, {"finetuning", f.finetuning.steps}};
  out["seconds"] = {{"distillation", f.distillation.seconds}, {"finetuning", f.finetuning.seconds}};
  return out;
}

namespace {

/// JSON has null for infinity.
Divergence divergence_of(const nlohmann::json& json) {
  Divergence d;
  for (const auto& layer : json.at("heads")) {
    d.heads.emplace_back();
    for (const auto& head : layer) d.heads.back().push_back(head.is_null() ? INFINITY : head.get<double>());
  }
  return d;
}

}  // namespace

ConversionFigures figures_of_json(const std::filesystem::path& file, const std::string& text) {
  ConversionFigures f;
  try {
    const auto json = nlohmann::json::parse(text);
    const auto& loss = json.at("loss");
    const auto measured = [&](const char* name) { return loss.contains(name) ? std::optional(loss.at(name).get<double>()) : std::nullopt; };
    f.teacher = loss.at("teacher"), f.swapped = loss.at("swapped");
    f.finetuned_teacher = measured("teacher_finetuned"), f.distilled = measured("distilled"), f.finetuned = measured("finetuned");
    const auto& divergence = json.at("divergence");
    f.before = divergence_of(divergence.at("before"));
    if (divergence.contains("after")) f.after = divergence_of(divergence.at("after"));
    f.distillation = {json.at("steps").at("distillation"), json.at("seconds").at("distillation")};
    f.finetuning = {json.at("steps").at("finetuning"), json.at("seconds").at("finetuning")};
  } catch (const nlohmann::json::exception& error) {
    throw FileError(fmt::format("[checkpoint] {}: the figures of the conversion are damaged ({}); convert anew", file.string(), error.what()));
  }
  if (f.before.heads.empty() || f.before.heads[0].empty())
    throw FileError(fmt::format("[checkpoint] {}: the figures of the conversion have no heads; convert anew", file.string()));
  return f;
}

Report conversion_report(const std::string& title, const ConversionFigures& f, const NamedValues& configuration) {
  Report report;
  report.title = title;
  report.summary = {{"student's loss", fmt::format("{:.4f}", f.student())},
                    {fmt::format("times that of the {}", reference_name(f)), fmt::format("{:.4f}", f.student() / f.reference())},
                    {"won back of what the swap cost", fmt::format("{:.1f} %", 100 * f.recovered())},
                    {fmt::format("perplexity of the {} / student's", reference_name(f)), fmt::format("{:.1f} %", 100 * f.kept())}};
  report.tables = {loss_table(f), divergence_table(f)};
  report.configuration = configuration;
  return report;
}

}  // namespace hedgehog
