#pragma once
#include <cmath>
#include <type_traits>

#include "core/op.h"
#include "ops/math.h"
#include "ops/normal.h"

/// The formulas of the elementwise ops, one element at a time: loops on the CPU and kernels on the device call the same
/// text. constexpr makes them callable from device code. Internal to ops/ and cuda/.
namespace hedgehog::detail {

// A formula of two arguments has value(a, b), the gradients da and db from (dy, y, a, b) before they are summed to the
// argument's shape, and the `reads` of both.

struct Add {
  static constexpr Reads reads{};
  template <class T> static constexpr T value(T a, T b) { return a + b; }
  template <class T> static constexpr T da(T dy, T, T, T) { return dy; }
  template <class T> static constexpr T db(T dy, T, T, T) { return dy; }
};

struct Subtract {
  static constexpr Reads reads{};
  template <class T> static constexpr T value(T a, T b) { return a - b; }
  template <class T> static constexpr T da(T dy, T, T, T) { return dy; }
  template <class T> static constexpr T db(T dy, T, T, T) { return -dy; }
};

struct Multiply {
  static constexpr Reads reads{bits(0, 1)};
  template <class T> static constexpr T value(T a, T b) { return a * b; }
  template <class T> static constexpr T da(T dy, T, T, T b) { return dy * b; }
  template <class T> static constexpr T db(T dy, T, T a, T) { return dy * a; }
};

struct Divide {
  static constexpr Reads reads{bits(1), bits(0)};
  template <class T> static constexpr T value(T a, T b) { return a / b; }
  template <class T> static constexpr T da(T dy, T, T, T b) { return dy / b; }
  template <class T> static constexpr T db(T dy, T y, T, T b) { return -dy * y / b; }
};

// A formula of one argument has value(x), slope(x, y) = dy/dx, the `reads` of slope, and wrong_slope(x, y): what people
// write by mistake. Formulas with constants are made from the attributes.
template <class F>
F make_formula(const Attributes& attributes) {
  if constexpr (std::is_constructible_v<F, const Attributes&>) return F(attributes);
  else return F{};
}

struct Affine {
  double scale, shift;
  explicit Affine(const Attributes& a) : scale(a.real("scale")), shift(a.real("shift")) {}
  static constexpr Reads reads{};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x * T(scale) + T(shift); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T) const { return T(scale); }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

struct Negate {
  static constexpr Reads reads{};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return -x; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T) const { return T(-1); }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

struct Exp {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return vector_exp(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return y; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

struct Log {
  static constexpr Reads reads{bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return std::log(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const { return T(1) / x; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

struct Tanh {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return vector_tanh(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return T(1) - y * y; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T y) const { return T(1) - y; }
};

struct Sigmoid {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return vector_sigmoid(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return y * (T(1) - y); }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T y) const { return y; }
};

struct Square {
  static constexpr Reads reads{bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x * x; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const { return T(2) * x; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T x, T) const { return x; }
};

struct Sqrt {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return std::sqrt(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return T(0.5) / y; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T y) const { return T(1) / y; }
};

struct Reciprocal {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return T(1) / x; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return -y * y; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T y) const { return y * y; }
};

struct Relu {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x < T(0) ? T(0) : x; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return y > T(0) ? T(1) : T(0); }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

struct Gelu {
  static constexpr Reads reads{bits(0)};
  static constexpr double k = 0.79788456080286535588, cubic = 0.044715;  // sqrt(2 / pi)
  template <class T> [[gnu::always_inline]] constexpr T tanh_of(T x) const { return vector_tanh(T(k) * x * (T(1) + T(cubic) * x * x)); }
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return T(0.5) * x * (T(1) + tanh_of(x)); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const {
    const T t = tanh_of(x);
    return T(0.5) * (T(1) + t) + T(0.5 * k) * x * (T(1) - t * t) * (T(1) + T(3 * cubic) * x * x);
  }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T x, T) const { return T(0.5) * (T(1) + tanh_of(x)); }
};

struct GeluErf {
  static constexpr Reads reads{bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x * vector_normal(x).below; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const {
    const Normal<T> n = vector_normal(x);
    return n.below + x * n.density;
  }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T x, T) const { return vector_normal(x).below; }
};

struct Silu {
  static constexpr Reads reads{bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x * vector_sigmoid(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const {
    const T s = vector_sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
  }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T x, T) const { return vector_sigmoid(x); }
};

struct EluPlusOne {
  static constexpr Reads reads{0, bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x > T(0) ? x + T(1) : vector_exp(x); }
  template <class T> [[gnu::always_inline]] constexpr T slope(T, T y) const { return y > T(1) ? T(1) : y; }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T y) const { return y; }
};

struct FloorAt {
  double floor;
  explicit FloorAt(const Attributes& a) : floor(a.real("value")) {}
  static constexpr Reads reads{bits(0)};
  template <class T> [[gnu::always_inline]] constexpr T value(T x) const { return x < T(floor) ? T(floor) : x; }
  template <class T> [[gnu::always_inline]] constexpr T slope(T x, T) const { return x >= T(floor) ? T(1) : T(0); }
  template <class T> [[gnu::always_inline]] constexpr T wrong_slope(T, T) const { return T(1); }
};

}  // namespace hedgehog::detail
