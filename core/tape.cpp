#include "core/tape.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "core/device.h"
#include "core/error.h"

namespace hedgehog {

namespace detail {
Tape& tape() {
  static thread_local Tape tape;
  return tape;
}

std::vector<Meta> metas_of(const Tensors& tensors) {
  std::vector<Meta> metas;
  metas.reserve(tensors.size());
  for (const Tensor& t : tensors) metas.push_back(t ? Meta{t.shape(), t.dtype(), true} : Meta{{}, Dtype::f32, false});
  return metas;
}

namespace {

void sweep(Tape& tape) {
  // an entry is dead when nothing but the entry itself holds its results
  auto dead = [](const Entry& e) {
    return std::all_of(e.outputs.begin(), e.outputs.end(), [](const Tensor& t) { return t.pointer().use_count() == 1; });
  };
  for (std::size_t i = tape.entries.size(); i-- > 0;)
    if (dead(tape.entries[i])) tape.entries[i] = Entry{};
  std::erase_if(tape.entries, [](const Entry& e) { return e.op == nullptr; });
  tape.sweep_at = std::max<std::size_t>(256, 2 * tape.entries.size());
}

}  // namespace

void execute(Entry entry, bool remember) {
  Tape& t = tape();
  if (t.recording) {
    t.entries.push_back(std::move(entry));
    return;
  }
  if (!entry.op->views) {
    for (const Tensors* made : {&entry.outputs, &entry.saved, &entry.dx})
      for (const Tensor& x : *made)
        if (x && !x.root()->storage) materialise(x.root());
    const Storage workspace{std::size_t(entry.workspace)};
    ResolvedCall call = resolve(entry, [](const Tensor& x) { return x.data(); });
    call.workspace = entry.workspace ? workspace.data() : nullptr;
    call.run();
  }
  if (!remember || entry.op->views) return;
  if (t.entries.size() >= t.sweep_at) sweep(t);
  t.entries.push_back(std::move(entry));
}

}  // namespace detail

using detail::tape;

namespace {

void complete_attributes(const Op& op, Attributes& given) {
  for (const auto& item : given.items())
    if (std::none_of(op.attributes.begin(), op.attributes.end(), [&](const auto& a) { return a.name == item.name; }))
      fail(op, fmt::format("has no attribute '{}'; it has: {}", item.name, [&] {
             std::string names;
             for (const auto& a : op.attributes) names += (names.empty() ? "" : ", ") + a.name;
             return names;
           }()));
  Attributes complete;
  for (const auto& a : op.attributes) complete.set(a);
  for (const auto& item : given.items()) complete.set(item);
  given = std::move(complete);
}

void check_arguments(const Op& op, Tensors& inputs) {
  if (inputs.size() > op.arguments.size())
    fail(op, fmt::format("takes {} arguments, got {}", op.arguments.size(), inputs.size()));
  inputs.resize(op.arguments.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Argument& a = op.arguments[i];
    if (!inputs[i]) {
      if (!a.optional) fail(op, fmt::format("argument {} '{}' is missing; give a tensor", i, a.name));
      continue;
    }
    if (inputs[i].size() == 0)
      fail(op, fmt::format("argument '{}' is empty {}; every extent must be at least 1", a.name, inputs[i].shape().text()));
    if (!op.views && !(op.strided >> i & 1u)) inputs[i] = contiguous(inputs[i]);
  }
}

bool differentiable(const Op& op, const Tensors& inputs) {
  if (!op.backward.cpu && !op.backward.cuda && !op.views) return false;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].wants_gradient() && op.arguments[i].differentiable && is_floating(inputs[i].dtype())) return true;
  return false;
}

void raise_versions(const Op& op, const Tensors& inputs) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!(op.updates >> i & 1u) || !inputs[i]) continue;
    const Role role = inputs[i].role();
    if (role == Role::input || role == Role::activation)
      fail(op, fmt::format("would overwrite '{}', which is an {}; only parameters, gradients and states may change in place",
                           op.arguments[i].name, name_of(role)));
    // a leaf that is only declared has nothing to overwrite
    if (const auto& storage = inputs[i].root()->storage) ++storage->whole().version;
  }
}

}  // namespace

Tensors apply(const Op& op, Attributes attributes, Tensors inputs, SourceLine where) {
  detail::Tape& t = tape();
  complete_attributes(op, attributes);
  check_arguments(op, inputs);
  const std::vector<Meta> metas = detail::metas_of(inputs);
  const Layout layout = op.infer(attributes, metas);
  const bool wants = t.gradients && differentiable(op, inputs);
  const Device& device = current_device();
  const bool runs = op.views || (device.kernel(op, false) && (!wants || device.kernel(op, true)));
  if (op.reference && (t.composed || !runs)) return op.reference(attributes, inputs);

  Entry entry;
  entry.op = &op;
  entry.scope = t.scope;
  entry.where = where;
  entry.workspace = op.views ? 0 : device.workspace(op, attributes, metas, layout, false);
  for (const Tensor& x : inputs) entry.versions.push_back(x ? x.version() : 0);
  if (op.views) {
    entry.outputs = op.views(attributes, inputs[0], layout);
  } else {
    for (const Meta& m : layout.outputs) entry.outputs.push_back(declare(m.shape, m.dtype));
    if (wants)
      for (const std::vector<Meta>& kept : {layout.saved, device.kept(op, attributes, metas)})
        for (const Meta& m : kept) entry.saved.push_back(declare(m.shape, m.dtype));
  }
  for (std::size_t j = 0; j < entry.outputs.size(); ++j)
    entry.outputs[j]->wants_gradient = wants && is_floating(entry.outputs[j].dtype()) && !(j < 32 && (op.constant_outputs >> j & 1u));  // split has more
  raise_versions(op, inputs);
  entry.inputs = std::move(inputs);
  entry.attributes = std::move(attributes);
  Tensors outputs = entry.outputs;
  detail::execute(std::move(entry), wants);
  return outputs;
}

ResolvedCall resolve(const Entry& entry, const std::function<void*(const Tensor&)>& address) {
  const Op& op = *entry.op;
  ResolvedCall call;
  call.entry = &entry;
  auto refs = [&](const Tensors& tensors, std::uint32_t used) {
    std::vector<Ref> out;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      Ref r;
      if (const Tensor& x = tensors[i]) {
        r = {nullptr, x.shape(), x.dtype(), x.contiguous() ? x.size() : x.columns(), x.contiguous() ? x.size() : x.stride(), true,
             x.role() == Role::parameter};
        if (i < 32 && (used >> i & 1u)) r.data = address(x);
      }
      out.push_back(r);
    }
    return out;
  };
  const bool b = entry.backward;
  call.inputs = refs(entry.inputs, b ? op.reads.inputs : ~0u);
  call.outputs = refs(entry.outputs, b ? op.reads.outputs : ~0u);
  call.saved = refs(entry.saved, b ? op.saved_reads() : ~0u);
  if (call.saved.size() < op.saved_names.size()) call.saved.resize(op.saved_names.size());
  call.dy = refs(entry.dy, ~0u);
  call.dx = refs(entry.dx, ~0u);
  call.modes = entry.modes;
  call.kernel = current_device().kernel(op, b);
  if (!call.kernel)
    throw Error(fmt::format("[{}] has no {} kernel on {}; compute on the CPU", op.name, b ? "backward" : "forward", current_device().name()));
  return call;
}

void ResolvedCall::run() const {
  const Op& op = *entry->op;
  const Call call{entry->attributes, inputs, outputs, saved, dy, dx, modes, workspace};
  try {
    (*kernel)(call);
  } catch (const DtypeError& e) {
    fail(op, e.what());
  }
}

Tensor contiguous(const Tensor& tensor) {
  return tensor.contiguous() ? tensor : apply(detail::kCopy, {}, {tensor})[0];
}

Program record(const std::function<Tensors()>& function) {
  detail::Tape& t = tape();
  if (t.recording) throw Error("[record] is already running; a program cannot be recorded inside another");
  detail::Tape outer = std::move(t);
  t = detail::Tape{};
  t.recording = true;
  t.gradients = outer.gradients;
  t.composed = outer.composed;
  Program program;
  try {
    program.outputs = function();
  } catch (...) {
    t = std::move(outer);
    throw;
  }
  program.entries = std::move(t.entries);
  t = std::move(outer);
  std::unordered_set<const Value*> seen;
  for (const Entry& e : program.entries)
    for (const Tensor& x : e.inputs)
      if (x && x.role() == Role::input && seen.insert(x.root().get()).second) program.inputs.push_back(x.root());
  return program;
}

bool recording() { return tape().recording; }

Program operator+(Program first, Program second) {
  for (Entry& e : second.entries) first.entries.push_back(std::move(e));
  for (Tensor& x : second.inputs)
    if (std::find(first.inputs.begin(), first.inputs.end(), x) == first.inputs.end()) first.inputs.push_back(x);
  for (Tensor& x : second.outputs) first.outputs.push_back(x);
  return first;
}

no_grad::no_grad() : previous_(tape().gradients) { tape().gradients = false; }
no_grad::~no_grad() { tape().gradients = previous_; }
keep_tape::keep_tape() : previous_(tape().keep) { tape().keep = true; }
keep_tape::~keep_tape() { tape().keep = previous_; }
Expand::Expand() : previous_(tape().composed) { tape().composed = true; }
Expand::~Expand() { tape().composed = previous_; }
Scope::Scope(const std::string& name) : previous_(tape().scope.size()) {
  std::string& s = tape().scope;
  s += (s.empty() ? "" : "/") + name;
}
Scope::~Scope() { tape().scope.resize(previous_); }

std::size_t tape_size() { return tape().entries.size(); }
void clear_tape() { tape().entries.clear(); }

}  // namespace hedgehog
