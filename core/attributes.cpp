#include "core/attributes.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

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

}  // namespace hedgehog
