#pragma once
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/attributes.h"
#include "core/sample.h"
#include "core/tensor.h"

namespace hedgehog {

/// Shape and dtype of an argument as `infer` sees it. `given` is false for an optional argument left out.
struct Meta {
  Shape shape;
  Dtype dtype = Dtype::f32;
  bool given = true;
};

/// What `infer` decides.
struct Layout {
  std::vector<Meta> outputs;
  std::vector<Meta> saved;            // kept for backward; written by forward only when a gradient is wanted
  std::int64_t forward_workspace = 0;   // bytes
  std::int64_t backward_workspace = 0;  // bytes
};

/// What a kernel sees of one tensor.
struct Ref {
  void* data = nullptr;  // null: not given, not read, or not wanted
  Shape shape;
  Dtype dtype = Dtype::f32;
  std::int64_t columns = 0;  // contiguous elements a row
  std::int64_t stride = 0;   // elements from row to row
  bool given = false;
  bool parameter = false;    // changed by the optimiser and the host alone
  std::int64_t batch = 0;    // elements from one index of the first axis to the next, where an op shows another a part of the second;
                             // 0: as rows lie

  explicit operator bool() const { return data != nullptr; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t size() const { return shape.size(); }
};

/// First contribution to a gradient writes, later ones add.
enum class Mode : std::uint8_t { write, accumulate };

/// One call of a kernel. Forward: reads inputs, writes outputs and saved (where data is not null), and those inputs
/// that the record lists under `updates`. Backward: reads what the record lists under `reads` (the rest has
/// data == nullptr but a valid shape) and dy (null: that output has no gradient, treat as zero); produces every dx that
/// is not null, in its mode.
struct Call {
  const Attributes& attributes;
  std::span<const Ref> inputs, outputs, saved;
  std::span<const Ref> dy, dx;
  std::span<const Mode> modes;
  void* workspace = nullptr;
};
using Kernel = std::function<void(const Call&)>;

struct Kernels {
  Kernel cpu = {};
  Kernel cuda = {};
};

/// Exactly what backward reads, as bit masks over inputs, outputs and saved.
struct Reads {
  std::uint32_t inputs = 0, outputs = 0, saved = 0;
};
constexpr std::uint32_t bits() { return 0; }
template <class... I>
constexpr std::uint32_t bits(int first, I... rest) {
  return (1u << first) | bits(rest...);
}

/// Work of one call. Bytes default to one pass over every tensor touched.
struct Work {
  double flops = 0;
  double bytes = -1;  // -1: counted from the tensors
};

/// A deliberately wrong backward that gradcheck must catch: a term that people forget. Either `backward` replaces the
/// kernel, or `composed` replaces the op by primitives with a detach where the term is lost.
struct Fault {
  std::string name;
  std::string what;
  Kernel backward = {};
  std::function<Tensors(const Attributes&, const Tensors&)> composed = {};
  std::string only_sample = {};  // label of the sample that shows it; empty: every sample must
};

struct Argument {
  std::string name;
  bool optional = false;
  bool differentiable = true;  // i32 arguments never are
  bool wide = false;           // f32 where the others are bf16: states, tables, scales, what the optimiser holds
};

/// The record of an op: everything the tape, the planner, the tests and the teaching view know about it.
struct Op {
  std::string name;
  std::vector<Argument> arguments = {};
  std::vector<std::string> results = {};
  std::uint32_t constant_outputs = 0;  // outputs that never carry a gradient
  std::vector<std::string> saved_names = {};
  std::vector<Attributes::Item> attributes = {};  // names and defaults
  /// Raises all argument errors; fills the layout. attributes are complete.
  std::function<Layout(const Attributes&, std::span<const Meta>)> infer = {};
  Kernels forward = {};
  Kernels backward = {};
  Reads reads = {};
  std::uint32_t strided = 0;                        // inputs that may be rows with a stride; others are made contiguous
  std::vector<std::pair<int, int>> alias = {};           // input, output that may share memory (same shape)
  std::vector<std::pair<int, int>> alias_backward = {};  // dy, dx that may share memory (same shape)
  std::uint32_t updates = 0;                        // inputs overwritten in place: parameters, gradients, states
  bool saved_alone = false;                         // outputs may be left out (null) of a repeat, and their work with them
  /// Views have no kernel: this gives the outputs as windows on input 0. Empty for all other ops.
  std::function<Tensors(const Attributes&, const Tensor& of, const Layout&)> views = {};
  /// FLOPs (and bytes) of forward and of backward.
  std::function<std::pair<Work, Work>(const Attributes&, std::span<const Meta> inputs, std::span<const Meta> outputs)> cost = {};
  /// The same result from primitive ops; empty for primitives.
  std::function<Tensors(const Attributes&, const Tensors&)> reference = {};
  std::string formula_forward = {}, formula_backward = {};
  std::vector<Sample> samples = {};
  std::vector<Fault> faults = {};

  /// Bit mask of the saved tensors that backward reads: of those named the ones in `reads`, and all that follow, which a device keeps
  /// for itself.
  std::uint32_t saved_reads() const { return reads.saved | (~0u << saved_names.size()); }
};

/// Adds an op of anyone's making to the registry (built-in ops come through ops/list.def). The record must outlive it.
void register_op(const Op& op);
const std::vector<const Op*>& registered_ops();
/// Op by name; throws UsageError naming the nearest one.
const Op& find_op(const std::string& name);

/// Fails with "[op] message".
[[noreturn]] void fail(const Op& op, const std::string& message);
[[noreturn]] void fail(const char* op, const std::string& message);

}  // namespace hedgehog
