#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace hedgehog {

/// Named constants of one call, in order: {{"causal", true}, {"eps", 1e-5}}.
class Attributes {
 public:
  using Variant = std::variant<bool, std::int64_t, double, std::string>;
  struct Item {
    std::string name;
    Variant value;
    Item(std::string n, bool v) : name(std::move(n)), value(v) {}
    Item(std::string n, int v) : name(std::move(n)), value(std::int64_t(v)) {}
    Item(std::string n, std::int64_t v) : name(std::move(n)), value(v) {}
    Item(std::string n, double v) : name(std::move(n)), value(v) {}
    Item(std::string n, std::string v) : name(std::move(n)), value(std::move(v)) {}
    Item(std::string n, const char* v) : name(std::move(n)), value(std::string(v)) {}
  };
  Attributes() = default;
  Attributes(std::initializer_list<Item> items) : items_(items) {}

  bool flag(const char* name) const;
  std::int64_t integer(const char* name) const;
  double real(const char* name) const;
  const std::string& text(const char* name) const;
  bool contains(const std::string& name) const;
  void set(Item item);
  const std::vector<Item>& items() const { return items_; }
  std::string describe() const;  // "causal=true eps=1e-05"

 private:
  const Variant& find(const char* name) const;
  std::vector<Item> items_;
};

}  // namespace hedgehog
