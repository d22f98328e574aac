#include "core/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "core/error.h"

namespace hedgehog {
static constexpr int kGuard = 64;
static constexpr unsigned char kGuardByte = 0xa5;

Executor::Executor(Program program, ExecutorOptions options)
    : program_(std::move(program)), options_(std::move(options)),
      plan_(hedgehog::plan(program_, {.reuse = options_.reuse, .guards = options_.poison})), device_(&current_device()) {
  if (!options_.arena) options_.arena = std::make_shared<Arena>();
  options_.arena->reserve(plan_.arena);
  begins_.resize(program_.entries.size() + 1);
  for (std::size_t s = 0; s < plan_.slots.size(); ++s)
    if (plan_.slots[s].bytes) begins_[std::size_t(plan_.slots[s].first)].push_back(int(s));
  for (const Entry& e : program_.entries)
    for (std::size_t j = 0; j < e.inputs.size() && !e.backward; ++j)
      if (e.inputs[j] && (e.op->updates >> j & 1u)) updated_.push_back(e.inputs[j].root());
  std::unordered_set<const Value*> seen;
  for (const Entry& e : program_.entries)
    for_each_touched(e, [&](const Tensor& x, bool) {
      const Tensor root = x.root();
      if (!plan_.slot_of.count(root.get()) && seen.insert(root.get()).second) leaves_.emplace_back(root, nullptr);
    });
}

bool Executor::moved() const {
  return std::any_of(leaves_.begin(), leaves_.end(), [](const auto& leaf) { return leaf.first.data() != leaf.second; });
}

void Executor::bind() {
  std::byte* base = options_.arena->data();
  auto address = [&](const Tensor& x) -> void* {
    const Tensor root = x.root();
    auto found = plan_.slot_of.find(root.get());
    if (found == plan_.slot_of.end()) return x.data();
    return base + plan_.slots[std::size_t(found->second)].offset + x->offset * size_of(x.dtype());
  };
  calls_.clear();
  for (std::size_t i = 0; i < program_.entries.size(); ++i) {
    const Entry& e = program_.entries[i];
    ResolvedCall call;
    call.entry = &e;
    if (!e.op->views) call = resolve(e, address);
    if (const int w = plan_.workspace_of[i]; w >= 0) call.workspace = base + plan_.slots[std::size_t(w)].offset;
    calls_.push_back(std::move(call));
  }
  for (auto& [tensor, at] : leaves_) at = tensor.data();
  bound_ = options_.arena->generation();
  replay_ = nullptr;
}

void Executor::run() {
  const OnDevice guard(*device_);
  options_.arena->reserve(plan_.arena);
  if (bound_ != options_.arena->generation()) bind();
  if (moved()) {
    if (replay_) throw Error("[executor] a tensor of the captured program has moved since; make a new executor after flatten() and the like");
    bind();
  }
  for (const Tensor& x : updated_) ++x->storage->whole().version;
  if (!options_.graph || profiling_ || options_.poison || !warm_) {
    enqueue();
    warm_ = true;  // kernels are loaded and products chosen: what a capture must not wait for
    return;
  }
  if (!replay_) replay_ = device_->capture([&] { enqueue(); });
  replay_->run();
}

void Executor::enqueue() {
  if (options_.first) options_.first();
  if (profiling_) watch_->lap();
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    if (program_.entries[i].op->views) continue;
    if (options_.poison) {
      run_checked(i);
    } else {
      calls_[i].run();
      if (profiling_) watch_->lap();
    }
  }
  if (profiling_ && !options_.poison) add_timings(watch_->seconds());
}

void Executor::profile(bool on) {
  profiling_ = on;
  if (on && !watch_) watch_ = device_->stopwatch();
}

void Executor::add_timings(const std::vector<double>& seconds) {
  std::size_t lap = 0;
  for (const Entry& e : program_.entries) {
    if (e.op->views) continue;
    Timing& t = timings_[e.op->name + (e.backward ? " backward" : "")];
    t.seconds += seconds.at(lap++);
    ++t.calls;
  }
}

void Executor::run_checked(std::size_t i) {
  for (int s : begins_[i]) {
    const Slot& slot = plan_.slots[std::size_t(s)];
    std::byte* at = options_.arena->data() + slot.offset;
    device_->fill(at - kGuard, kGuardByte, kGuard);
    device_->fill(at, 0xff, std::size_t(slot.bytes));
    device_->fill(at + slot.bytes, kGuardByte, kGuard);
  }
  calls_[i].run();
  check_guards(i);
}

void Executor::check_guards(std::size_t i) const {
  for (std::size_t s = 0; s < plan_.slots.size(); ++s) {
    const Slot& slot = plan_.slots[s];
    if (!slot.bytes || slot.first > int(i) || slot.last < int(i)) continue;
    const std::byte* at = options_.arena->data() + slot.offset;
    std::byte words[2 * kGuard];
    device_->copy_out(words, at - kGuard, kGuard);
    device_->copy_out(words + kGuard, at + slot.bytes, kGuard);
    if (std::all_of(words, words + 2 * kGuard, [](std::byte word) { return word == std::byte(kGuardByte); })) continue;
    const Entry& e = program_.entries[i];
    throw Error(fmt::format("[{}] {} wrote outside its memory (entry {}, scope '{}'): guard word of slot {} changed", e.op->name,
                            e.backward ? "backward" : "forward", i, e.scope, s));
  }
}

Tensor Executor::output(std::size_t i) const {
  if (i >= program_.outputs.size())
    throw Error(fmt::format("[executor] output {} was asked for, but the program has {}", i, program_.outputs.size()));
  const Tensor& y = program_.outputs[i];
  auto found = plan_.slot_of.find(y.root().get());
  if (found == plan_.slot_of.end()) return y;
  auto value = std::make_shared<Value>(*y.get());
  const Slot& slot = plan_.slots[std::size_t(found->second)];
  Tensor root = declare(y.root().shape(), y.dtype());
  root->storage = std::make_shared<Storage>(options_.arena->data() + slot.offset, std::size_t(slot.bytes), options_.arena->storage());
  if (!y->base) return root;
  value->base = root;
  return Tensor(std::move(value));
}

}  // namespace hedgehog
