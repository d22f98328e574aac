#pragma once
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "core/op.h"

namespace hedgehog {

/// Where in the user's program an op was called.
using SourceLine = std::source_location;

/// One op call of the list. A backward entry holds the tensors of its forward call and, besides, the upstream
/// gradients dy (one an output; empty where that output has none) and the produced dx (one an input; empty where not
/// wanted).
struct Entry {
  const Op* op = nullptr;
  Attributes attributes;
  bool backward = false;
  bool repeated = false;  // put in by recompute(): a forward call made again
  Tensors inputs, outputs, saved;
  Tensors dy, dx;
  std::vector<Mode> modes;  // one an input, for dx
  std::int64_t workspace = 0;
  std::string scope;  // "block0/attention"
  SourceLine where;
  std::vector<std::uint64_t> versions;  // of inputs, when called
};

/// A flat list of op calls: forward, backward and update alike.
struct Program {
  std::vector<Entry> entries;
  Tensors inputs;   // role input, in order of first use
  Tensors outputs;  // what the recorded function returned
};
/// One list after the other; inputs are merged, outputs joined.
Program operator+(Program first, Program second);

/// The only way an entry is made: checks arguments, runs now (or is only recorded, inside `record`), and remembers the
/// call if a gradient will be wanted.
Tensors apply(const Op& op, Attributes attributes, Tensors inputs, SourceLine where = SourceLine::current());

/// Appends (and, outside `record`, runs) the backward entries of everything `loss` depends on, in reverse order.
/// Gradients of parameters always add up; inner gradients are written by the first contribution. `cotangent` defaults
/// to ones. Throws Error on a second backward over the same calls, on backward through backward, and when a tensor
/// that backward reads was overwritten since.
void backward(const Tensor& loss, const Tensor& cotangent = {});
/// The same for several results at once: gradients of sum_j <cotangent_j, y_j>. An empty cotangent means ones.
void backward(const Tensors& results, const Tensors& cotangents);

/// Runs `function` with nothing computed, and returns the list of its calls.
Program record(const std::function<Tensors()>& function);
/// True inside `record`.
bool recording();

/// While alive, calls are not remembered for backward.
class no_grad {
 public:
  no_grad();
  ~no_grad();
  no_grad(const no_grad&) = delete;

 private:
  bool previous_;
};
/// While alive, backward leaves the tape as it is and keeps inner gradients, readable by grad().
class keep_tape {
 public:
  keep_tape();
  ~keep_tape();
  keep_tape(const keep_tape&) = delete;

 private:
  bool previous_;
};
/// While alive, fused ops are replaced by their composed reference.
class Expand {
 public:
  static Expand composed() { return Expand(); }
  ~Expand();
  Expand(const Expand&) = delete;

 private:
  Expand();
  bool previous_;
};
/// Names the entries made while it is alive: "block0/attention".
class Scope {
 public:
  explicit Scope(const std::string& name);
  ~Scope();
  Scope(const Scope&) = delete;

 private:
  std::size_t previous_;
};

/// Number of remembered calls that wait for backward.
std::size_t tape_size();
/// Forgets all of them.
void clear_tape();

/// The kernel's view of an entry's tensors, with data only where the record says that it is used.
struct ResolvedCall {
  std::vector<Ref> inputs, outputs, saved, dy, dx;
  std::vector<Mode> modes;
  const Entry* entry = nullptr;
  const Kernel* kernel = nullptr;
  void* workspace = nullptr;
  void run() const;
};
/// `address` gives the first element of a tensor. Throws Error if the current device has no kernel.
ResolvedCall resolve(const Entry& entry, const std::function<void*(const Tensor&)>& address);
/// Contiguous copy of rows with a stride; the tensor itself when it is contiguous already.
Tensor contiguous(const Tensor& tensor);

namespace detail {
struct Tape {
  std::vector<Entry> entries;     // remembered calls (eager), or all calls (recording)
  bool recording = false;
  bool gradients = true;
  bool keep = false;
  bool composed = false;
  std::string scope;
  std::size_t sweep_at = 256;
};
Tape& tape();
/// Makes storage for what the entry writes and runs it (eager), or appends it (recording).
void execute(Entry entry, bool remember);
std::vector<Meta> metas_of(const Tensors& tensors);
extern const Op kCopy, kFill;
}  // namespace detail

}  // namespace hedgehog
