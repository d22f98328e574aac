#include "train/map_distillation.h"

#include <algorithm>

#include "train/interrupt.h"
#include "train/training_step.h"

namespace hedgehog {

namespace {

/// Cross entropy of the student's weights under the teacher's: means over heads and rows, added up over layers.
Tensor loss_of(const Gpt& teacher, const Gpt& student, const Tensor& tokens, const Tensor& document_start) {
  std::vector<AttentionHeads> heads;
  AttentionContext context;
  context.document_start = document_start;
  context.heads = &heads;
  {
    const no_grad guard;
    teacher.hidden(tokens, context);
  }
  Tensor loss;
  for (std::size_t layer = 0; layer < heads.size(); ++layer) {
    const MappedHeads mapped = student.attention(std::int64_t(layer)).features(heads[layer]);
    const Tensor rows = attention_cross_entropy(heads[layer].q, heads[layer].k, mapped.q, mapped.k,
                                                {.document_start = document_start, .logarithmic = mapped.logarithmic}).loss;
    loss = loss ? loss + mean(rows) : mean(rows);
  }
  return loss;
}

}  // namespace

std::vector<double> distil_maps(const Gpt& teacher, Gpt& student, const BatchSource& source, const MapDistillation& plan,
                                const std::function<bool()>& stopped) {
  const Shape ids{plan.rows, teacher.options().context};
  const Tensor tokens = ids_input(student, ids, "tokens"), state = step_state();
  const Tensor documents = source.documents() ? ids_input(student, ids, "document_start") : Tensor{};
  const FlatParameters& flat = student.parameters().flatten();
  Executor step(record([&] {
    const Tensor loss = loss_of(teacher, student, tokens, documents);
    backward(loss);
    // parameters that the loss does not reach have no gradient and, without decay, stay as they are
    const Tensor norms = gradient_norm(flat.gradients, flat.spans, loss, state);
    adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, norms, state, {}, flat.copies);
    return Tensors{loss};
  }));
  std::vector<double> losses;
  for (std::int64_t s = 0; s < plan.steps; ++s) {
    if (stopped()) throw Stopped{};
    const Batch batch = source.training(s, 0, plan.rows);
    copy_ids(batch.tokens, tokens);
    if (documents) copy_ids(batch.document_start, documents);
    set_slot(state, kLearningRate, plan.learning_rate + (plan.final_learning_rate - plan.learning_rate) * double(s) / double(plan.steps));
    step.run();
    losses.push_back(step.output(0).item());
  }
  return losses;
}

}  // namespace hedgehog
