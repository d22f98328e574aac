#pragma once
#include "tests/parity.h"

// Steps that all runs of a parity case share.

namespace hedgehog::test {

/// Rounds numbers in place to what a dtype can hold.
void round_numbers(std::vector<double>& numbers, Dtype dtype);

/// The arguments of a draw in a dtype on the current device.
Tensors arguments_of(const ParityCase& c, const Drawn& drawn, Dtype dtype);

/// The results; gradients arrive in the arguments. Without numbers for the cotangents they are zeros.
Tensors forward_and_backward(const ParityCase& c, const Tensors& arguments, bool composed, const Numbers& cotangents);

/// Results, and behind them gradients and overwritten arguments.
Outcome outcome_of(const ParityCase& c, const Tensors& results, const Tensors& arguments);

}  // namespace hedgehog::test
