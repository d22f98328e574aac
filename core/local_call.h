#pragma once
#include <cstddef>
#include <vector>

#include "core/trace.h"

namespace hedgehog {

/// One call of a trace, a forward or a backward one, made again with other numbers: for derivatives of this op alone. All other arguments
/// are what they were.
class LocalCall {
 public:
  LocalCall(const Trace& trace, std::size_t entry);

  /// dx of one argument for these upstream gradients, one list an output (empty: that output has none). The entry must be a backward one.
  std::vector<double> backward(std::size_t argument, const std::vector<std::vector<double>>& upstream);
  /// All outputs, as numbers, when one argument holds these.
  std::vector<std::vector<double>> forward(std::size_t argument, const std::vector<double>& values);
  /// Elements of an argument as they were.
  std::vector<double> argument(std::size_t i) const;

 private:
  void prepare(const Tensors& tensors);
  /// Runs `call`, whose tensors are in `fresh` or are the entry's own.
  void run(const Entry& call, TraceMemory& fresh);

  const Trace& trace_;
  std::size_t index_;
  const Entry& entry_;
  TraceMemory memory_;  // of what the entry reads
};

}  // namespace hedgehog
