#include "cuda/blas.h"
#include "cuda/common.cuh"
#include "cuda/linear_products.h"
#include "cuda/vector_product.h"

namespace hedgehog::cuda {
namespace {

/// One or many products, as ops/matmul.cpp sees them: y_i (m, n) = A_i B_i; a shared b has step 0.
struct Products {
  bool transpose_a, transpose_b, shared_b;
  std::int64_t count = 1, m, n, k;

  Products(const Attributes& attributes, const Shape& a, const Shape& b)
      : transpose_a(attributes.flag("transpose_a")), transpose_b(attributes.flag("transpose_b")), shared_b(false),
        m(a[transpose_a ? -1 : -2]), n(b[transpose_b ? -2 : -1]), k(a[transpose_a ? -2 : -1]) {
    for (int i = 0; i < a.rank() - 2; ++i) count *= a[i];
    if (b.rank() == 2 && !transpose_a) {
      m *= count;
      count = 1;
    }
    shared_b = b.rank() == 2 && count > 1;
  }
  std::int64_t step_b() const { return shared_b ? 0 : k * n; }
  std::int64_t lda() const { return transpose_a ? m : k; }
  std::int64_t ldb() const { return transpose_b ? k : n; }
};

void zero_gradient(const Ref& dx, bool add) {
  if (dx && !add) check(cudaMemsetAsync(dx.data, 0, std::size_t(dx.size() * size_of(dx.dtype)), stream()), "matmul: zero gradient");
}

void forward(const Call& c) {
  const Products p(c.attributes, c.inputs[0].shape, c.inputs[1].shape);
  if (c.inputs[0].dtype == Dtype::bf16 && p.count == 1 && !p.transpose_a && p.m <= kMostVectors &&
      multiply_vectors({.m = p.m,
                        .n = p.n,
                        .k = p.k,
                        .x = c.inputs[0].data,
                        .ldx = p.k,
                        .weight = c.inputs[1].data,
                        .transposed = p.transpose_b,
                        .parameters = c.inputs[1].parameter,
                        .y = c.outputs[0].data}))
    return;
  Product x;
  x.dtype = x.result = c.inputs[0].dtype;
  x.transpose_a = p.transpose_a, x.transpose_b = p.transpose_b;
  x.m = p.m, x.n = p.n, x.k = p.k;
  x.a = c.inputs[0].data, x.b = c.inputs[1].data, x.d = c.outputs[0].data;
  x.lda = p.lda(), x.ldb = p.ldb(), x.ldd = p.n;
  x.batch = p.count, x.step_a = p.m * p.k, x.step_b = p.step_b(), x.step_d = p.m * p.n;
  multiply(x);
}

/// dA = dy B^T, or its transpose where a is stored transposed.
void gradient_of_a(const Call& c, const Products& p) {
  Product x;
  x.dtype = c.inputs[0].dtype, x.result = c.dx[0].dtype;
  x.beta = adds(c, 0);
  x.batch = p.count, x.step_d = p.m * p.k;
  x.d = c.dx[0].data, x.ldd = p.lda();
  if (p.transpose_a) {
    x.transpose_a = p.transpose_b, x.transpose_b = true;
    x.m = p.k, x.n = p.m, x.k = p.n;
    x.a = c.inputs[1].data, x.lda = p.ldb(), x.step_a = p.step_b();
    x.b = c.dy[0].data, x.ldb = p.n, x.step_b = p.m * p.n;
  } else {
    x.transpose_b = !p.transpose_b;
    x.m = p.m, x.n = p.k, x.k = p.n;
    x.a = c.dy[0].data, x.lda = p.n, x.step_a = p.m * p.n;
    x.b = c.inputs[1].data, x.ldb = p.ldb(), x.step_b = p.step_b();
  }
  multiply(x);
}

/// dB = A^T dy, or its transpose; a shared b sums over the products.
void gradient_of_b(const Call& c, const Products& p) {
  const Dtype dtype = c.inputs[0].dtype;
  // several products add up in f32 and are rounded once
  const bool aside = p.shared_b && c.dx[1].dtype == Dtype::bf16;
  Product x;
  x.dtype = dtype, x.result = aside ? Dtype::f32 : c.dx[1].dtype;
  x.d = aside ? c.workspace : c.dx[1].data;
  x.ldd = p.ldb();
  x.beta = !aside && adds(c, 1);
  if (p.transpose_b) {
    x.transpose_a = true, x.transpose_b = p.transpose_a;
    x.m = p.n, x.n = p.k, x.k = p.m;
    x.a = c.dy[0].data, x.lda = p.n, x.step_a = p.m * p.n;
    x.b = c.inputs[0].data, x.ldb = p.lda(), x.step_b = p.m * p.k;
  } else {
    x.transpose_a = !p.transpose_a;
    x.m = p.k, x.n = p.n, x.k = p.m;
    x.a = c.inputs[0].data, x.lda = p.lda(), x.step_a = p.m * p.k;
    x.b = c.dy[0].data, x.ldb = p.n, x.step_b = p.m * p.n;
  }
  if (!p.shared_b) {
    x.batch = p.count, x.step_d = p.k * p.n;
    return multiply(x);
  }
  const std::int64_t element = size_of(dtype);
  for (std::int64_t i = 0; i < p.count; ++i) {
    Product one = x;
    one.a = static_cast<const std::byte*>(x.a) + i * x.step_a * element;
    one.b = static_cast<const std::byte*>(x.b) + i * x.step_b * element;
    if (i) one.beta = 1;
    multiply(one);
  }
  if (aside) round_into(static_cast<const float*>(c.workspace), c.dx[1], adds(c, 1));
}

void backward(const Call& c) {
  const Products p(c.attributes, c.inputs[0].shape, c.inputs[1].shape);
  for (int i : {0, 1})
    if (!c.dy[0]) zero_gradient(c.dx[i], adds(c, i));
  if (!c.dy[0]) return;
  if (c.dx[0]) gradient_of_a(c, p);
  if (c.dx[1]) gradient_of_b(c, p);
}

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> in) {
  const Products p(attributes, in[0].shape, in[1].shape);
  return p.shared_b && in[0].dtype == Dtype::bf16 ? p.k * p.n * 4 : 0;
}

}  // namespace

void register_matmul(KernelTable& table) { table["matmul"] = {forward, backward, {}, backward_workspace}; }

}  // namespace hedgehog::cuda
