#include "train/distillation_step.h"

#include <algorithm>

namespace hedgehog {

StepLoss distils_from(const Gpt& teacher, const std::string& by) {
  return [&teacher, by](const Gpt& student, const Tensor& tokens, const Tensor&, const Tensor& scale, const AttentionContext& context) {
    const Tensor rows = distillation_loss(teacher, student, tokens, by, {.document_start = context.document_start}) * double(tokens.size());
    return rows * scale;
  };
}

double Divergence::mean() const {
  double sum = 0;
  std::size_t count = 0;
  for (const auto& layer : heads)
    for (const double head : layer) sum += head, ++count;
  return sum / double(count);
}

DivergenceMeter::DivergenceMeter(const Gpt& teacher, const Gpt& student, std::int64_t rows, std::int64_t context, bool documents,
                                 std::shared_ptr<Arena> arena)
    : rows_(rows), tokens_(ids_input(student, {rows, context}, "tokens")) {
  if (documents) documents_ = ids_input(student, {rows, context}, "document_start");
  const no_grad guard;
  Program program = record([&] {
    Tensors all;
    for (const DistillationRows& layer : distillation_rows(teacher, student, tokens_, {.document_start = documents_}))
      all.push_back(layer.loss - layer.entropy);
    return all;
  });
  ExecutorOptions options;
  options.arena = std::move(arena);
  executor_ = std::make_unique<Executor>(std::move(program), options);
}

void DivergenceMeter::add(const Batch& batch, Divergence& sums) {
  copy_ids(batch.tokens, tokens_);
  if (documents_) copy_ids(batch.document_start, documents_);
  executor_->run();
  for (std::size_t layer = 0; layer < sums.heads.size(); ++layer) {
    std::vector<double>& sum = sums.heads[layer];
    const std::vector<double> rows = executor_->output(layer).to_vector();  // (B, T, H)
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (batch.targets[i / sum.size()] != kIgnoredTarget) sum[i % sum.size()] += rows[i];
  }
}

Divergence DivergenceMeter::measure(const BatchSource& source, std::int64_t count) {
  const Tensors& layers = executor_->program().outputs;
  Divergence result;
  result.heads.assign(layers.size(), std::vector<double>(std::size_t(layers.front().shape().last()), 0));
  const std::int64_t all = source.validation_batches(rows_);
  std::int64_t valid = 0;
  for (std::int64_t i = 0; i < (count > 0 ? std::min(count, all) : all); ++i) {
    const Batch batch = source.validation(i, rows_);
    add(batch, result);
    valid += batch.valid;
  }
  for (auto& layer : result.heads)
    for (double& head : layer) head /= double(std::max<std::int64_t>(valid, 1));
  return result;
}

}  // namespace hedgehog
