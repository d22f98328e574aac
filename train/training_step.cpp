#include "train/training_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/recompute.h"

namespace hedgehog {

Tensor ids_input(const Gpt& model, const Shape& shape, const char* name) {
  return model.parameters().declared() ? declare(shape, Dtype::i32, Role::input, name) : input(shape, name, Dtype::i32);
}

void copy_ids(const std::vector<std::int32_t>& from, const Tensor& to) {
  if (std::int64_t(from.size()) != to.size())
    throw Error(fmt::format("[batch] '{}' takes {} = {} ids, got {}", to.name(), to.shape().text(), to.size(), from.size()));
  to.write(from.data(), 0, to.size());
}

Tensor next_token_loss(const Gpt& model, const Tensor& tokens, const Tensor& targets, const Tensor& scale,
                       const AttentionContext& context) {
  return model.loss(tokens, targets, scale, context).loss;
}

TrainingStep::Recorded TrainingStep::record_step(Gpt& model, const StepShape& shape, const OptimizerOptions& optimizer,
                                                const StepLoss& lowers) {
  Recorded r;
  const Shape ids{shape.rows, shape.context};
  r.tokens = ids_input(model, ids, "tokens");
  r.targets = ids_input(model, ids, "targets");
  r.scale = input({1}, "scale", accumulator_of(model.options().dtype));
  if (shape.documents) r.documents = ids_input(model, ids, "document_start");
  r.step_state = hedgehog::step_state();
  const FlatParameters& flat = model.parameters().flatten();
  r.gradients = record([&] {
    const Tensor loss = lowers(model, r.tokens, r.targets, r.scale, {r.documents, r.step_state});
    backward(loss);
    return Tensors{loss};
  });
  const Tensor loss = shape.micro_batches == 1 ? r.gradients.outputs[0] : Tensor{};
  r.update = record([&] {
    const Scope scope("update");
    const Tensor norms = gradient_norm(flat.gradients, flat.spans, loss, r.step_state);
    adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, norms, r.step_state,
          {.beta1 = optimizer.beta1,
           .beta2 = optimizer.beta2,
           .epsilon = optimizer.epsilon,
           .weight_decay = optimizer.weight_decay,
           .clip = optimizer.clip},
          flat.copies);
    return Tensors{norms};
  });
  if (shape.micro_batches == 1) {
    r.gradients = std::move(r.gradients) + std::move(r.update);
    r.update = {};
  }
  if (shape.arena != StepShape::kUnlimited) r.gradients = recompute(std::move(r.gradients), shape.arena);
  return r;
}

namespace {

/// One slot of the step state as a tensor that a feed can fill.
Tensor slot_view(const Tensor& step, StepState slot) {
  Tensor view = declare({1}, Dtype::f64);
  view->base = step;
  view->offset = slot;
  return view;
}

}  // namespace

TrainingStep::TrainingStep(Gpt& model, const StepShape& shape, const OptimizerOptions& optimizer, std::uint64_t seed,
                           std::shared_ptr<Arena> arena, const StepLoss& loss)
    : shape_(shape), parameters_(model.parameters().all().size()) {
  Recorded r = record_step(model, shape, optimizer, loss);
  tokens_ = r.tokens;
  targets_ = r.targets;
  scale_ = r.scale;
  documents_ = r.documents;
  step_state_ = r.step_state;
  set_slot(step_state_, kSeed, double(seed));
  gradient_buffer_ = model.parameters().flatten().gradients;
  Device& device = current_device();
  Tensors fed{tokens_, targets_, scale_, slot_view(step_state_, kLearningRate), slot_view(step_state_, kFirstSequence)};
  if (documents_) fed.push_back(documents_);
  feed_ = device.feed(fed);
  ExecutorOptions options;
  options.arena = arena ? std::move(arena) : std::make_shared<Arena>();
  options.graph = !device.host();
  if (shape.micro_batches > 1) update_ = std::make_unique<Executor>(std::move(r.update), options);
  options.first = [feed = feed_] { feed->take(); };
  gradients_ = std::make_unique<Executor>(std::move(r.gradients), options);
  losses_ = device.readback();
  norms_ = device.readback();
}

void TrainingStep::stage(const Batch& batch, double scale, double learning_rate, double first_sequence) {
  auto ids = [&](std::size_t i, const std::vector<std::int32_t>& from, const Tensor& to) {
    if (std::int64_t(from.size()) != to.size())
      throw Error(fmt::format("[batch] '{}' takes {} = {} ids, got {}", to.name(), to.shape().text(), to.size(), from.size()));
    std::copy(from.begin(), from.end(), static_cast<std::int32_t*>(feed_->stage(i)));
  };
  ids(0, batch.tokens, tokens_);
  ids(1, batch.targets, targets_);
  if (scale_.dtype() == Dtype::f64) *static_cast<double*>(feed_->stage(2)) = scale;
  else *static_cast<float*>(feed_->stage(2)) = float(scale);
  *static_cast<double*>(feed_->stage(3)) = learning_rate;
  *static_cast<double*>(feed_->stage(4)) = first_sequence;
  if (documents_) ids(5, batch.document_start, documents_);
  feed_->commit();
}

void TrainingStep::fetch_loss() {
  const auto open = std::find_if(unfinished_.begin(), unfinished_.end(), [&](const Unfinished& u) { return u.losses < shape_.micro_batches; });
  open->loss += losses_->fetch()[0];
  ++open->losses;
}

void TrainingStep::submit(std::span<const Batch> batches, double learning_rate) {
  if (std::int64_t(batches.size()) != shape_.micro_batches)
    throw Error(fmt::format("[training step] takes {} micro-batches, got {}", shape_.micro_batches, batches.size()));
  if (unfinished_.size() >= 2) throw Error("[training step] two steps are unfinished already; finish one before the next is submitted");
  std::int64_t valid = 0;
  for (const Batch& b : batches) valid += b.valid;
  const double scale = 1.0 / double(std::max<std::int64_t>(valid, 1));
  unfinished_.emplace_back();
  for (std::size_t k = 0; k < batches.size(); ++k) {
    stage(batches[k], scale, learning_rate, double(std::int64_t(k) * shape_.rows));
    feed_->run([&] { gradients_->run(); });
    losses_->take({gradients_->output(0)});
    if (k > 0) fetch_loss();  // of the micro-batch before, while this one runs
  }
  if (update_) update_->run();
  norms_->take({update_ ? update_->output(0) : gradients_->output(1), step_state_});
}

StepResult TrainingStep::finish() {
  if (unfinished_.empty()) throw Error("[training step] nothing was submitted that could be finished");
  while (unfinished_.front().losses < shape_.micro_batches) fetch_loss();
  StepResult result;
  result.loss = unfinished_.front().loss;
  unfinished_.pop_front();
  const std::vector<double> norms = norms_->fetch();
  result.parameter_norms.assign(norms.begin(), norms.begin() + std::ptrdiff_t(parameters_));
  result.gradient_norm = norms[parameters_];
  result.failed = norms[parameters_ + 1 + kNonFinite] != 0;
  if (!std::isfinite(result.loss) && !result.failed) set_slot(step_state_, kNonFinite, 1), result.failed = true;
  return result;
}

StepResult TrainingStep::run(std::span<const Batch> batches, double learning_rate) {
  submit(batches, learning_rate);
  return finish();
}

NonFinite TrainingStep::explain_failure(std::span<const Batch> batches) {
  while (!unfinished_.empty()) finish();
  try {
    for (std::size_t k = 0; k < batches.size(); ++k) {
      gradient_buffer_.fill(0);  // the failed step left its own there
      copy_ids(batches[k].tokens, tokens_);
      copy_ids(batches[k].targets, targets_);
      if (documents_) copy_ids(batches[k].document_start, documents_);
      set_slot(step_state_, kFirstSequence, double(std::int64_t(k) * shape_.rows));  // the dropout masks of that step
      if (const std::optional<NonFinite> found = first_non_finite(gradients_->program())) return *found;
    }
  } catch (const Error& e) {  // keeping every tensor takes more memory than the step
    return {fmt::format("not found, the search failed ({})", e.what()), {}};
  }
  return {"every op's result was finite when the batches of the step were repeated", {}};
}

namespace {

/// A step of several micro-batches from the cost of one.
Cost with_update(Cost cost, const Cost& update, std::int64_t micro_batches) {
  cost.flops = cost.flops * double(micro_batches) + update.flops;
  cost.bytes = cost.bytes * double(micro_batches) + update.bytes;
  cost.repeated *= double(micro_batches);
  cost.arena = std::max(cost.arena, update.arena);
  cost.persistent = std::max(cost.persistent, update.persistent);
  cost.peak = cost.arena + cost.persistent;
  return cost;
}

}  // namespace

Cost TrainingStep::cost() const {
  const Cost cost = account(gradients_->program());
  return update_ ? with_update(cost, account(update_->program()), shape_.micro_batches) : cost;
}

Cost TrainingStep::predict(const GptOptions& options, const StepShape& shape, const OptimizerOptions& optimizer, const StepLoss& loss) {
  Gpt model = Gpt::declared(options);
  const Recorded r = record_step(model, shape, optimizer, loss);
  const FlatParameters& flat = model.parameters().flatten();
  Cost cost = account(r.gradients);
  if (shape.micro_batches > 1) cost = with_update(cost, account(r.update), shape.micro_batches);
  for (const Tensor& t : {flat.weights, flat.copies, flat.gradients, flat.first_moment, flat.second_moment, r.tokens, r.targets, r.documents})
    if (t) cost.persistent += t.size() * size_of(t.dtype());
  cost.peak = cost.arena + cost.persistent;
  return cost;
}

}  // namespace hedgehog
