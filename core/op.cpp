#include "core/op.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/dispatch.h"
#include "core/error.h"
#include "core/nearest_name.h"

namespace hedgehog {
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

void refuse_dtype(Dtype dtype) { throw DtypeError(fmt::format("the CPU computes in f32 and f64, got {}; cast first", name_of(dtype))); }

void fail(const char* op, const std::string& message) { throw ShapeError(fmt::format("[{}] {}", op, message)); }
void fail(const Op& op, const std::string& message) { fail(op.name.c_str(), message); }

}  // namespace hedgehog
