#include "ops/matmul.h"

#include <fmt/format.h>

#include "ops/blas.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/parallel.h"
#include "ops/elementwise.h"

namespace hedgehog {
namespace {

/// One or many products: y_i (m, n) = A_i B_i. A shared b has b_step 0.
struct Products {
  bool transpose_a, transpose_b;
  std::int64_t count = 1, m, n, k;
  bool shared_b;

  Products(const Attributes& attributes, const Shape& a, const Shape& b)
      : transpose_a(attributes.flag("transpose_a")), transpose_b(attributes.flag("transpose_b")),
        m(a[transpose_a ? -1 : -2]), n(b[transpose_b ? -2 : -1]), k(a[transpose_a ? -2 : -1]), shared_b(false) {
    for (int i = 0; i < a.rank() - 2; ++i) count *= a[i];
    if (b.rank() == 2 && !transpose_a) {
      m *= count;
      count = 1;
    }
    shared_b = b.rank() == 2 && count > 1;
  }
  std::int64_t b_step() const { return shared_b ? 0 : k * n; }
  std::int64_t lda() const { return transpose_a ? m : k; }
  std::int64_t ldb() const { return transpose_b ? k : n; }
  /// Whether whole products are spread over the threads: enough of them, none large. Depends on shapes alone.
  bool many_small() const { return count >= 8 && m * n * k <= (std::int64_t(1) << 24); }
};

template <class T>
void product(bool serial, bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* b,
             std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  if (serial) gemm_serial<T>(ta, tb, m, n, k, T(1), a, lda, b, ldb, beta, c, ldc);
  else gemm<T>(ta, tb, m, n, k, T(1), a, lda, b, ldb, beta, c, ldc);
}

/// Calls body(i, serial) for each product, in parallel if they are many and small.
template <class Body>
void for_each_product(const Products& p, const Body& body) {
  if (p.many_small()) {
    const std::int64_t work = std::max<std::int64_t>(1, (std::int64_t(1) << 16) / (p.m * p.n * p.k));
    return parallel_for(p.count, work, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) body(i, true);
    });
  }
  for (std::int64_t i = 0; i < p.count; ++i) body(i, false);
}

Layout matmul_infer(const Attributes& attributes, std::span<const Meta> in) {
  const Shape &a = in[0].shape, &b = in[1].shape;
  const bool ta = attributes.flag("transpose_a"), tb = attributes.flag("transpose_b");
  if (!is_floating(in[0].dtype) || in[0].dtype != in[1].dtype)
    fail("matmul", fmt::format("a and b must have one dtype of f32, f64 and bf16, but are {} and {}; use cast first", name_of(in[0].dtype),
                               name_of(in[1].dtype)));
  if (a.rank() < 2 || b.rank() < 2)
    fail("matmul", fmt::format("a and b must have at least two axes, but are {} and {}; reshape a vector to (1, K) or (K, 1)", a.text(),
                               b.text()));
  bool leading = b.rank() == 2 || b.rank() == a.rank();
  for (int i = 0; leading && b.rank() > 2 && i < a.rank() - 2; ++i) leading = a[i] == b[i];
  if (!leading)
    fail("matmul", fmt::format("b must have the leading axes of a {}, or two axes alone, but is {}; reshape or repeat it", a.text(), b.text()));
  const std::int64_t inner_a = a[ta ? -2 : -1], inner_b = b[tb ? -1 : -2];
  if (inner_a != inner_b)
    fail("matmul", fmt::format("the inner extents of a {}{} and b {}{} must agree, but are {} and {}; check the order of the arguments and "
                               "the transpose flags",
                               a.text(), ta ? " transposed" : "", b.text(), tb ? " transposed" : "", inner_a, inner_b));
  Shape y = a;
  y.set(-2, a[ta ? -1 : -2]);
  y.set(-1, b[tb ? -2 : -1]);
  return Layout{{{y, in[0].dtype}}, {}};
}

template <class T>
void matmul_forward(const Call& c) {
  const Products p(c.attributes, c.inputs[0].shape, c.inputs[1].shape);
  const T* a = c.inputs[0].as<T>();
  const T* b = c.inputs[1].as<T>();
  T* y = c.outputs[0].as<T>();
  for_each_product(p, [&](std::int64_t i, bool serial) {
    product<T>(serial, p.transpose_a, p.transpose_b, p.m, p.n, p.k, a + i * p.m * p.k, p.lda(), b + i * p.b_step(), p.ldb(), T(0),
               y + i * p.m * p.n, p.n);
  });
}

template <class T>
void zero_gradient(const Ref& dx, Mode mode) {
  if (dx && mode == Mode::write) std::fill_n(dx.as<T>(), dx.size(), T(0));
}

template <class T>
void matmul_backward(const Call& c) {
  const Products p(c.attributes, c.inputs[0].shape, c.inputs[1].shape);
  const T* a = c.inputs[0].as<T>();
  const T* b = c.inputs[1].as<T>();
  const T* dy = c.dy[0].as<T>();
  T* da = c.dx[0].as<T>();
  T* db = c.dx[1].as<T>();
  if (!dy) {
    zero_gradient<T>(c.dx[0], c.modes[0]);
    zero_gradient<T>(c.dx[1], c.modes[1]);
    return;
  }
  const T beta_a = c.modes[0] == Mode::accumulate ? T(1) : T(0), beta_b = c.modes[1] == Mode::accumulate ? T(1) : T(0);
  if (da)
    for_each_product(p, [&](std::int64_t i, bool serial) {
      const T *bi = b + i * p.b_step(), *dyi = dy + i * p.m * p.n;
      T* dai = da + i * p.m * p.k;
      if (p.transpose_a) product<T>(serial, p.transpose_b, true, p.k, p.m, p.n, bi, p.ldb(), dyi, p.n, beta_a, dai, p.lda());
      else product<T>(serial, false, !p.transpose_b, p.m, p.k, p.n, dyi, p.n, bi, p.ldb(), beta_a, dai, p.lda());
    });
  auto gradient_of_b = [&](std::int64_t i, bool serial, T beta) {
    const T *ai = a + i * p.m * p.k, *dyi = dy + i * p.m * p.n;
    T* dbi = db + i * p.b_step();
    if (p.transpose_b) product<T>(serial, true, p.transpose_a, p.n, p.k, p.m, dyi, p.n, ai, p.lda(), beta, dbi, p.ldb());
    else product<T>(serial, !p.transpose_a, false, p.k, p.n, p.m, ai, p.lda(), dyi, p.n, beta, dbi, p.ldb());
  };
  if (!db) return;
  if (!p.shared_b) return for_each_product(p, [&](std::int64_t i, bool serial) { gradient_of_b(i, serial, beta_b); });
  for (std::int64_t i = 0; i < p.count; ++i) gradient_of_b(i, false, i ? T(1) : beta_b);
}

std::pair<Work, Work> matmul_cost(const Attributes& attributes, std::span<const Meta> in, std::span<const Meta> out) {
  const std::int64_t k = in[0].shape[attributes.flag("transpose_a") ? -2 : -1];
  const double flops = 2.0 * double(k) * double(out[0].shape.size());
  return {Work{flops}, Work{2 * flops}};
}

/// Matmul whose b gets the gradient of half of y alone, as when its sum over rows is cut short.
Tensors half_gradient_of_b(const Attributes& attributes, const Tensors& x) {
  const bool ta = attributes.flag("transpose_a"), tb = attributes.flag("transpose_b");
  return {scale(add(matmul(x[0], x[1], ta, tb), matmul(x[0], detach(x[1]), ta, tb)), 0.5)};
}

}  // namespace

extern const Op kMatmul;

const Op kMatmul{
    .name = "matmul",
    .arguments = {{"a"}, {"b"}},
    .results = {"y"},
    .attributes = {{"transpose_a", false}, {"transpose_b", false}},
    .infer = matmul_infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { matmul_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { matmul_backward<decltype(zero)>(c); }); }},
    .reads = {bits(0, 1)},
    .cost = matmul_cost,
    .formula_forward = "y[.., i, j] = sum_k A[.., i, k] B[.., k, j]",
    .formula_backward = "dA = dy B^T, dB = A^T dy",
    .samples = {{"plain", {}, {normal({3, 4}), normal({4, 5})}},
                {"heads", {{"transpose_b", true}}, {normal({2, 3, 7, 5}), normal({2, 3, 4, 5})}},
                {"batch", {}, {normal({2, 5, 3}), normal({2, 3, 4})}},
                {"many", {}, {normal({3, 4, 2, 5}), normal({3, 4, 5, 6})}},
                {"first transposed", {{"transpose_a", true}}, {normal({2, 5, 3}), normal({2, 5, 4})}},
                {"both transposed", {{"transpose_a", true}, {"transpose_b", true}}, {normal({2, 5, 3}), normal({2, 4, 5})}},
                {"folded", {}, {normal({2, 3, 5}), normal({5, 4})}},
                {"folded transposed", {{"transpose_b", true}}, {normal({2, 3, 5}), normal({4, 5})}},
                {"shared", {{"transpose_a", true}}, {normal({2, 5, 3}), normal({5, 4})}},
                {"shared transposed", {{"transpose_a", true}, {"transpose_b", true}}, {normal({2, 5, 3}), normal({4, 5})}},
                {"one", {}, {normal({1, 1}), normal({1, 1})}}},
    .faults = {{"half", "b gets the gradient of half of its uses", {}, half_gradient_of_b, {}}},
};

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b, SourceLine where) {
  return apply(kMatmul, {{"transpose_a", transpose_a}, {"transpose_b", transpose_b}}, {a, b}, where)[0];
}

}  // namespace hedgehog
