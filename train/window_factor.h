#pragma once
#include <vector>

#include "nn/gpt.h"
#include "train/batch_source.h"

namespace hedgehog {

/// Sets how much the tokens in a converted model's window weigh against those before it, for each head.
///
/// Softmax and feature maps agree on a head's weights only up to a factor that each row's sum takes away; where a window has the one and
/// what lies before it the other, the factor counts. It becomes the mean over rows i of
///
///   ln sum_j phi(q_i) . phi(k_j) - ln sum_j exp(q_i . k_j / sqrt(D))        over the j before i's window
///
/// on the teacher's queries and keys, so that what lies before the window weighs as much as it did in the teacher.
///
/// student  has a window; texts without a token before it leave the factors as they are
/// texts    one row each
/// documents  whether a row may hold several
void match_window(const Gpt& teacher, Gpt& student, const std::vector<Batch>& texts, bool documents);

}  // namespace hedgehog
