#pragma once
#include "core/op.h"
#include "ops/activation.h"

/// The CPU kernels of a linear layer, for the ops that are made of such layers. T is float or double.
namespace hedgehog {

/// The packed tensor at data.
inline Ref packed(void* data, const Shape& shape, Dtype dtype) { return {data, shape, dtype, shape.size(), shape.size(), true}; }

/// y = activation(h) + addend,  h = x weight + bias.  x may be rows with a stride; bias and addend may be null.
/// h may be y where there is no addend or no activation.
template <class T>
void linear_rows(const Ref& x, const Ref& weight, const T* bias, const T* addend, Activation activation, T* h, T* y);

/// dh = dy * activation'(h), and the sums of its rows by blocks, for add_blocks: partials (row_blocks(rows),
/// padded_row(columns)) or null. dh may be dy; without activation it is not written, nor is h read.
template <class T>
void linear_dh(Activation activation, const T* dy, const T* h, T* dh, T* partials, std::int64_t rows, std::int64_t columns);

/// dx (+)= dh weight^T; dx may be rows with a stride.
template <class T>
void linear_dx(const T* dh, const Ref& weight, const Ref& dx, Mode mode);

/// dweight (+)= x^T dh; x may be rows with a stride.
template <class T>
void linear_dweight(const Ref& x, const T* dh, const Ref& dweight, Mode mode);

}  // namespace hedgehog
