#include "nn/distillation.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.h"

namespace hedgehog {
namespace {

void check_pair(const GptOptions& teacher, const GptOptions& student) {
  if (teacher.attention != "softmax")
    throw ShapeError(fmt::format("[distillation] the teacher must have softmax attention, but has '{}'", teacher.attention));
  if (teacher.window > 0)
    throw ShapeError("[distillation] compares weights over all tokens before, but the teacher's attention has a window; give one without");
  if (teacher.causal != student.causal)
    throw ShapeError("[distillation] teacher and student must both be causal or both encoders; make the student with student_options");
  if (student.attention == "softmax") throw ShapeError("[distillation] the student must have linear attention, but has softmax too");
  for (const auto& [what, t, s] : {std::tuple{"layers", teacher.layers, student.layers}, std::tuple{"heads", teacher.heads, student.heads},
                                   std::tuple{"width", teacher.width, student.width}})
    if (t != s)
      throw ShapeError(fmt::format("[distillation] teacher and student must have the same {}, but they are {} and {}; make the student "
                                   "with student_options", what, t, s));
}

std::vector<AttentionHeads> teacher_heads(const Gpt& teacher, const Tensor& tokens, const AttentionContext& context) {
  const no_grad guard;
  const Scope scope("teacher");
  AttentionContext given;
  given.document_start = context.document_start;
  given.token_types = context.token_types;
  return teacher.heads(tokens, given);
}

DistillationRows layer_rows(const Attention& student, const AttentionHeads& heads, bool causal, const AttentionContext& context) {
  const MappedHeads features = student.features(heads);
  const auto rows = attention_cross_entropy(heads.q, heads.k, features.q, features.k,
                                            {.document_start = context.document_start,
                                             .causal = causal,
                                             .logarithmic = features.logarithmic});
  return {rows.loss, rows.entropy};
}

}  // namespace

const std::vector<std::string>& student_attentions() {
  static const std::vector<std::string> names{"hedgehog", "hedgehog-softmax", "hedgehog-joint", "t2r", "elu", "relu", "exp"};
  return names;
}

GptOptions student_options(const GptOptions& teacher, const std::string& attention) {
  if (teacher.attention != "softmax")
    throw UsageError(fmt::format("only a model with softmax attention can be converted, but this one has '{}'", teacher.attention));
  if (teacher.window > 0)
    throw UsageError(fmt::format("the maps are distilled from softmax over all tokens before, but this model's has a window of {}; convert a model "
                                 "without --window", teacher.window));
  const auto& names = student_attentions();
  if (std::find(names.begin(), names.end(), attention) == names.end())
    throw UsageError(fmt::format("a softmax model can be converted to {}, not to '{}'{}", fmt::join(names, ", "), attention,
                                 attention == "softmax" ? ", which it has already" : ""));
  GptOptions o = teacher;
  o.attention = attention;
  o.map_init_gain = 1;
  return o;
}

bool is_map(const std::string& parameter) { return parameter.find(".attn.map_") != std::string::npos; }

bool has_maps(const Gpt& model) {
  const Tensors& all = model.parameters().all();
  return std::any_of(all.begin(), all.end(), [](const Tensor& t) { return is_map(t.name()); });
}

void copy_weights(const Gpt& from, Gpt& to) {
  const Tensors& targets = to.parameters().all();
  for (const Tensor& source : from.parameters().all()) {
    const auto found = std::find_if(targets.begin(), targets.end(), [&](const Tensor& t) { return t.name() == source.name(); });
    if (found == targets.end())
      throw ShapeError(fmt::format("[copy_weights] '{}' {} has no counterpart in a model with attention '{}' and {} layers; the two must "
                                   "be alike but for their feature maps", source.name(), source.shape().text(), to.options().attention,
                                   to.options().layers));
    if (found->shape() != source.shape())
      throw ShapeError(fmt::format("[copy_weights] '{}' is {} in one model and {} in the other; the two must be alike but for their "
                                   "feature maps", source.name(), source.shape().text(), found->shape().text()));
    to.parameters().assign(*found, from.parameters().values(source));
  }
}

std::vector<DistillationRows> distillation_rows(const Gpt& teacher, const Gpt& student, const Tensor& tokens,
                                                const AttentionContext& context) {
  check_pair(teacher.options(), student.options());
  const std::vector<AttentionHeads> heads = teacher_heads(teacher, tokens, context);
  std::vector<DistillationRows> layers;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const Scope scope(fmt::format("block{}/distillation", i));
    layers.push_back(layer_rows(student.attention(std::int64_t(i)), heads[i], teacher.options().causal, context));
  }
  return layers;
}

Tensor distillation_loss(const Gpt& teacher, const Gpt& student, const Tensor& tokens, const std::string& by,
                         const AttentionContext& context) {
  check_pair(teacher.options(), student.options());
  if (!has_maps(student))
    throw ShapeError(fmt::format("[distillation] the feature map of '{}' has no weights: there is nothing to distil",
                                 student.options().attention));
  if (by != "weights" && by != "output") throw UsageError(fmt::format("[distillation] is by weights or output, not by '{}'", by));
  const std::vector<AttentionHeads> heads = teacher_heads(teacher, tokens, context);
  Tensor total;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const Scope scope(fmt::format("block{}/distillation", i));
    const Attention& layer = student.attention(std::int64_t(i));
    Tensor loss;
    if (by == "weights") {
      const DistillationRows rows = layer_rows(layer, heads[i], teacher.options().causal, context);
      loss = mean(rows.loss - rows.entropy);
    } else {
      const Dtype wide = accumulator_of(student.options().dtype);  // bf16 would round the squares
      loss = mean(square(cast(layer.attend(heads[i], {.document_start = context.document_start}), wide) - cast(heads[i].o, wide)));
    }
    total = total ? total + loss : loss;
  }
  return total / double(heads.size());
}

}  // namespace hedgehog
