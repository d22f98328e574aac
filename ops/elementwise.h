#pragma once
#include <limits>

#include "core/tape.h"

/// Elementwise ops. x is of any shape, f32 | f64 | bf16 (CUDA); y has its shape and dtype. bf16 is computed in f32 and
/// rounded once; the gradient of a bf16 parameter is f32.
/// Two-argument ops broadcast as NumPy does: shapes are aligned at the last axis, an extent of 1 or a missing axis
/// repeats, and the gradient is summed (f64 partial sums, fixed order) back to the argument's shape.
///
///   Tensor x = constant({2, 3}, {1, 2, 3, 4, 5, 6}), b = constant({3}, {10, 20, 30});
///   print(2.0 * x + b);   // 12 24 36 / 18 30 42
namespace hedgehog {

/// A tensor that remembers the line where it became an operand: operators take no default argument of their own.
struct Operand {
  const Tensor& tensor;
  SourceLine where;
  Operand(const Tensor& t, SourceLine w = SourceLine::current()) : tensor(t), where(w) {}
};

/// Sum of two tensors.
///
///   y = a + b
///
/// a, b    any shapes that broadcast, same dtype f32 | f64 | bf16 (CUDA)
/// returns the broadcast shape
///
/// Backward: da = dy, db = dy, each summed over the axes where the argument was repeated.
/// Saved:    nothing.
/// Throws:   ShapeError if the shapes do not broadcast or the dtypes differ.
Tensor add(const Tensor& a, const Tensor& b, SourceLine where = SourceLine::current());

/// Difference of two tensors: y = a - b.
///
/// a, b    any shapes that broadcast, same dtype
/// returns the broadcast shape
///
/// Backward: da = dy, db = -dy, each summed over the axes where the argument was repeated.
/// Saved:    nothing.
/// Throws:   ShapeError if the shapes do not broadcast or the dtypes differ.
Tensor subtract(const Tensor& a, const Tensor& b, SourceLine where = SourceLine::current());

/// Product of two tensors, element by element: y = a * b.
///
/// a, b    any shapes that broadcast, same dtype
/// returns the broadcast shape
///
/// Backward: da = dy * b, db = dy * a, each summed over the axes where the argument was repeated.
/// Saved:    nothing; reads a and b.
/// Throws:   ShapeError if the shapes do not broadcast or the dtypes differ.
Tensor multiply(const Tensor& a, const Tensor& b, SourceLine where = SourceLine::current());

/// Quotient of two tensors, element by element: y = a / b. Division by 0 follows IEEE 754 (inf or NaN).
///
/// a, b    any shapes that broadcast, same dtype
/// returns the broadcast shape
///
/// Backward: da = dy / b, db = -dy * y / b, each summed over the axes where the argument was repeated.
/// Saved:    nothing; reads b and y.
/// Throws:   ShapeError if the shapes do not broadcast or the dtypes differ.
Tensor divide(const Tensor& a, const Tensor& b, SourceLine where = SourceLine::current());

/// y = x * scale + shift, with two numbers.
///
/// Backward: dx = dy * scale.
/// Saved:    nothing.
Tensor affine(const Tensor& x, double scale, double shift, SourceLine where = SourceLine::current());
/// y = x * factor (affine without a shift).
Tensor scale(const Tensor& x, double factor, SourceLine where = SourceLine::current());
/// y = x + amount (affine without a scale).
Tensor shift(const Tensor& x, double amount, SourceLine where = SourceLine::current());

/// y = -x.
///
/// Backward: dx = -dy.
/// Saved:    nothing.
Tensor negate(const Tensor& x, SourceLine where = SourceLine::current());

/// y = e^x. f32 within 2 ulp; overflows to inf above 88.7 (f32) and 709.7 (f64).
///
/// Backward: dx = dy * y.
/// Saved:    nothing; reads y.
Tensor exp(const Tensor& x, SourceLine where = SourceLine::current());

/// Natural logarithm. -inf at 0, NaN below.
///
/// Backward: dx = dy / x.
/// Saved:    nothing; reads x.
Tensor log(const Tensor& x, SourceLine where = SourceLine::current());

/// Hyperbolic tangent.
///
/// Backward: dx = dy * (1 - y^2).
/// Saved:    nothing; reads y.
Tensor tanh(const Tensor& x, SourceLine where = SourceLine::current());

/// Logistic function: y = 1 / (1 + e^-x).
///
/// Backward: dx = dy * y * (1 - y).
/// Saved:    nothing; reads y.
Tensor sigmoid(const Tensor& x, SourceLine where = SourceLine::current());

/// y = x^2.
///
/// Backward: dx = dy * 2 x.
/// Saved:    nothing; reads x.
Tensor square(const Tensor& x, SourceLine where = SourceLine::current());

/// Square root. NaN below 0; the gradient at 0 is infinite.
///
/// Backward: dx = dy / (2 y).
/// Saved:    nothing; reads y.
Tensor sqrt(const Tensor& x, SourceLine where = SourceLine::current());

/// y = 1 / x.
///
/// Backward: dx = -dy * y^2.
/// Saved:    nothing; reads y.
Tensor reciprocal(const Tensor& x, SourceLine where = SourceLine::current());

/// Rectifier: y = max(x, 0); NaN stays NaN.
///
/// Backward: dx = dy where y > 0, else 0 (so 0 at the kink).
/// Saved:    nothing; reads y.
Tensor relu(const Tensor& x, SourceLine where = SourceLine::current());

/// Gaussian error linear unit, tanh form.
///
///   u = k (x + 0.044715 x^3),   k = sqrt(2 / pi) = 0.7978845608...
///   y = x (1 + tanh u) / 2
///
/// Backward: dx = dy * ((1 + tanh u) / 2 + x (1 - tanh^2 u) k (1 + 3 * 0.044715 x^2) / 2).
/// Saved:    nothing; reads x.
/// Source:   Hendrycks, Gimpel 2016, arXiv:1606.08415, section 2.
Tensor gelu(const Tensor& x, SourceLine where = SourceLine::current());

/// Gaussian error linear unit itself, which BERT has.
///
///   y = x Phi(x),   Phi(x) = erfc(-x / sqrt(2)) / 2
///
/// Backward: dx = dy * (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)).
/// Saved:    nothing; reads x.
/// Source:   Hendrycks, Gimpel 2016, arXiv:1606.08415, equation 1.
Tensor gelu_erf(const Tensor& x, SourceLine where = SourceLine::current());

/// Sigmoid linear unit (swish): y = x s, s = 1 / (1 + e^-x).
///
/// Backward: dx = dy * s (1 + x (1 - s)).
/// Saved:    nothing; reads x.
/// Source:   Elfwing, Uchibe, Doya 2017, arXiv:1702.03118.
Tensor silu(const Tensor& x, SourceLine where = SourceLine::current());

/// The 1 + ELU map of the first linear Transformers: y = x + 1 for x > 0, else e^x.
///
/// Backward: dx = dy * min(y, 1).
/// Saved:    nothing; reads y.
/// Source:   Katharopoulos et al. 2020, arXiv:2006.16236, equation 7.
Tensor elu_plus_one(const Tensor& x, SourceLine where = SourceLine::current());

/// y = max(x, value): keeps a feature map away from 0. NaN stays NaN.
///
/// Backward: dx = dy where x >= value, else 0.
/// Saved:    nothing; reads x.
Tensor floor_at(const Tensor& x, double value, SourceLine where = SourceLine::current());

/// Overwrites what a query must not see: keys after it.
///
///   y[.., i, j] = scores[.., i, j] for j <= i, else value
///
/// scores  (..., T, T)  f32 | f64 | bf16 (CUDA)
/// value   default -inf (before a softmax); 0 for scores of linear attention
/// returns (..., T, T)
///
/// Backward: dscores = dy for j <= i, else 0.
/// Saved:    nothing.
/// Throws:   ShapeError if the last two extents differ or there are fewer than two axes.
Tensor causal_mask(const Tensor& scores, double value = -std::numeric_limits<double>::infinity(),
                   SourceLine where = SourceLine::current());

/// Keeps x where the mask is not 0 and puts `value` elsewhere.
///
///   y = mask != 0 ? x : value
///
/// x       any shape, f32 | f64 | bf16 (CUDA)
/// mask    i32, any shape that broadcasts to that of x; 1: keep
/// returns the shape of x
///
/// Backward: dx = dy where mask != 0, else 0.
/// Saved:    nothing; reads mask.
/// Throws:   ShapeError if mask is not i32 or does not broadcast to x.
Tensor mask_fill(const Tensor& x, const Tensor& mask, double value, SourceLine where = SourceLine::current());

Tensor operator+(Operand a, Operand b);  // add
Tensor operator-(Operand a, Operand b);  // subtract
Tensor operator*(Operand a, Operand b);  // multiply
Tensor operator/(Operand a, Operand b);  // divide
Tensor operator-(Operand x);             // negate
Tensor operator+(Operand x, double a);   // shift
Tensor operator+(double a, Operand x);
Tensor operator-(Operand x, double a);
Tensor operator-(double a, Operand x);   // affine
Tensor operator*(Operand x, double a);   // scale
Tensor operator*(double a, Operand x);
Tensor operator/(Operand x, double a);   // scale by 1 / a
Tensor operator/(double a, Operand x);   // scale of the reciprocal

}  // namespace hedgehog
