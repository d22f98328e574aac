#include "core/op.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "core/nearest_name.h"

namespace hedgehog {

const Attributes::Variant& Attributes::find(const char* name) const {
  for (const Item& item : items_)
    if (item.name == name) return item.value;
  throw Error(fmt::format("[attributes] '{}' is not among: {}", name, describe()));
}

namespace {
template <class T>
const T& typed(const Attributes::Variant& v, const char* name, const char* type) {
  if (const T* x = std::get_if<T>(&v)) return *x;
  throw Error(fmt::format("[attributes] '{}' is not of type {}", name, type));
}
}  // namespace

bool Attributes::flag(const char* name) const { return typed<bool>(find(name), name, "flag"); }
std::int64_t Attributes::integer(const char* name) const { return typed<std::int64_t>(find(name), name, "integer"); }
double Attributes::real(const char* name) const { return typed<double>(find(name), name, "real"); }
const std::string& Attributes::text(const char* name) const { return typed<std::string>(find(name), name, "text"); }

bool Attributes::contains(const std::string& name) const {
  return std::any_of(items_.begin(), items_.end(), [&](const Item& i) { return i.name == name; });
}

void Attributes::set(Item item) {
  for (Item& i : items_)
    if (i.name == item.name) {
      i.value = std::move(item.value);
      return;
    }
  items_.push_back(std::move(item));
}

std::string Attributes::describe() const {
  std::string out;
  for (const Item& item : items_) {
    out += (out.empty() ? "" : " ") + item.name + "=";
    std::visit([&](const auto& v) { out += fmt::format("{}", v); }, item.value);
  }
  return out;
}

SampleInput normal(Shape shape, double scale, double shift) {
  return {SampleInput::Fill::normal, shape, scale, shift, true};
}
SampleInput positive(Shape shape, double scale) { return {SampleInput::Fill::positive, shape, scale, 0, true}; }
SampleInput away_from_zero(Shape shape, double scale) { return {SampleInput::Fill::away_from_zero, shape, scale, 0, true}; }
SampleInput integers(Shape shape, std::int64_t low, std::int64_t high) {
  return {SampleInput::Fill::integers, shape, double(high), double(low), false};
}
SampleInput documents(Shape shape) { return {SampleInput::Fill::documents, shape, 1, 0, false}; }
SampleInput mask(Shape shape) { return {SampleInput::Fill::mask, shape, 1, 0, false}; }
SampleInput numbers(Shape shape, std::vector<double> values) {
  return {SampleInput::Fill::numbers, shape, 1, 0, false, std::move(values)};
}
SampleInput omitted() { return {SampleInput::Fill::none, {}, 0, 0, false}; }
SampleInput constant_input(SampleInput input) {
  input.differentiable = false;
  return input;
}

namespace {
std::vector<const Op*>& registry() {
  static std::vector<const Op*> ops;
  return ops;
}
}  // namespace

void register_op(const Op& op) {
  for (const Op* known : registry()) {
    if (known == &op) return;
    if (known->name == op.name) throw Error(fmt::format("[register] an op named '{}' exists already; choose another name", op.name));
  }
  if (!op.infer || (!op.views && !op.forward.cpu))
    throw Error(fmt::format("[register] op '{}' needs infer and a CPU forward", op.name));
  registry().push_back(&op);
}

const std::vector<const Op*>& registered_ops() { return registry(); }

const Op& find_op(const std::string& name) {
  std::vector<std::string> names;
  for (const Op* op : registry()) {
    if (op->name == name) return *op;
    names.push_back(op->name);
  }
  const std::string nearest = nearest_name(name, names);
  throw UsageError(fmt::format("no op is named '{}'; {}", name, nearest.empty() ? "hedgehog gradcheck lists them all" : "did you mean '" + nearest + "'?"));
}

void fail(const char* op, const std::string& message) { throw ShapeError(fmt::format("[{}] {}", op, message)); }
void fail(const Op& op, const std::string& message) { fail(op.name.c_str(), message); }

}  // namespace hedgehog
