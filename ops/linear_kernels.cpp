#include "ops/linear_kernels.h"

#include "ops/blas.h"
#include "ops/math.h"
#include "ops/normal.h"
#include "ops/rows.h"

namespace hedgehog {
namespace {

template <Activation kind, class T>
[[gnu::always_inline]] inline T activate(T h) {
  if constexpr (kind == Activation::gelu) return h * vector_sigmoid(T(kGelu) * h * (T(1) + T(kGeluCube) * h * h));
  if constexpr (kind == Activation::gelu_erf) return h * vector_normal(h).below;
  if constexpr (kind == Activation::silu) return h * vector_sigmoid(h);
  if constexpr (kind == Activation::relu) return h < T(0) ? T(0) : h;  // NaN stays NaN
  return h;
}

template <Activation kind, class T>
[[gnu::always_inline]] inline T slope(T h) {
  if constexpr (kind == Activation::gelu) {
    const T square = h * h, s = vector_sigmoid(T(kGelu) * h * (T(1) + T(kGeluCube) * square));
    return s + s * (T(1) - s) * T(kGelu) * h * (T(1) + T(3 * kGeluCube) * square);
  }
  if constexpr (kind == Activation::gelu_erf) {
    const Normal<T> n = vector_normal(h);
    return n.below + h * n.density;
  }
  if constexpr (kind == Activation::silu) {
    const T s = vector_sigmoid(h);
    return s * (T(1) + h * (T(1) - s));
  }
  if constexpr (kind == Activation::relu) return h > T(0) ? T(1) : T(0);
  return T(1);
}

/// Calls f with the activation as a compile-time constant.
template <class F>
void with_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::none: return f(std::integral_constant<Activation, Activation::none>{});
    case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_erf: return f(std::integral_constant<Activation, Activation::gelu_erf>{});
    case Activation::silu: return f(std::integral_constant<Activation, Activation::silu>{});
    case Activation::relu: return f(std::integral_constant<Activation, Activation::relu>{});
  }
}

/// Tiles of the output: wide enough that packing the weight costs little, few enough bytes that the bias, the
/// activation and the addend find the tile in the cache. They depend on the shapes alone.
struct Tiles {
  std::int64_t rows, columns, down, across;
  Tiles(std::int64_t m, std::int64_t n) {
    rows = std::clamp<std::int64_t>((m / 8 + 15) / 16 * 16, 96, std::clamp<std::int64_t>((std::int64_t(1) << 18) / n / 16 * 16, 96, 384));
    down = (m + rows - 1) / rows;
    columns = down >= 8 ? n : std::max<std::int64_t>(256, (n * down / 8 + 63) / 64 * 64);
    across = (n + columns - 1) / columns;
  }
};

template <class T>
void fill_rows(T* to, std::int64_t ld, const T* bias, const T* addend, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r, to += ld) {
    if (bias && addend) {
#pragma omp simd
      for (std::int64_t c = 0; c < columns; ++c) to[c] = bias[c] + addend[c];
    } else if (bias) {
      std::copy_n(bias, columns, to);
    } else if (to != addend) {
      std::copy_n(addend, columns, to);
    }
    if (addend) addend += ld;
  }
}

template <Activation kind, class T>
void activate_rows(const T* h, T* y, const T* addend, std::int64_t ld, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r, h += ld, y += ld) {
    if (addend) {
#pragma omp simd
      for (std::int64_t c = 0; c < columns; ++c) y[c] = activate<kind>(h[c]) + addend[c];
      addend += ld;
    } else {
#pragma omp simd
      for (std::int64_t c = 0; c < columns; ++c) y[c] = activate<kind>(h[c]);
    }
  }
}

template <Activation kind, class T>
void dh_rows(const T* dy, const T* h, T* dh, T* partials, std::int64_t rows, std::int64_t columns) {
  const std::int64_t blocks = row_blocks(rows), stride = padded_row(columns);
  parallel_tasks(blocks, [&](std::int64_t b) {
    T* const sums = partials ? partials + b * stride : nullptr;
    if (sums) std::fill_n(sums, columns, T(0));
    for (std::int64_t r = rows * b / blocks; r < rows * (b + 1) / blocks; ++r) {
      const T* upstream = dy + r * columns;
      if constexpr (kind != Activation::none) {
        const T* here = h + r * columns;
        T* const out = dh + r * columns;
#pragma omp simd
        for (std::int64_t c = 0; c < columns; ++c) out[c] = upstream[c] * slope<kind>(here[c]);
        upstream = out;
      }
      if (!sums) continue;
#pragma omp simd
      for (std::int64_t c = 0; c < columns; ++c) sums[c] += upstream[c];
    }
  });
}

}  // namespace

template <class T>
void linear_rows(const Ref& x, const Ref& weight, const T* bias, const T* addend, Activation kind, T* h, T* y) {
  const std::int64_t k = weight.shape[0], n = weight.shape[1], m = x.size() / k;
  // without activation the addend joins the product, which then adds to it
  const T* const start = kind == Activation::none ? addend : nullptr;
  const Tiles tiles(m, n);
  parallel_tasks(tiles.down * tiles.across, [&](std::int64_t tile) {
    const std::int64_t r0 = tile / tiles.across * tiles.rows, r1 = std::min(m, r0 + tiles.rows);
    const std::int64_t c0 = tile % tiles.across * tiles.columns, columns = std::min(n, c0 + tiles.columns) - c0;
    const std::int64_t corner = r0 * n + c0;
    if (bias || start)
      fill_rows(h + corner, n, bias ? bias + c0 : nullptr, start ? start + corner : nullptr, r1 - r0, columns);
    for_row_runs(x, k, r0, r1, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
      gemm<T>(false, false, rows, columns, k, 1, x.as<T>() + offset, ld, weight.as<T>() + c0, n, bias || start ? 1 : 0,
                     h + row * n + c0, n);
    });
    if (kind == Activation::none) return;
    with_activation(kind, [&](auto a) {
      activate_rows<a>(h + corner, y + corner, addend ? addend + corner : nullptr, n, r1 - r0, columns);
    });
  });
}

template <class T>
void linear_dh(Activation kind, const T* dy, const T* h, T* dh, T* partials, std::int64_t rows, std::int64_t columns) {
  with_activation(kind, [&](auto a) { dh_rows<a>(dy, h, dh, partials, rows, columns); });
}

template <class T>
void linear_dx(const T* dh, const Ref& weight, const Ref& dx, Mode mode) {
  const std::int64_t k = weight.shape[0], n = weight.shape[1], m = dx.size() / k;
  for_row_runs(dx, k, 0, m, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    gemm<T>(false, true, rows, k, n, 1, dh + row * n, n, weight.as<T>(), n, mode == Mode::accumulate ? 1 : 0, dx.as<T>() + offset, ld);
  });
}

template <class T>
void linear_dweight(const Ref& x, const T* dh, const Ref& dweight, Mode mode) {
  const std::int64_t k = dweight.shape[0], n = dweight.shape[1], m = x.size() / k;
  for_row_runs(x, k, 0, m, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    gemm<T>(true, false, k, n, rows, 1, x.as<T>() + offset, ld, dh + row * n, n, row > 0 || mode == Mode::accumulate ? 1 : 0,
            dweight.as<T>(), n);
  });
}

template void linear_rows<float>(const Ref&, const Ref&, const float*, const float*, Activation, float*, float*);
template void linear_dh<float>(Activation, const float*, const float*, float*, float*, std::int64_t, std::int64_t);
template void linear_dx<float>(const float*, const Ref&, const Ref&, Mode);
template void linear_dweight<float>(const Ref&, const float*, const Ref&, Mode);
template void linear_rows<double>(const Ref&, const Ref&, const double*, const double*, Activation, double*, double*);
template void linear_dh<double>(Activation, const double*, const double*, double*, double*, std::int64_t, std::int64_t);
template void linear_dx<double>(const double*, const Ref&, const Ref&, Mode);
template void linear_dweight<double>(const Ref&, const double*, const Ref&, Mode);

}  // namespace hedgehog
