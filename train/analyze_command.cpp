#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "core/error.h"
#include "train/analysis_page.h"
#include "train/analysis_texts.h"
#include "train/commands.h"
#include "train/files.h"

namespace hedgehog {

namespace {

constexpr std::int64_t kLongest = 16384;  // the work grows with the square
constexpr std::int64_t kPictures = 8;     // heads: the page stays under 3 MB

/// "64,128,256" as numbers. Throws UsageError naming the part that is none.
std::vector<std::int64_t> parse_lengths(const std::string& text) {
  std::vector<std::int64_t> lengths;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::int64_t value = 0;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, value);
    if (error != std::errc{} || stop != text.data() + end || value < 2 || value > kLongest)
      throw UsageError(fmt::format("--lengths={}: '{}' is not a whole number from 2 to {}; give lengths as 64,128,256", text,
                                   text.substr(begin, end - begin), kLongest));
    lengths.push_back(value);
    begin = end + 1;
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

/// Those that --lengths names, or a quarter, a half and all of the context.
std::vector<std::int64_t> lengths_of(const Config& config, const GptOptions& model, const Gpt* student) {
  std::int64_t most = model.longest();
  std::string reason = model.positions == "learned" ? fmt::format("the model's learned positions end at {}", most)
                                                    : fmt::format("the model's cosFormer weights end at {}", most);
  if (student && student->options().attention == "cosformer" && student->options().longest() < most) {
    most = student->options().longest();
    reason = fmt::format("the student's cosFormer weights end at {}", most);
  }
  if (!config.has("lengths")) {
    const std::int64_t context = std::min({model.context, most, kLongest});
    std::vector<std::int64_t> lengths;
    for (const std::int64_t part : {4, 2, 1})
      if (context / part >= 2) lengths.push_back(context / part);
    if (lengths.empty()) throw UsageError("the model has a context of one token, where there is nothing to attend to; give a model of a longer --context");
    return lengths;
  }
  const std::vector<std::int64_t> lengths = parse_lengths(config.text("lengths"));
  if (lengths.back() > most)
    throw UsageError(fmt::format("--lengths={} is too long: {} tokens; give at most that", lengths.back(), reason));
  return lengths;
}

void print_layers(const LengthAnalysis& length, const MeasureColumn& column) {
  const std::size_t shown = std::min<std::size_t>(length.maps[0].heads.size(), 12);
  fmt::print("  {:<26}", fmt::format("{}, layer", column.title));
  for (std::size_t l = 0; l < shown; ++l) fmt::print(" {:>7}", l + 1);
  fmt::print("\n");
  for (const MapAnalysis& map : length.maps) {
    fmt::print("  {:<26}", map.name);
    for (std::size_t l = 0; l < shown; ++l) fmt::print(" {:>7}", measure_text(map.layer(l).*column.value));
    fmt::print("\n");
  }
}

void print_length(const LengthAnalysis& length) {
  fmt::print("\n{} tokens, {} {}; means over layers and heads\n  {:<26}", length.length, length.texts, length.texts == 1 ? "text" : "texts", "attention");
  for (const MeasureColumn& c : measure_columns()) fmt::print(" {:>13}", c.title);
  fmt::print("\n");
  for (const MapAnalysis& map : length.maps) {
    fmt::print("  {:<26}", map.name);
    for (const MeasureColumn& c : measure_columns()) fmt::print(" {:>{}}", measure_text(map.mean().*c.value), 13);
    fmt::print("\n");
  }
}

void print_lengths(const std::vector<LengthAnalysis>& lengths) {
  for (const LengthAnalysis& length : lengths) print_length(length);
  fmt::print("\n");
  for (const MeasureColumn& c : measure_columns())
    if (c.value == &WeightMeasures::entropy_share || c.value == &WeightMeasures::rank_in_rows || c.value == &WeightMeasures::divergence)
      print_layers(lengths.back(), c);
}

/// What is measured are weights over all tokens before; those of a window and of an encoder are others.
void check_sight(const Gpt& model, const char* which) {
  if (!model.options().causal)
    throw UsageError(fmt::format("the {} is an encoder, whose tokens see those behind them, and analyze measures attention to those "
                                 "before; give a language model", which));
  if (model.options().window > 0)
    throw UsageError(fmt::format("the {}'s attention has a window of {} tokens, and analyze measures attention to all of them; give a model that was "
                                 "trained without --window", which, model.options().window));
}

}  // namespace

int analyze_command(Config& config) {
  const auto start = std::chrono::steady_clock::now();
  const OnDevice guard(configure_machine(config));
  const std::filesystem::path found = find_checkpoint(config.text("checkpoint"));
  const Checkpoint checkpoint = load_checkpoint(found, false);
  const Gpt& model = *checkpoint.model;
  check_sight(model, "checkpoint");
  Checkpoint student;
  if (config.has("student")) {
    student = load_checkpoint(find_checkpoint(config.text("student")), false);
    check_student(model, *student.model);
    check_sight(*student.model, "student");
  }
  const std::vector<std::int64_t> lengths = lengths_of(config, model.options(), student.model.get());
  const AnalysisTexts texts(config, checkpoint, found);
  for (const std::string& note : texts.notes()) fmt::print(stderr, "note: {}\n", note);
  Analysis analysis{.checkpoint = found.string(), .attention = model.options().attention, .student = config.has("student") ? config.text("student") : "",
                    .data = texts.name(), .step = checkpoint.run.step, .layers = model.options().layers, .heads = model.options().heads,
                    .head_width = model.options().query_width(), .options = {}, .lengths = {}, .pictures = {}};
  analysis.options.seed = std::uint64_t(config.integer("seed"));
  std::vector<std::vector<Batch>> batches;  // all before the first is read: a length that the text lacks is refused at once
  for (const std::int64_t length : lengths) batches.push_back(texts.of_length(length, config.integer("rows")));
  for (const std::vector<Batch>& rows : batches)
    analysis.lengths.push_back(analyse_length(model, student.model.get(), rows, texts.documents(), analysis.options));
  analysis.picture_length = lengths.back();
  analysis.pictures = draw_heads(model, student.model.get(), batches.back()[0], texts.documents(), kPictures, analysis.options);

  const std::filesystem::path folder = config.has("out") ? std::filesystem::path(config.text("out")) : found.parent_path() / "analysis";
  make_directories(folder);
  const std::string json = analysis_json(analysis).dump(1) + "\n";
  replace_file(folder / "analysis.json", json);
  replace_file(folder / "analysis.html", analysis_html(analysis));
  if (config.flag("json")) {
    fmt::print("{}", json);
    return kGood;
  }
  fmt::print("checkpoint  {}: step {}, {} attention, {} layers of {} heads\n", found.string(), analysis.step, analysis.attention, analysis.layers,
             analysis.heads);
  fmt::print("text        {}\n", analysis.data);
  print_lengths(analysis.lengths);
  fmt::print("\nwritten     {} and analysis.json, in {:.1f} s\n", (folder / "analysis.html").string(),
             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return kGood;
}

}  // namespace hedgehog
