#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "core/tape.h"

namespace hedgehog {

/// Memory for tensors of a program, apart from their own: one block for each storage that they share, and for each tensor that was only
/// recorded. A block is made when it is first asked for.
class TraceMemory {
 public:
  /// Blocks of storages start as copies of `origin`'s; without it, or where it has none, of the storages as they are then.
  explicit TraceMemory(const TraceMemory* origin = nullptr) : origin_(origin) {}
  void* address(const Tensor& x);
  /// All elements in order.
  std::vector<double> read(const Tensor& x);
  /// Overwrites all elements.
  void write(const Tensor& x, const std::vector<double>& values);

  /// Where a tensor's first element lies.
  struct Place {
    const void* block = nullptr;
    std::int64_t byte = 0;
  };
  static Place place(const Tensor& x);
  /// Bytes from a tensor's first element to behind its last.
  static std::int64_t span(const Tensor& x);
  /// Null if the block was never asked for.
  const Storage* find(const void* block) const;
  Storage& block_of(const Tensor& x);

 private:
  const TraceMemory* origin_;
  std::map<const void*, std::unique_ptr<Storage>> blocks_;
};

/// Elements of `x` in order, from memory whose first byte is that of the first element.
std::vector<double> elements_at(const Tensor& x, const std::byte* first);
/// Runs one entry of a list on the CPU, in memory that `address` gives; views do nothing.
void run_entry(const Entry& entry, const std::function<void*(const Tensor&)>& address);

/// Every value that a program computes, kept. A position is a number of entries that are done: at 0 there are only the leaves, at
/// size() is everything.
///
/// The program runs once, on the CPU, when this is made, on copies of its leaves as they are then: nothing of the caller's changes, and
/// what an entry overwrites (a gradient that adds up, a weight) is still there at the positions before it.
class Trace {
 public:
  /// Throws Error if an op has no kernel on the CPU, ShapeError for bf16 (record in f32 or f64).
  explicit Trace(Program program);
  Trace(Trace&&) = default;

  const Program& program() const { return program_; }
  const std::vector<Entry>& entries() const { return program_.entries; }
  std::size_t size() const { return program_.entries.size(); }

  /// Whether any element of `x` has been computed, or given, by then.
  bool known(const Tensor& x, std::size_t position) const;
  /// Elements in order. Throws Error if not known.
  std::vector<double> value(const Tensor& x, std::size_t position) const;
  /// Positions right after entries that wrote some of its elements, rising; a leaf begins with 0.
  std::vector<std::size_t> written(const Tensor& x) const;
  /// Tensors that entry i writes.
  static Tensors results(const Entry& entry);

  /// Bytes of `x` at a position, from its first element to its last.
  std::vector<std::byte> bytes(const Tensor& x, std::size_t position) const;
  /// Leaves as they were at the start.
  const TraceMemory& leaves() const { return leaves_; }

 private:
  struct Patch {
    std::size_t position = 0;  // right after the entry that wrote it
    std::int64_t byte = 0;
    std::vector<std::byte> bytes;
  };
  const std::vector<Patch>* patches_of(const Tensor& x) const;

  Program program_;
  TraceMemory leaves_;
  std::map<const void*, std::vector<Patch>> patches_;
};

}  // namespace hedgehog
