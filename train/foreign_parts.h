#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/foreign_weights.h"

namespace hedgehog {

/// A foreign tensor that is columns of a parameter of ours, of all its rows.
///
/// transposed    the file has (out, in), a parameter (in, out)
/// paired_heads  above 0: the outputs of so many heads turn as neighbours (2 i, 2 i + 1) and become a head's halves (i, i + D / 2)
/// table         rows are tokens; a file may have more of them than there are tokens, which pad it
/// columns       how many; 0: the pieces of the parameter share its columns equally
/// whole         the parameter itself, of any number of axes
struct ForeignPiece {
  std::string name;
  bool transposed = false;
  std::int64_t paired_heads = 0;
  bool table = false;
  std::int64_t columns = 0;
  bool whole = false;

  /// Columns of a parameter that is made of so many pieces.
  std::int64_t columns_of(std::int64_t width, std::size_t pieces) const { return columns ? columns : width / std::int64_t(pieces); }
};

/// The tensors that make each parameter, by our names, from the left: what import reads and export writes.
using ForeignParts = std::map<std::string, std::vector<ForeignPiece>>;

/// The parts of a model, and of what no other library's attention has, feature maps above all: that has our name in the layer's attention,
/// such as model.layers.0.self_attn.map_q.weight, and our shape. Parameters that the model does not have may be among them: biases.
///
/// model    its shape; declared is enough
/// family   as ForeignModel's
/// weights  of a file, whose names may lack the usual prefix
/// paired   as ForeignModel's
ForeignParts foreign_parts(const Gpt& model, const std::string& family, const ForeignWeights& weights, bool paired);

}  // namespace hedgehog
