#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/files.h"
#include "train/foreign_model.h"

namespace hedgehog::test {

inline const std::filesystem::path kModels = std::filesystem::path(HH_SOURCE_DIR) / "tests/data/models";

/// A copy of a fixture's folder, which may be damaged.
struct FixtureCopy {
  TemporaryDirectory directory;
  std::filesystem::path folder;
  explicit FixtureCopy(const char* name) : folder(directory / name) {
    std::filesystem::copy(kModels / name, folder, std::filesystem::copy_options::recursive);
  }
};

/// Token ids (B, T) and their logits (B, T, V).
struct Expected {
  Tensor ids;
  std::vector<double> logits;
};

/// What a fixture's JSON says.
inline Expected expected_of(const std::filesystem::path& file) {
  const auto json = nlohmann::json::parse(read_file(file));
  std::vector<double> ids, logits;
  for (const auto& row : json["ids"]) for (double id : row) ids.push_back(id);
  for (const auto& row : json["logits"]) for (const auto& token : row) for (double x : token) logits.push_back(x);
  const std::int64_t rows = std::int64_t(json["ids"].size());
  return {constant({rows, std::int64_t(ids.size()) / rows}, ids, Dtype::i32), logits};
}

/// The largest difference of logits, relative to the largest logit.
inline double error_of(const Gpt& model, const Expected& expected) {
  const no_grad guard;
  const std::vector<double> found = model.logits(model.hidden(expected.ids)).to_vector();
  REQUIRE(found.size() == expected.logits.size());
  double most = 0;
  for (std::size_t i = 0; i < found.size(); ++i) most = std::max(most, std::abs(found[i] - expected.logits[i]));
  return most / largest(expected.logits);
}

}  // namespace hedgehog::test
