#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/tape.h"

namespace hedgehog::test {

inline Tensor leaf(Shape shape, const std::vector<double>& values, const char* name = "x") {
  Tensor x = parameter(std::move(shape), name, Dtype::f64);
  x.copy_from(values);
  return x;
}

/// The message of the Error that f throws; empty if it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline bool mentions(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

/// state += x, an update in place, so that versions can be tested.
inline const Op& add_to_state() {
  static const Op op{
      .name = "test_add_to_state",
      .arguments = {{"state", false, false}, {"x", false, false}},
      .results = {},
      .infer = [](const Attributes&, std::span<const Meta>) { return Layout{}; },
      .forward = {[](const Call& c) {
        for (std::int64_t i = 0; i < c.inputs[0].size(); ++i) c.inputs[0].as<double>()[i] += c.inputs[1].as<double>()[i];
      }},
      .updates = bits(0),
  };
  return op;
}

}  // namespace hedgehog::test
