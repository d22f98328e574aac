#pragma once
#include "core/plan.h"

namespace hedgehog {

/// Trades time for memory: results that only backward still needs are dropped, and the forward entries that made them
/// repeated just before, until the planned arena is at most `budget` bytes or as small as this gets (budget 0).
///
///   Program step = record([&] { Tensor loss = model.loss(tokens, targets).loss; backward(loss); return Tensors{loss}; });
///   Executor run(recompute(step, Bytes(8) << 30));
///
/// What is dropped is chosen one after the other, from each op's cost: the least work for each byte that is no longer alive
/// where most bytes are. A repeat whose own inputs were dropped has them repeated first, so that a whole layer can go back to
/// the residual stream. Repeats are ordinary entries marked `repeated`; results are bit for bit those of the original.
/// Only what is made before the first entry of backward is dropped.
///
/// Source: Chen et al. 2016, arXiv:1604.06174; the choice by cost as in Jain et al. 2020, arXiv:1910.02653, here greedy.
Program recompute(Program program, Bytes budget);

}  // namespace hedgehog
