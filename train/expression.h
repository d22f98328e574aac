#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// A program from a formula of numbers, with its backward pass: "L = (x*y + 3)^2; x = 2; y = -1".
///
/// The first statement is what is differentiated; statements before the values may name parts: "L = p^2; p = x*y + 3; x = 2; y = -1".
/// There are + - * / and ^ (a whole exponent), parentheses, and exp, log, tanh, sigmoid, sqrt, relu, gelu, gelu_erf, silu, square. A name
/// that is given a number is a parameter.
///
/// Throws UsageError saying where the formula is wrong.
Program expression_program(const std::string& text, Dtype dtype = Dtype::f64);

}  // namespace hedgehog
