#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/stepper.h"

namespace hedgehog {

std::string trimmed(const std::string& text);
/// Throws UsageError that begins with `what` unless the text is a whole number from 0 on, or a finite number; as does the next.
std::int64_t whole_number(const std::string& text, const char* what);
double real_number(const std::string& text, const char* what);

/// An element of a tensor as it is typed: "w[1,2]"; "w" alone has none.
struct ElementName {
  std::string tensor;
  std::vector<std::int64_t> indices;
  bool given = false;  // whether there were brackets
};
/// Throws UsageError saying what is wrong.
ElementName parse_element(const std::string& text);
/// "x.grad[2]" asks about x: "x[2]".
std::string without_gradient(std::string text);
/// The number of an element in order. Throws UsageError if the indices do not fit the shape.
std::int64_t element_number(const Tensor& x, const ElementName& element);
/// "w[1,2]"; a scalar's name alone.
std::string element_text(const std::string& name, const Shape& shape, std::int64_t element);

/// A number with five significant digits. Beside numbers as large as `largest` it is 0 where only rounding is left of it (under 1e-13 of
/// them), so that lessons read the same with every BLAS kernel.
std::string number_text(double value, double largest = 0);

/// The elements of a tensor, in rows of its last axis under the indices of the axes before; at most `most` of them, eight in a line.
/// The note ends the first line.
std::string table_text(const std::string& title, const Shape& shape, const std::vector<double>& values, std::size_t most,
                       const std::string& note = "");
std::string statistics_text(const Statistics& s);

/// Escape codes around texts; nothing without colour.
struct Style {
  bool color = false;
  std::string bold(const std::string& text) const { return wrapped(text, "1"); }
  std::string faint(const std::string& text) const { return wrapped(text, "2"); }
  std::string good(const std::string& text) const { return wrapped(text, "32"); }
  std::string bad(const std::string& text) const { return wrapped(text, "31"); }

 private:
  std::string wrapped(const std::string& text, const char* code) const {
    return color ? "\x1b[" + std::string(code) + "m" + text + "\x1b[0m" : text;
  }
};

/// A tick, a cross with both numbers, or why neither can be said.
std::string check_text(const DifferenceCheck& check, const Style& style);

/// The same without numbers, and without the reason if that is not wanted.
std::string mark_text(const DifferenceCheck& check, const Style& style, bool reason);
/// "the loss L = 2", or what it is made of where backward began from other than one number.
std::string loss_text(const Stepper& stepper);

/// "matmul1 = matmul(x, w)": what an entry does, by name.
std::string call_text(const Stepper& stepper, std::size_t entry);
/// The list as a graph in Graphviz's language: tensors are ellipses, calls boxes; those around `position` if it is not empty.
std::string graph_text(const Stepper& stepper, std::optional<std::size_t> around);

}  // namespace hedgehog
