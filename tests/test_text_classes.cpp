#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/cli_cases.h"
#include "tests/op_cases.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/text_classes.h"

// Encoders that learn classes of texts.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;

const fs::path kBert = fs::path(HH_SOURCE_DIR) / "tests/data/models/bert";

/// Letters; class 1 where there is a z.
LabelledTexts letters(int count) {
  LabelledTexts data;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (int j = 0; j < 3 + i % 4; ++j) text += std::string(j ? " " : "") + char('a' + (i * 7 + j * 5) % 20);
    if (i % 2) text.insert(std::size_t(i % 3) * 2, "z ");
    data.texts.push_back(text);
    data.labels.push_back(i % 2);
  }
  return data;
}

std::string table(const LabelledTexts& data) {
  std::string text = "label\ttext\n";
  for (std::size_t i = 0; i < data.texts.size(); ++i) text += std::to_string(data.labels[i]) + "\t" + data.texts[i] + "\n";
  return text;
}

}  // namespace

TEST_CASE("text classes: an encoder learns to tell texts apart, and the same again from the same seed") {
  const Checkpoint c = load_checkpoint(kBert, false);
  const LabelledTexts data = letters(24), other = letters(40);
  const ClassTraining options{.epochs = 30, .batch = 8, .learning_rate = 5e-3};
  std::vector<double> losses[2];
  std::vector<std::int32_t> found;
  for (auto& run : losses) {
    Gpt model = with_classes(*c.model, data.classes(), options);
    train_classes(model, *c.tokenizer, data, options, [&](std::int64_t, std::int64_t steps, double loss) {
      CHECK(steps == 90);
      run.push_back(loss);
      return true;
    });
    found = classes_of(model, *c.tokenizer, other.texts);
  }
  CHECK(losses[0].size() == 90);
  CHECK(losses[0] == losses[1]);
  CHECK(losses[0].back() < 0.1);  // from ln 2 = 0.69
  int right = 0;
  for (std::size_t i = 0; i < other.labels.size(); ++i) right += found[i] == other.labels[i];
  CHECK(right >= 38);  // 16 of the 40 are new
}

TEST_CASE("text classes: the loss is the cross entropy of each row's class, and the starting weights are the encoder's") {
  const Checkpoint c = load_checkpoint(kBert, false);
  const Gpt model = with_classes(*c.model, 3, {});
  CHECK(model.parameters().find("h.1.mlp.c_fc.weight").to_vector() == c.model->parameters().find("h.1.mlp.c_fc.weight").to_vector());
  const no_grad guard;
  const Tensor tokens = constant({2, 3}, {2, 7, 3, 2, 9, 3}, Dtype::i32), targets = constant({2, 3}, {2, -1, -1, 0, -1, -1}, Dtype::i32);
  const std::vector<double> logits = model.classify(model.pooled(model.hidden(tokens))).to_vector();
  double wanted = 0;
  for (const auto& [row, label] : {std::pair<std::size_t, std::size_t>{0, 2}, {1, 0}}) {
    double sum = 0;
    for (std::size_t k = 0; k < 3; ++k) sum += std::exp(logits[3 * row + k]);
    wanted += (std::log(sum) - logits[3 * row + label]) / 2;
  }
  const double found = class_loss()(model, tokens, targets, constant({1}, {0.5}, Dtype::f32), {}).item();
  CHECK(std::abs(found - wanted) <= 1e-5);  // f32 numbers about 1
}

TEST_CASE("text classes: files of labelled texts, and refusals that name the line") {
  const TemporaryDirectory d;
  const auto read = [&](const std::string& text) {
    write_file(d / "t.tsv", text);
    return read_labelled_texts(d / "t.tsv");
  };
  const LabelledTexts plain = read("label\ttext\n1\tone two\r\n0\t\n"), cola = read("gj04\t1\t\tA text.\nks\t0\t*\tOf text a.\n");
  CHECK(plain.texts == std::vector<std::string>{"one two", ""});
  CHECK(plain.labels == std::vector<std::int32_t>{1, 0});
  CHECK(plain.classes() == 2);
  CHECK(cola.texts == std::vector<std::string>{"A text.", "Of text a."});
  CHECK(cola.labels == std::vector<std::int32_t>{1, 0});
  const auto message = [&](const std::string& text) { return message_of<FileError>([&] { read(text); }); };
  CHECK(contains(message("1\ta\nno tab\n"), "line 2 must be label TAB text"));
  CHECK(contains(message("1\ta\nx\tb\n"), "line 2 must have a label from 0 to 999, but has 'x'"));
  CHECK(contains(message("-1\ta\n"), "'-1'"));
  CHECK(contains(message("99999999999\ta\n"), "label from 0"));
  CHECK(contains(message(""), "holds no labelled text"));
  const Checkpoint c = load_checkpoint(kBert, false);
  GptOptions o;
  o.layers = 1, o.width = 8, o.context = 8, o.vocabulary = 50;
  CHECK(contains(message_of<UsageError>([&] { with_classes(Gpt(o), 2, {}); }), "language model"));
  CHECK(contains(message_of<UsageError>([&] { with_classes(*c.model, 1, {}); }), "only texts of class 0"));
  CHECK(contains(message_of<UsageError>([&] { with_classes(with_classes(*c.model, 2, {}), 3, {}); }), "tells 2 classes, but the data has 3"));
  Gpt model = with_classes(*c.model, 2, {});
  const auto all = [](std::int64_t, std::int64_t, double) { return true; };
  const auto untrained = [&](const LabelledTexts& data, const ClassTraining& o) {
    return message_of<UsageError>([&] { train_classes(model, *c.tokenizer, data, o, all); });
  };
  CHECK(contains(untrained(letters(4), {}), "--batch=16 exceeds the 4 texts"));
  CHECK(contains(untrained({{"a"}, {2}}, {.batch = 1}), "a label is 2"));
}

TEST_CASE("cli: finetune teaches an encoder classes, eval measures them") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  fs::copy(kBert, d / "bert", fs::copy_options::recursive);
  d.file("train.tsv", table(letters(24)));
  const ProgramResult trained =
      run_program("finetune --from=bert --data=train.tsv --out=told --epochs=30 --batch=8 --finetune_learning_rate=5e-3", at);
  CAPTURE(trained.output);
  REQUIRE(trained.code == 0);
  CHECK(contains(trained.output, "24 texts of 2 classes"));
  const ProgramResult measured = run_program("eval --checkpoint=told --data=train.tsv --json", at);
  CAPTURE(measured.output);
  REQUIRE(measured.code == 0);
  const nlohmann::json json = nlohmann::json::parse(measured.output);
  CHECK(double(json["accuracy"]) >= 0.95);
  CHECK(double(json["matthews_correlation"]) >= 0.9);
  CHECK(contains(run_program("eval --checkpoint=told --data=train.tsv", at).output, "Matthews correlation"));
  check_refused(run_program("eval --checkpoint=told", at), 2, {"label TAB text"});
  // a text cut to its first letter is another one
  CHECK(run_program("eval --checkpoint=told --data=train.tsv --json --length=3", at).output != measured.output);
  check_refused(run_program("eval --checkpoint=told --data=train.tsv --length=2", at), 2, {"--length=2 leaves no room for a text: 2 tokens"});
  check_refused(run_program("eval --checkpoint=told --data=train.tsv --stride=2", at), 2, {"--stride belongs to language models"});
  check_refused(run_program("finetune --from=bert --out=x", at), 2, {"finetune needs --data"});
  check_refused(run_program("finetune --from=bert --data=train.tsv --out=x --length=2", at), 2, {"--length=2 leaves no room"});
  check_refused(run_program("finetune --from=bert --data=train.tsv --out=bert", at), 2, {"--out=bert exists already", "lost"});
  check_refused(run_program("import --from=bert --out=told", at), 2, {"--out=told exists already", "lost"});
  CHECK(fs::exists(d / "bert/config.json"));
}

}  // namespace hedgehog
