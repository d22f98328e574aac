#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/stepper.h"

namespace hedgehog {

/// What a page of the stepper holds, and how much of it.
///
/// title     a text, escaped here
/// bytes     about so many bytes of numbers are written at most; beyond, tensors are cut to leading rows, and the page says so
/// elements  of each tensor with a gradient are explained: checked by a difference of the loss, and traced to their terms
/// terms     of an explained gradient are computed one by one; the others are given as one sum
/// tensors   are explained at most, leaves first; the page says how many are not
/// work      FLOPs that explaining may take, about: the loss is computed some twenty times for each tensor
struct StepPageOptions {
  std::string title = "Step by step";
  std::int64_t bytes = 4 << 20;
  std::int64_t elements = 3;
  std::int64_t terms = 16;
  std::int64_t tensors = 160;
  double work = 1e12;
};

/// One self-contained page (no network, opens from disk) that walks through a program: every op in order, forward and backward, with its
/// formula, values and gradients of its tensors at that step, where a gradient comes from, term by term, the gradient's check against
/// differences of the loss, states and attention weights of linear attention, and the norms of gradients by layer. `#step=12` in the
/// address opens it after the 12th op.
///
/// Throws: UsageError if an option is below 1, or work not above 0.
std::string step_page(const Stepper& stepper, const StepPageOptions& options = {});

/// The data of the page:
///
///   title, warnings, notices  texts; notices say what was cut
///   ops       by name: {"forward", "backward"}: formulas
///   steps     {"op", "direction", "scope", "source", "attributes", "partner", "finite", "reads", "writes", "upstream", "gradients",
///             "attention", "attention_at"}; tensors as [argument, index]; what names another step counts from 1
///   tensors   {"name", "shape", "dtype", "role", "primal", "gradient", "complete", "versions", "explained", "direction"}; a version is
///             {"at", "statistics", "numbers" or "fill"}, valid from step `at` on; numbers have 9 digits, or are "nan", "inf", "-inf"
///             explained elements hold "check", and tensors "direction", where the program computes in f64
///   layers    {"name", "norm", "parameters"}: gradients of parameters at the end
nlohmann::ordered_json step_page_data(const Stepper& stepper, const StepPageOptions& options);

}  // namespace hedgehog
