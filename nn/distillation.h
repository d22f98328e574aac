#pragma once
#include <string>
#include <vector>

#include "nn/gpt.h"

namespace hedgehog {

/// Distillation of a softmax model's attention into the feature maps of a model of linear attention.
///
///   Gpt student(student_options(teacher.options(), "hedgehog"));
///   copy_weights(teacher, student);                                   // all but the maps, which start as the identity
///   student.parameters().train_only(is_map);
///   Tensor loss = distillation_loss(teacher, student, tokens, "weights");
///   backward(loss);                                                   // gradients of every layer's maps
///
/// The teacher runs once, without a gradient, and each student layer works on the teacher's queries and keys of that layer, so that
/// all layers learn together and none sees the mistakes of another.
/// Source: Zhang et al. 2024, arXiv:2402.04347, section 4.2 and appendix A.3.

/// The attentions that a student can have.
const std::vector<std::string>& student_attentions();

/// The teacher's shape with another attention, maps starting as the identity.
/// Throws UsageError if the teacher is not softmax, or for an attention that no student has.
GptOptions student_options(const GptOptions& teacher, const std::string& attention);

/// Whether this is the name of a parameter of feature maps.
bool is_map(const std::string& parameter);

/// Whether the model's feature maps have anything to learn: "elu", "relu" and "exp" have not without map_weights.
bool has_maps(const Gpt& model);

/// Copies every parameter of `from` to that of the same name in `to`; others of `to` keep what they have.
/// Throws ShapeError naming the parameter that `to` lacks or has in another shape.
void copy_weights(const Gpt& from, Gpt& to);

/// One layer of a student beside its teacher's, each (B, T, H), in nats.
struct DistillationRows {
  Tensor loss;     // cross entropy of the student's weights of attention under the teacher's
  Tensor entropy;  // of the teacher's, a constant: loss - entropy is the KL divergence
};

/// The rows of all layers for tokens i32 (B, T), in one pass.
/// Throws ShapeError if the teacher is not softmax, the student is, or the two differ in layers, heads or width.
std::vector<DistillationRows> distillation_rows(const Gpt& teacher, const Gpt& student, const Tensor& tokens,
                                                const AttentionContext& context = {});

/// What to distil by, averaged over layers, heads and rows (and, for "output", the D numbers of a value):
///
///   weights   - sum_j p_ij ln(a_ij / p_ij)      KL divergence; its gradient is that of the cross entropy - sum_j p_ij ln a_ij
///   output    (o_id - teacher's o_id)^2         of the student's attention on the teacher's queries, keys and values
///
/// tokens   i32 (B, T)
/// context  document_start, if rows hold several documents
/// returns  (); only the student's maps get a gradient
///
/// Throws: ShapeError as distillation_rows; if the maps have nothing to learn; UsageError for another name.
Tensor distillation_loss(const Gpt& teacher, const Gpt& student, const Tensor& tokens, const std::string& by = "weights",
                         const AttentionContext& context = {});

}  // namespace hedgehog
