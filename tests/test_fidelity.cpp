#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "tests/cli_cases.h"
#include "tests/device_cases.h"
#include "train/experiments.h"
#include "train/fidelity.h"

namespace hedgehog {

using namespace test;

namespace {

const auto kNever = [] { return false; };

/// Numbers count up for ever: no two windows are alike.
TokenDataset dataset_of(std::int64_t numbers) {
  TextSource source;
  for (std::int64_t i = 0; i < numbers; ++i) source.text += "the hedgehog number " + std::to_string(i * i) + " walks home. ";
  source.document_starts = {0};
  return TokenDataset::from_text(source, *byte_tokenizer());
}

Gpt small_teacher(Dtype dtype = Dtype::f32) {
  GptOptions o;
  o.dtype = dtype;
  o.layers = 2, o.heads = 2, o.width = 16, o.context = 128, o.vocabulary = 256, o.attention = "softmax", o.embedding_init = 1;
  return Gpt(o);
}

FidelityPlan small_plan(const std::string& maps, std::int64_t steps) {
  FidelityPlan plan;
  plan.length = 16, plan.spans = 2;
  plan.maps = parse_fidelity_maps(maps);
  plan.distillation.steps = steps, plan.distillation.rows = 4;
  return plan;
}

/// The cell of a teacher's row for a map, in the first column that begins with `column`.
std::string cell(const Findings& f, const std::string& name, const std::string& column, const std::string& positions = "rotary") {
  for (const auto& row : f.rows)
    if (row[0] == positions && row[1] == name)
      for (std::size_t c = 0; c < f.columns.size(); ++c)
        if (f.columns[c].starts_with(column)) return row.at(c);
  return "none";
}

bool noted(const Findings& f, const std::string& part) {
  for (const std::string& note : f.notes)
    if (contains(note, part)) return true;
  return false;
}

/// A request with these options; `config` must outlive it.
ReproduceRequest request_of(Config& config, const std::vector<std::string>& arguments) {
  config.parse(arguments);
  ReproduceRequest request;
  request.config = &config;
  return request;
}

/// A part in which every map has this divergence, and Hedgehog `hedgehog`, `grown` times that at 8 times the length.
PartResult measured(double others, double hedgehog, double grown) {
  PartResult part;
  part.result["teacher_loss"] = 2;
  for (const FidelityMap& map : fidelity_maps()) {
    const double at = map.name == "hedgehog" ? hedgehog : others;
    part.result["maps"][map.name] = {{"before", 1.5}, {"1x", at}, {"2x", at}, {"4x", at}, {"8x", map.name == "hedgehog" ? grown * at : at},
                                     {"other", at}};
  }
  return part;
}

}  // namespace

TEST_CASE("fidelity: names of maps are looked up, and stand in the table's order") {
  const auto maps = parse_fidelity_maps("taylor,exp,hedgehog");
  REQUIRE(maps.size() == 3);
  CHECK(maps[0].name == "hedgehog");
  CHECK(maps[1].attention == "exp");
  CHECK(maps[2].attention.empty());
  CHECK(contains(message_of<UsageError>([] { parse_fidelity_maps("hedgehoc"); }), "did you mean hedgehog?"));
  CHECK(contains(message_of<UsageError>([] { parse_fidelity_maps("xyzzyxyzzy"); }), "there are hedgehog, hedgehog-softmax"));
  CHECK(contains(message_of<UsageError>([] { parse_fidelity_maps("elu,elu"); }), "names elu twice"));
  for (const char* bad : {"", "elu,", ",elu", "elu,,exp", "elu, exp", "\xff"}) {
    CAPTURE(std::string(bad));
    CHECK(contains(message_of<UsageError>([&] { parse_fidelity_maps(bad); }), "--maps: there is no map '"));
  }
}

TEST_CASE("fidelity: every length is measured on the same stretches of text, and a text that lacks one is refused") {
  const TokenDataset text = dataset_of(300);
  const auto long_ones = fidelity_pieces(text, "text", 128, 3, 128), short_ones = fidelity_pieces(text, "text", 128, 3, 16);
  REQUIRE(long_ones.size() == 3);
  REQUIRE(short_ones.size() == 24);
  for (std::size_t i = 0; i < long_ones.size(); ++i) {
    std::vector<std::int32_t> joined;
    for (std::size_t p = 0; p < 8; ++p)
      joined.insert(joined.end(), short_ones[8 * i + p].tokens.begin(), short_ones[8 * i + p].tokens.end());
    CHECK(joined == long_ones[i].tokens);
  }
  CHECK(long_ones[0].tokens != long_ones[1].tokens);
  const std::int64_t all = std::int64_t(text.validation().size());
  CHECK(fidelity_pieces(text, "text", all, 3, all).size() == 1);
  const std::string refused = message_of<UsageError>([&] { fidelity_pieces(text, "the text", all + 1, 3, all + 1); });
  CHECK(contains(refused, "the text is too short: it has " + std::to_string(all) + " tokens"));
  CHECK(contains(refused, std::to_string(all + 1) + " in a row"));
}

TEST_CASE("fidelity: distillation brings every map down, and what stands as it is has analyze's divergence on the same heads") {
  const TokenDataset text = dataset_of(300), other = dataset_of(150);
  const Gpt teacher = small_teacher();
  const FidelityPlan plan =
      small_plan("hedgehog,exp,t2r,elu,hedgehog-untrained,exp-untrained,relu,elu-untrained,performer,cosformer,taylor", 30);
  const FidelityTexts texts = fidelity_texts(text, other, plan);
  const TextSourceBatches source(text, "text", 1, plan.length);
  const std::vector<Fidelity> found = measure_fidelity(teacher, source, texts, plan, kNever);
  REQUIRE(found.size() == plan.maps.size());
  const auto of = [&](const std::string& name) {
    for (std::size_t m = 0; m < found.size(); ++m)
      if (plan.maps[m].name == name) return found[m];
    throw Error("no map " + name);
  };
  std::vector<LengthAnalysis> analysed;
  for (const std::vector<Batch>& batches : texts.held_out) analysed.push_back(analyse_length(teacher, nullptr, batches, false, {}));
  const LengthAnalysis others = analyse_length(teacher, nullptr, texts.other, false, {});
  const auto divergence = [](const LengthAnalysis& a, const std::string& name) {
    for (const MapAnalysis& map : a.maps)
      if (map.name == name) return map.mean().divergence;
    throw Error("no map " + name);
  };
  for (std::size_t m = 0; m < found.size(); ++m) {
    const FidelityMap& map = plan.maps[m];
    CAPTURE(map.name);
    CHECK(found[m].held_out[0] > 0);
    if (!map.attention.empty()) {
      CHECK(found[m].held_out[0] < 0.9 * found[m].before);
      CHECK(found[m].last_loss < found[m].first_loss);
      CHECK(found[m].learning_rate == 1e-2);
      continue;
    }
    CHECK(found[m].before == found[m].held_out[0]);
    for (std::size_t l = 0; l < analysed.size(); ++l)
      CHECK(found[m].held_out[l] == doctest::Approx(divergence(analysed[l], map.plain)).epsilon(1e-12));
    CHECK(found[m].other == doctest::Approx(divergence(others, map.plain)).epsilon(1e-12));
  }
  // distilled maps start where the untrained ones stand; features of a model in f32
  for (const auto& [learns, stands] :
       {std::pair{"hedgehog", "hedgehog-untrained"}, {"exp", "exp-untrained"}, {"t2r", "relu"}, {"elu", "elu-untrained"}})
    CHECK(of(learns).before == doctest::Approx(of(stands).before).epsilon(1e-5));
  CHECK_THROWS_AS(measure_fidelity(teacher, source, texts, plan, [] { return true; }), Stopped);
}

TEST_SUITE("device") {
  TEST_CASE("fidelity: a teacher in bf16 is measured in f32, distilled maps and those that stand as they are alike") {
    on_cuda([] {
      const TokenDataset text = dataset_of(300);
      const Gpt teacher = small_teacher(Dtype::bf16);
      const FidelityPlan plan = small_plan("hedgehog,elu,hedgehog-untrained,elu-untrained", 30);
      const FidelityTexts texts = fidelity_texts(text, text, plan);
      const std::vector<Fidelity> found = measure_fidelity(teacher, TextSourceBatches(text, "text", 1, plan.length), texts, plan, kNever);
      for (const std::size_t learns : {0, 1}) {
        CHECK(found[learns].before == doctest::Approx(found[learns + 2].before).epsilon(1e-5));  // features in bf16 are off by 1e-3
        CHECK(found[learns].held_out[0] < 0.9 * found[learns].before);
      }
    });
  }
}

TEST_CASE("fidelity: of several learning rates the one of the lower loss at the end is kept") {
  const TokenDataset text = dataset_of(300);
  const Gpt teacher = small_teacher();
  FidelityPlan plan = small_plan("hedgehog", 8);
  const FidelityTexts texts = fidelity_texts(text, text, plan);
  const TextSourceBatches source(text, "text", 1, plan.length);
  const auto with = [&](std::vector<double> rates) {
    plan.rates = std::move(rates);
    return measure_fidelity(teacher, source, texts, plan, kNever)[0];
  };
  const Fidelity slow = with({1e-6}), fast = with({1e-2}), both = with({1e-6, 1e-2}), turned = with({1e-2, 1e-6});
  CHECK(fast.last_loss < slow.last_loss);
  for (const Fidelity& kept : {both, turned}) {
    CHECK(kept.learning_rate == 1e-2);
    CHECK(kept.held_out == fast.held_out);
  }
  CHECK(with({1e-2, 1e38}).held_out == fast.held_out);
  CHECK(with({1e38, 1e-2}).held_out == fast.held_out);
  CHECK_THROWS_AS(with({1e38}), DistillationDiverged);
}

TEST_CASE("fidelity: the table, its orderings and its chart") {
  const Experiment e = fidelity_experiment();
  Config config("reproduce");
  const ReproduceRequest request = request_of(config, {"--maps=hedgehog,exp,t2r,elu,relu"});
  CHECK(e.parts(request).size() == 2);
  // at 8 times the length Hedgehog of the second teacher is no longer below the others
  PartResults results = {{"rotary-seed1", measured(0.4, 0.1, 1.1)}, {"none-seed1", measured(0.4, 0.1, 4.5)}};
  const Findings f = e.collect(request, results);
  REQUIRE(f.rows.size() == 10);
  for (const auto& row : f.rows) CHECK(row.size() == f.columns.size());
  CHECK(cell(f, "hedgehog", "1×") == "0.100");
  CHECK(cell(f, "hedgehog", "8×: 512 tokens") == "0.110");
  CHECK(cell(f, "hedgehog", "8×/1×") == "1.10");
  CHECK(cell(f, "hedgehog", "8×/1×", "none") == "4.50");
  CHECK(cell(f, "hedgehog", "paper") == "lowest, flat");
  CHECK(cell(f, "hedgehog", "before") == "1.500");
  CHECK(cell(f, "relu", "before") == "");
  CHECK(cell(f, "elu", "other text", "none") == "0.400");
  CHECK(cell(f, "elu", "seeds") == "1");
  REQUIRE(f.charts.size() == 2);
  CHECK(f.charts[0]["series"].size() == 5);
  CHECK(f.charts[0]["series"][0]["x"] == ExperimentJson({64.0, 128.0, 256.0, 512.0}));
  CHECK(noted(f,
              "orderings, rotary: Hedgehog below exp without negation: yes; below ReLU and T2R: yes; below 1+ELU: yes; below every other "
              "map here: yes; flat with length: yes (8×/1× = 1.10"));
  CHECK(noted(f,
              "orderings, none: Hedgehog below exp without negation: not for exp (8×); below ReLU and T2R: not for t2r (8×), relu (8×); below 1+ELU: not "
              "for elu (8×); "));
  CHECK(noted(f, "flat with length: no (8×/1× = 4.50"));
  CHECK(f.figures["none"]["orderings"]["flat with length"] == false);
  CHECK(f.figures["rotary"]["orderings"]["below every other map here"] == true);
  Config without("reproduce");
  CHECK_FALSE(noted(e.collect(request_of(without, {"--maps=elu"}), results), "Hedgehog below"));
  results["rotary-seed1"].result["maps"]["elu"]["1x"] = nullptr;  // not finite
  results.erase("none-seed1");
  const Findings part = e.collect(request, results);
  CHECK(cell(part, "elu", "1×") == "-");
  CHECK(cell(part, "elu", "8×/1×") == "-");
  CHECK(cell(part, "elu", "1×", "none") == "-");
  CHECK(cell(part, "elu", "seeds", "none") == "0");
  CHECK_FALSE(noted(part, "orderings, none"));
  ReproduceRequest gpu;
  gpu.size = "gpu";
  CHECK(e.parts(gpu).size() == 6);
  const Findings all = e.collect(gpu, {{"none-seed1", measured(1, 0.1, 1)}, {"none-seed2", measured(1, 0.3, 1)}});
  CHECK(all.rows.size() == 2 * fidelity_maps().size());
  CHECK(cell(all, "hedgehog", "8×: 2048 tokens", "none") == "0.200 ± 0.100");
}

TEST_CASE("cli: fidelity measures maps on texts of one's own, and refuses what it cannot read or measure") {
  const TemporaryDirectory d;
  const std::string text = some_text();
  REQUIRE(text.size() >= 5200);  // a tenth holds 512 bytes once
  REQUIRE(text.size() < 10240);
  d.file("text.txt", text);
  d.file("short.txt", text.substr(0, 5000));
  d.file("tiny.txt", "few words");
  d.file("empty.txt", "");
  d.file("picture.txt", std::string("GIF\0\0", 5));
  const std::string at = d.path().string(), command = "reproduce fidelity --threads=1 --training_tokens=1600 --data=text.txt ";
  const ProgramResult one = run_program(command + "--maps=relu,elu-untrained --out=out --part=none-seed1", at);
  CAPTURE(one.output);
  CHECK(one.code == 0);
  CHECK(contains(one.output, "1 of 2 parts are there, 1 to go: rotary-seed1"));
  const ProgramResult good = run_program(command + "--maps=relu,elu-untrained --out=out --collect", at);
  CAPTURE(good.output);
  CHECK(good.code == 0);
  for (const char* part : {"positions  map            learns", "8×: 512 tokens", "elu-untrained"}) CHECK(contains(good.output, part));
  CHECK(contains(bytes_of(d / "out/fidelity.html"), "elu-untrained"));
  check_refused(run_program(command + "--maps=hedgehoc", at), 2, {"--maps", "'hedgehoc'", "did you mean hedgehog?"});
  check_refused(run_program(command + "--other=nothing.txt", at), 3, {"--other", "no file or directory 'nothing.txt'"});
  check_refused(run_program(command + "--other=text.txt", at), 2, {"--other=text.txt", "own text"});
  check_refused(run_program(command + "--other=-", at), 2, {"--other", "standard input"});
  check_refused(run_program(command + "--tokenizer=bpe", at), 2, {"leave --tokenizer out"});
  check_refused(run_program("reproduce fidelity --data=nothing.txt", at), 3, {"--data", "no file or directory 'nothing.txt'"});
  check_refused(run_program("reproduce fidelity --data=short.txt", at), 2,
                {"--data=short.txt is too short", "5000 bytes", "512 tokens in a row"});
  for (const auto& [file, part] : {std::pair{"tiny.txt", "--other is too short: it has 9 tokens"},
                                   {"empty.txt", "--other: cannot train on 'empty.txt': it is empty"},
                                   {"picture.txt", "it is not text"}}) {
    const ProgramResult r = run_program(command + "--other=" + file, at);
    CAPTURE(r.output);
    CHECK(r.code == (std::string(file) == "tiny.txt" ? 2 : 3));
    CHECK(contains(r.output, part));
  }
}

}  // namespace hedgehog
