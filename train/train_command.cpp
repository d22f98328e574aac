#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "train/commands.h"
#include "train/generation.h"
#include "train/trainer.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

/// Options that a checkpoint fixes: giving them with --resume is an error.
const char* const kFixed[] = {"data",          "preset",        "attention",  "layers", "heads",     "width",
                              "context",       "positions",     "norm",       "bias",   "activation", "init",
                              "tied_head",     "embedding_init", "short_convolution", "map_init_gain", "tokenizer", "vocabulary",
                              "window",        "decay_gate",    "qk_norm",       "taylor_dim",    "performer_features", "performer_hyperbolic", "performer_redraw",
                              "cosformer_length", "key_heads",  "gated_mlp", "mlp_width", "rotary_base",
                              "dtype",         "dropout",       "seed",       "batch",  "gradient_accumulation", "out", "minutes"};

/// The run whose `last` a checkpoint is. Log and checkpoints go on from the last step only: another checkpoint would cut the
/// log of its run, or of whatever run its copy lies in.
fs::path run_of(const fs::path& checkpoint, const std::string& given) {
  std::error_code ignored;
  const fs::path last = fs::weakly_canonical(checkpoint, ignored), run = last.parent_path();
  if ((last.filename() == "last" || last.filename() == "last.old") && fs::exists(run / "config.toml", ignored)) return run;
  throw UsageError(fmt::format("--resume={} is neither a run nor the last checkpoint of one; give the run's directory, or start a new "
                               "run without --resume", given));
}

/// Takes over the options of the run that --resume names; returns its checkpoint.
fs::path resume_options(Config& config) {
  const fs::path found = find_checkpoint(config.text("resume"));
  run_of(found, config.text("resume"));
  const RunState run = load_run_state(found);
  for (const char* option : kFixed)
    if (config.was_set(option))
      throw UsageError(fmt::format("--{} cannot change when a run is resumed; leave it out, or start a new run", option));
  set_options(config, run, found);
  return found;
}

Trainer resume(Config& config, const fs::path& found) {
  const fs::path run = run_of(found, config.text("resume"));
  configure_dtype(config);
  Checkpoint checkpoint = load_checkpoint(found, true);
  note_other_machine(checkpoint.run.machine);
  RunData data = load_data(config, checkpoint.tokenizer);
  const fs::path relative = fs::relative(run);
  return Trainer(std::move(config), std::move(data), std::move(checkpoint), relative.empty() ? run : relative);
}

std::string resume_command(const Trainer& trainer) { return fmt::format("./hedgehog train --resume={}", trainer.directory().string()); }

std::vector<std::int32_t> first_tokens(const Trainer& trainer, std::int64_t count) {
  const RunData& data = trainer.data();
  if (data.stories) {
    const auto& story = data.stories->validation_stories().front();
    return {story.tokens.begin(), story.tokens.begin() + count};
  }
  const Batch batch = data.source->validation(0, 1);
  return {batch.tokens.begin(), batch.tokens.begin() + std::min<std::int64_t>(count, std::int64_t(batch.tokens.size()))};
}

ReportSample write_sample(Trainer& trainer, std::uint64_t seed) {
  const GptOptions& o = trainer.model().options();
  const std::int64_t length = trainer.data().stories ? o.context : std::min<std::int64_t>(400, o.longest());
  const Sampling sampling{trainer.data().stories ? 1.0 : 0.8, 0, 1.0};
  Generator generator(trainer.model(), length);
  const Tokenizer& tokenizer = *trainer.data().tokenizer;
  std::vector<std::int32_t> ids = first_tokens(trainer, 1);
  generator.read(ids);
  generator.generate(length - 1, sampling, {seed, 1}, [&](std::int32_t id) {
    if (id == tokenizer.end()) return false;
    ids.push_back(id);
    return true;
  });
  return {"", tokenizer.decode(ids), fmt::format("temperature {}, seed {}", sampling.temperature, seed)};
}

void print_recall(const std::vector<RecallRow>& rows) {
  fmt::print("{:<32} {:>9} {:>8} {:>14} {:>9}\n", "questions", "asked", "right", "newest fact", "guessing");
  for (const RecallRow& r : rows)
    fmt::print("{:<32} {:>9} {:>7.1f}% {:>13.1f}% {:>8.1f}%\n", r.name, r.questions, 100 * r.share(),
               100 * double(r.recency_right) / double(std::max<std::int64_t>(r.questions, 1)), 100 * r.guess);
}

void finish(Trainer& trainer) {
  NamedValues summary;
  const double loss = trainer.state().last_validation, floor = trainer.data().source->floor();
  fmt::print("\nvalidation loss {:.4f} nats a token after {} steps, {} tokens, {}\n", loss, trainer.state().step,
             count_text(double(trainer.state().tokens)), duration_text(trainer.state().seconds));
  summary.emplace_back("validation loss", fmt::format("{:.4f}", loss));
  if (!std::isnan(floor)) {
    fmt::print("exact entropy   {:.4f} nats a token: the model is {:.1f} % above it\n", floor, 100 * (loss / floor - 1));
    summary.emplace_back("exact entropy", fmt::format("{:.4f}", floor));
  } else if (auto* text = dynamic_cast<const TextSourceBatches*>(trainer.data().source.get())) {
    // nanoGPT's published figures are means over 20 random batches
    const Config& config = trainer.config();
    double sum = 0;
    std::int64_t valid = 0;
    for (std::int64_t i = 0; i < 20; ++i) {
      const Batch batch = text->dataset().random_validation_batch(1, i, config.integer("batch"), config.integer("context"));
      sum += trainer.evaluator().total_loss(batch);
      valid += batch.valid;
    }
    fmt::print("                {:.4f} on 20 random batches, the usual estimate\n", sum / double(valid));
    summary.emplace_back("loss on 20 random batches", fmt::format("{:.4f}", sum / double(valid)));
  }
  if (trainer.data().stories) {
    const auto rows = measure_recall(trainer.model(), *trainer.data().stories, 64);
    fmt::print("\n");
    print_recall(rows);
    summary.emplace_back("questions answered right", fmt::format("{:.1f} % of {}", 100 * rows[0].share(), rows[0].questions));
  }
  std::vector<ReportSample> samples;
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    samples.push_back(write_sample(trainer, seed));
    fmt::print("\nsample {}:\n{}\n", seed, samples.back().text);
  }
  const bool report = trainer.config().flag("report");
  if (report) trainer.write_report_page(summary, samples);
  const std::string directory = trainer.directory().string();
  fmt::print("\ncheckpoint  {}/last\n", directory);
  if (report) fmt::print("report      {}/report.html\n", directory);
  fmt::print("write text  ./hedgehog sample --checkpoint={}\n", directory);
}

int run_to_the_end(Trainer& trainer) {
  const Ending ending = trainer.run();
  if (ending == Ending::finished) {
    finish(trainer);
    return kGood;
  }
  fmt::print("\n{} after step {}; go on with\n  {}\n", ending == Ending::stopped ? "stopped" : "interrupted", trainer.state().step,
             resume_command(trainer));
  return ending == Ending::stopped ? kGood : kInterrupted;
}

}  // namespace

int train_command(Config& config) {
  const fs::path found = config.has("resume") ? resume_options(config) : fs::path{};
  const OnDevice guard(configure_machine(config));
  if (config.has("resume")) {
    Trainer trainer = resume(config, found);
    const std::int64_t step = trainer.state().step, steps = trainer.config().integer("steps");
    if (step >= steps) fmt::print("already at step {} of {}; give --steps=M to go on\n", step, steps);
    return run_to_the_end(trainer);
  }
  RunData data = load_data(config);
  Trainer trainer(config, std::move(data));
  return run_to_the_end(trainer);
}

}  // namespace hedgehog
