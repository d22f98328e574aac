#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "tests/batch_cases.h"
#include "tests/cli_cases.h"
#include "train/evaluation.h"
#include "train/experiment_training.h"

namespace hedgehog {
namespace {

using namespace test;

GptOptions performer(std::int64_t redraw, Dtype dtype = Dtype::f64) {
  GptOptions o;
  o.heads = 2;
  o.width = 16;
  o.context = 12;
  o.vocabulary = 11;
  o.attention = "performer";
  o.features.performer_features = 20;  // two whole blocks of 8 orthogonal vectors, and half of one
  o.features.performer_redraw = redraw;
  o.dtype = dtype;
  return o;
}

std::vector<double> projection(const Gpt& model, std::int64_t layer) { return model.attention(layer).projection().to_vector(); }

/// Rows of a block are orthogonal, and as long as independent normal vectors are: not all alike.
void check_orthogonal(const std::vector<double>& w, std::size_t D) {
  const std::size_t rows = w.size() / D;
  const auto product = [&](std::size_t i, std::size_t j) {
    double sum = 0;
    for (std::size_t d = 0; d < D; ++d) sum += w[i * D + d] * w[j * D + d];
    return sum;
  };
  double mean = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    mean += product(i, i) / double(rows);
    for (std::size_t j = i + 1; j < rows && j / D == i / D; ++j)
      CHECK(std::abs(product(i, j)) <= 1e-13 * std::sqrt(product(i, i) * product(j, j)));
  }
  // squared norms have mean D and variance 2 D: five standard errors of the mean
  CHECK(std::abs(mean - double(D)) <= 5 * std::sqrt(2 * double(D) / double(rows)));
  CHECK(std::abs(product(0, 0) - product(1, 1)) > 1e-3);
}

}  // namespace

TEST_CASE("performer redraw: the projection changes before every N-th step, in every layer, and is orthogonal") {
  Gpt model(performer(3)), never(performer(0));
  std::vector<std::vector<double>> seen;
  for (std::int64_t step = 0; step < 10; ++step) {
    CAPTURE(step);
    const auto before = projection(model, 0);
    CHECK(model.redraws_before(step) == (step > 0 && step % 3 == 0));
    model.redraw_before(step);
    CHECK((projection(model, 0) != before) == (step > 0 && step % 3 == 0));
    CHECK_FALSE(model.redraws_before(step));
    CHECK(projection(model, 0) != projection(model, 1));
    CHECK(model.options().features.performer_draw == step / 3);
    if (step % 3 == 0) {
      for (const auto& earlier : seen) CHECK(projection(model, 0) != earlier);
      seen.push_back(projection(model, 0));
      for (std::int64_t layer = 0; layer < 2; ++layer) check_orthogonal(projection(model, layer), 8);
    }
    never.redraw_before(step);
    CHECK(projection(never, 0) == seen[0]);
  }
  // a step's draw does not depend on how it was reached
  Gpt other(performer(3));
  other.redraw_before(7);
  CHECK(projection(other, 0) == seen[2]);
  GptOptions options = performer(3);
  options.features.performer_draw = 1;
  CHECK(projection(Gpt(options), 0) == seen[1]);
}

TEST_CASE("performer redraw: a recorded program computes with the new draw") {
  Gpt model(performer(2));
  Evaluator evaluator(model, 2, 12, false);
  const Batch batch = counting_batch(2, 12, 11, 4);
  const double first = evaluator.total_loss(batch);
  model.redraw_before(1);
  CHECK(evaluator.total_loss(batch) == first);
  model.redraw_before(2);
  const double second = evaluator.total_loss(batch);
  CHECK(second != first);
  GptOptions options = performer(0);
  options.features.performer_draw = 1;
  CHECK(Evaluator(Gpt(options), 2, 12, false).total_loss(batch) == second);
}

TEST_CASE("performer redraw: options that cannot be are refused") {
  GptOptions options = performer(-1);
  CHECK_THROWS_WITH_AS(Gpt{options}, doctest::Contains("performer_redraw must be 0"), ShapeError);
  options = performer(5);
  options.attention = "hedgehog";
  CHECK_THROWS_WITH_AS(Gpt{options}, doctest::Contains("but the attention is hedgehog"), ShapeError);
}

TEST_CASE("cli: a run that draws Performer's vectors anew is resumed bit for bit, before, at and after a draw") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  const std::string train = std::string("train --data=text.txt --attention=performer --schedule=constant ") + kSmall;
  REQUIRE(run_program(train + "--performer_redraw=2 --out=whole", at).code == 0);
  REQUIRE(run_program(train + "--out=never", at).code == 0);
  // the last step is the sixth, number 5: its draw is what the model has
  CHECK(contains(bytes_of(d / "whole/last/state.json"), "\"performer_draw\": 2"));
  CHECK(bytes_of(d / "whole/last/model.safetensors") != bytes_of(d / "never/last/model.safetensors"));
  for (const char* stop : {"1", "4", "5"}) {
    CAPTURE(stop);
    std::filesystem::remove_all(d / "parts");
    REQUIRE(run_program(train + "--performer_redraw=2 --out=parts --stop_at=" + stop, at).code == 0);
    REQUIRE(run_program("train --quiet --resume=parts", at).code == 0);
    for (const char* file : {"/last/model.safetensors", "/last/optimizer.safetensors"})
      CHECK(bytes_of(d / (std::string("parts") + file)) == bytes_of(d / (std::string("whole") + file)));
    CHECK(contains(bytes_of(d / "parts/last/state.json"), "\"performer_draw\": 2"));
  }
  // a loaded model evaluates with the draw that it was saved with: the loss is the run's own
  const std::string state = bytes_of(d / "whole/last/state.json"), loss = run_program("eval --checkpoint=whole --json --batch=2", at).output;
  const auto number = [](const std::string& text, const std::string& name) { return std::stod(text.substr(text.find(name) + name.size())); };
  CHECK(number(loss, "\"loss\":") == number(state, "\"last_validation\":"));
  CHECK(run_program("sample --checkpoint=whole --tokens=5 --prompt=the", at).code == 0);

  check_refused(run_program("train --quiet --steps=8 --resume=whole --performer_redraw=3", at), 2, {"--performer_redraw", "cannot change"});
  check_refused(run_program(train + "--performer_redraw=-1", at), 2, {"--performer_redraw"});
  check_refused(run_program(std::string("train --data=text.txt --performer_redraw=2 ") + kSmall, at), 2,
                {"--performer_redraw", "--attention=performer"});
  std::string damaged = state;
  damaged.replace(damaged.find("\"performer_draw\": 2"), 19, "\"performer_draw\": -2");
  d.file("whole/last/state.json", damaged);
  check_refused(run_program("eval --checkpoint=whole", at), 3, {"model.performer_draw"});
}

TEST_CASE("performer redraw: experiments train with it too") {
  const Config config =
      training_config("attention=performer performer_redraw=2 layers=1 heads=2 width=16 context=16 batch=2 steps=6 warmup=2");
  const TrainingPlan plan = training_plan(config, 256);
  CHECK(plan.model.features.performer_redraw == 2);
  TextSource text;
  text.text = some_text();
  text.document_starts = {0};
  const TextSourceBatches source(TokenDataset::from_text(text, *byte_tokenizer()), "text", 1, 16);
  const TrainedModel trained = train_model(plan, source, [](const Gpt&) { return 0.0; }, [] { return false; });
  CHECK(trained.model->options().features.performer_draw == 2);
}

}  // namespace hedgehog
