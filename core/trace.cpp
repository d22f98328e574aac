#include "core/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/device.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/plan.h"

namespace hedgehog {
namespace {

/// Elements between the first element of a tensor and element i.
std::int64_t distance_to(const Tensor& x, std::int64_t i) { return x.contiguous() ? i : i / x.columns() * x.stride() + i % x.columns(); }

bool recorded_only(const Tensor& x) { return !x.root()->storage; }

}  // namespace

TraceMemory::Place TraceMemory::place(const Tensor& x) {
  const Tensor root = x.root();
  const std::int64_t within = x->offset * size_of(x.dtype());
  if (!root->storage) return {root.get(), within};
  const Storage& whole = root->storage->whole();
  return {&whole, root->storage->data() - whole.data() + within};
}

std::int64_t TraceMemory::span(const Tensor& x) { return (distance_to(x, x.size() - 1) + 1) * size_of(x.dtype()); }

const Storage* TraceMemory::find(const void* block) const {
  const auto found = blocks_.find(block);
  return found == blocks_.end() ? nullptr : found->second.get();
}

Storage& TraceMemory::block_of(const Tensor& x) {
  const auto [at, made] = blocks_.try_emplace(place(x).block);
  if (!made) return *at->second;
  const OnDevice guard(cpu_device());
  const Storage* const known = origin_ ? origin_->find(at->first) : nullptr;
  const Storage* const from = known ? known : recorded_only(x) ? nullptr : &x.root()->storage->whole();
  const std::size_t bytes = from ? from->bytes() : std::size_t(x.root().size() * size_of(x.dtype()));
  at->second = std::make_unique<Storage>(bytes);
  // all bits one: NaN, so that what nothing wrote is not taken for a number
  if (from) from->device().copy_out(at->second->data(), from->data(), bytes);
  else std::memset(at->second->data(), 0xff, bytes);
  return *at->second;
}

void* TraceMemory::address(const Tensor& x) { return block_of(x).data() + place(x).byte; }

std::vector<double> TraceMemory::read(const Tensor& x) { return elements_at(x, static_cast<const std::byte*>(address(x))); }

void TraceMemory::write(const Tensor& x, const std::vector<double>& values) {
  void* const first = address(x);
  dispatch_any(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const double v = values.at(std::size_t(i));
      static_cast<T*>(first)[distance_to(x, i)] = x.dtype() == Dtype::bf16 ? T(BFloat16(float(v)).bits) : T(v);
    }
  });
}

std::vector<double> elements_at(const Tensor& x, const std::byte* first) {
  std::vector<double> values(std::size_t(x.size()));
  dispatch_any(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = reinterpret_cast<const T*>(first);
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const T v = from[distance_to(x, i)];
      if (x.dtype() != Dtype::bf16) {
        values[std::size_t(i)] = double(v);
        continue;
      }
      BFloat16 rounded;
      rounded.bits = std::uint16_t(v);
      values[std::size_t(i)] = double(float(rounded));
    }
  });
  return values;
}

void run_entry(const Entry& entry, const std::function<void*(const Tensor&)>& address) {
  if (entry.op->views) return;
  const OnDevice guard(cpu_device());
  ResolvedCall call = resolve(entry, address);
  const Storage workspace{std::size_t(entry.workspace)};
  call.workspace = entry.workspace ? workspace.data() : nullptr;
  call.run();
}

Tensors Trace::results(const Entry& entry) {
  Tensors all;
  const auto add = [&](const Tensors& tensors) {
    for (const Tensor& x : tensors)
      if (x) all.push_back(x);
  };
  if (entry.backward) {
    add(entry.dx);
    return all;
  }
  add(entry.outputs);
  add(entry.saved);
  for (std::size_t i = 0; i < entry.inputs.size(); ++i)
    if (entry.inputs[i] && (entry.op->updates >> i & 1u)) all.push_back(entry.inputs[i]);
  return all;
}

Trace::Trace(Program program) : program_(std::move(program)) {
  const OnDevice guard(cpu_device());
  for (const Entry& e : entries())
    for_each_touched(e, [&](const Tensor& x, bool) {
      if (!recorded_only(x)) leaves_.block_of(x);
    });
  // a result may be a leaf that nothing reads
  for (const Tensor& y : program_.outputs)
    if (y && !recorded_only(y)) leaves_.block_of(y);
  TraceMemory memory(&leaves_);
  for (std::size_t i = 0; i < size(); ++i) {
    const Entry& e = entries()[i];
    if (e.op->views) continue;
    run_entry(e, [&](const Tensor& x) { return memory.address(x); });
    for (const Tensor& x : results(e)) {
      const auto* first = static_cast<const std::byte*>(memory.address(x));
      const auto [block, byte] = TraceMemory::place(x);
      patches_[block].push_back({i + 1, byte, {first, first + TraceMemory::span(x)}});
    }
  }
}

const std::vector<Trace::Patch>* Trace::patches_of(const Tensor& x) const {
  const auto found = patches_.find(TraceMemory::place(x).block);
  return found == patches_.end() ? nullptr : &found->second;
}

std::vector<std::size_t> Trace::written(const Tensor& x) const {
  const auto [block, byte] = TraceMemory::place(x);
  std::vector<std::size_t> positions;
  if (leaves_.find(block)) positions.push_back(0);
  if (const std::vector<Patch>* patches = patches_of(x))
    for (const Patch& p : *patches)
      if (p.byte < byte + TraceMemory::span(x) && byte < p.byte + std::int64_t(p.bytes.size())) positions.push_back(p.position);
  return positions;
}

bool Trace::known(const Tensor& x, std::size_t position) const {
  const std::vector<std::size_t> all = written(x);
  return !all.empty() && all.front() <= position;
}

std::vector<std::byte> Trace::bytes(const Tensor& x, std::size_t position) const {
  if (!known(x, position)) throw Error(fmt::format("[trace] {} has no value yet at step {}", x.shape().text(), position));
  const auto [block, byte] = TraceMemory::place(x);
  const std::int64_t count = TraceMemory::span(x);
  std::vector<std::byte> all(std::size_t(count), std::byte(0xff));
  if (const Storage* leaf = leaves_.find(block)) std::memcpy(all.data(), leaf->data() + byte, std::size_t(count));
  const std::vector<Patch>* patches = patches_of(x);
  if (!patches) return all;
  for (const Patch& p : *patches) {
    if (p.position > position) break;
    const std::int64_t from = std::max(p.byte, byte), to = std::min(p.byte + std::int64_t(p.bytes.size()), byte + count);
    if (from < to) std::memcpy(all.data() + (from - byte), p.bytes.data() + (from - p.byte), std::size_t(to - from));
  }
  return all;
}

std::vector<double> Trace::value(const Tensor& x, std::size_t position) const { return elements_at(x, bytes(x, position).data()); }

}  // namespace hedgehog
