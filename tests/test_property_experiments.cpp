#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "tests/cli_cases.h"
#include "train/analysis.h"
#include "train/analysis_texts.h"
#include "train/experiments.h"
#include "train/map_distillation.h"

namespace hedgehog {

using namespace test;

namespace {

const auto kNever = [] { return false; };

/// The cell of a row that begins with `name`.
std::string cell(const Findings& f, const std::string& name, const std::string& column, std::size_t skip = 0) {
  for (const auto& row : f.rows)
    if (row[0] == name)
      for (std::size_t c = 0; c < f.columns.size(); ++c)
        if (f.columns[c] == column && skip-- == 0) return row[c];
  return "none";
}

bool noted(const Findings& f, const std::string& part) {
  for (const std::string& note : f.notes)
    if (contains(note, part)) return true;
  return false;
}

/// A part in which every map has this share of ln n and this rank, but for those named.
PartResult measured(double share, double rank, const std::map<std::string, std::pair<double, double>>& others) {
  PartResult part;
  part.result["scores_below_minus_1"] = 0.25;
  for (const char* map : {"softmax", "hedgehog, distilled", "hedgehog", "elu", "relu", "exp(1)", "exp(2)", "cosformer", "performer", "taylor"}) {
    const auto other = others.find(map);
    const auto [s, r] = other == others.end() ? std::pair(share, rank) : other->second;
    part.result["maps"][map] = {{"entropy", s}, {"entropy_share", s}, {"rank_in_rows", r}, {"rank_pooled", r}, {"divergence", nullptr}};
  }
  return part;
}

}  // namespace

TEST_CASE("distil_maps: the divergence falls, and nothing but the maps changes") {
  StoryBatches source(1, 64, 8);
  GptOptions options;
  options.layers = 2, options.heads = 2, options.width = 16, options.context = 64, options.vocabulary = std::int64_t(source.corpus().vocabulary().size());
  options.attention = "softmax", options.embedding_init = 1;
  const Gpt teacher(options);
  options.attention = "hedgehog";
  Gpt student(options);
  const std::vector<Batch> texts = story_texts(1, 64, 2);
  const double before = analyse_length(teacher, &student, texts, false, {}).maps[1].mean().divergence;
  std::vector<std::vector<double>> weights;
  for (const Tensor& p : student.parameters().all()) weights.push_back(p.to_vector());
  const std::vector<double> losses = distil_maps(teacher, student, source, {.steps = 200, .rows = 4}, kNever);
  CHECK(losses.size() == 200);
  const double after = analyse_length(teacher, &student, texts, false, {}).maps[1].mean().divergence;
  CAPTURE(before);
  CAPTURE(after);
  CHECK(after < 0.6 * before);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Tensor& p = student.parameters().all()[i];
    CAPTURE(p.name());
    CHECK((p.to_vector() == weights[i]) == (p.name().find("map_") == std::string::npos));
  }
  CHECK_THROWS_AS(distil_maps(teacher, student, source, {.steps = 1}, [] { return true; }), Stopped);
}

TEST_CASE("spikiness and monotonicity: yes and no by the thresholds, beside the paper's") {
  const PartResults results = {{"seed1", measured(0.9, 0.5, {{"softmax", {0.4, 1}}, {"taylor", {0.69, 0.91}}, {"performer", {0.71, 0.89}}})},
                               {"seed2", measured(0.9, 0.5, {{"softmax", {0.4, 1}}, {"taylor", {0.69, 0.91}}, {"performer", {0.71, 0.89}}})}};
  const Findings spiky = spikiness_experiment().collect({}, results), monotone = monotonicity_experiment().collect({}, results);
  // halfway from 0.4 to 1 is 0.7
  CHECK(cell(spiky, "softmax", "ours") == "yes");
  CHECK(cell(spiky, "Taylor-2", "ours") == "yes");
  CHECK(cell(spiky, "Performer", "ours") == "no");
  CHECK(cell(spiky, "1+ELU", "towards uniform") == "83 %");
  CHECK(cell(spiky, "1+ELU", "paper: spiky") == "no");
  CHECK(cell(spiky, "Taylor-2", "share of ln n") == "0.690 ± 0.000");
  CHECK(cell(spiky, "1+ELU", "KL from softmax, nats") == "-");
  CHECK(noted(monotone, "here 25.0 ± 0.0 % of them lie below"));
  CHECK(cell(monotone, "Taylor-2", "ours") == "yes");
  CHECK(cell(monotone, "Performer", "ours") == "no");
  CHECK(cell(monotone, "Performer", "rank in rows") == "0.890 ± 0.000");
}

TEST_CASE("efficiency: ratios, and where Hedgehog becomes the faster one for good") {
  const auto part = [](double softmax, double hedgehog) {
    PartResult p;
    for (const char* pass : {"forward", "training"}) {
      p.result["softmax"][pass] = {{"seconds", softmax}, {"fastest", softmax}, {"slowest", softmax}, {"peak_bytes", 1 << 20}};
      p.result["hedgehog"][pass] = {{"seconds", hedgehog}, {"fastest", hedgehog}, {"slowest", hedgehog}, {"peak_bytes", 3 << 20}};
    }
    return p;
  };
  const Experiment e = efficiency_experiment();
  PartResults results = {{"n512", part(1, 2)}, {"n1024", part(4, 2)}, {"n2048", part(16, 4)}};
  const Findings f = e.collect({}, results);
  CHECK(f.rows.size() == 3);
  CHECK(cell(f, "2048", "ratio") == "4.00");
  CHECK(cell(f, "2048", "Hedgehog") == "4000 (4000–4000)");
  CHECK(cell(f, "512", "Hedgehog", 2) == "3 MiB");
  // the ratio goes from 1/2 to 2 as the length doubles: 1 at the geometric mean
  CHECK(noted(f, "forward from about 724 tokens on"));
  results["n512"] = part(3, 2);
  CHECK(noted(e.collect({}, results), "forward at 512 tokens already"));
  results["n2048"] = part(1, 4);
  CHECK(noted(e.collect({}, results), "forward not up to 2048 tokens"));
  CHECK(e.collect({}, {}).rows.empty());
  CHECK(e.parts({}).size() == 9);
  ReproduceRequest gpu;
  gpu.size = "gpu";
  CHECK(e.parts(gpu).back().name == "n131072");
}

TEST_CASE("cli: reproduce spikiness takes a softmax checkpoint, and no other") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), train = std::string("train --data=text.txt --report=false ") + kSmall;
  REQUIRE(run_program(train + "--attention=softmax --out=soft", at).code == 0);
  REQUIRE(run_program(train + "--out=linear", at).code == 0);
  const ProgramResult r = run_program("reproduce spikiness --checkpoint=soft", at);
  CAPTURE(r.output);
  CHECK(r.code == 0);
  for (const char* part : {"paper: spiky", "Hedgehog, distilled", "Performer", "spikiness.html"}) CHECK(contains(r.output, part));
  const ProgramResult linear = run_program("reproduce monotonicity --checkpoint=linear", at);
  CAPTURE(linear.output);
  CHECK(linear.code == 2);
  CHECK(contains(linear.output, "--checkpoint=linear has hedgehog attention"));
  CHECK(run_program("reproduce monotonicity --checkpoint=nowhere", at).code == 3);
  const ProgramResult efficiency = run_program("reproduce efficiency --part=n512", at);
  CAPTURE(efficiency.output);
  CHECK(efficiency.code == 0);
  CHECK(contains(efficiency.output, "1 of 9 parts are there"));
}

}  // namespace hedgehog
