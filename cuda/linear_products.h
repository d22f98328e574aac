#pragma once
#include "core/op.h"
#include "ops/activation.h"

/// What a linear layer enqueues, for the ops that are made of such layers. Dtypes are f32, f64 or bf16, that of a layer is
/// its input's.
namespace hedgehog::cuda {

/// The packed tensor at data.
inline Ref packed(void* data, const Shape& shape, Dtype dtype) { return {data, shape, dtype, shape.size(), shape.size(), true}; }

/// Whether weight, and bias if there is one, are parameters.
inline bool are_parameters(const Ref& weight, const Ref& bias) { return weight.parameter && (!bias || bias.parameter); }

/// y = activation(h) + addend,  h = x weight + bias.
struct Layer {
  Ref x;       // (..., K), may be rows with a stride
  Ref weight;  // (K, N)
  const void* bias = nullptr;    // (N), or null
  bool parameters = false;       // weight and bias are parameters
  const void* addend = nullptr;  // (..., N), or null
  Activation activation = Activation::none;
  void* h = nullptr;      // (..., N): kept for backward; null: not kept
  float* sums = nullptr;  // (..., N) f32, needed where sums_bytes says so
  void* y = nullptr;      // (..., N), apart from the addend: the library rounds a product before it adds what lies in its place
};
void forward_layer(const Layer& layer);
/// Bytes of Layer::sums. With a bias and rows that are no multiple of 16 bytes the library rounds the product to bf16 before the
/// bias is added, which turns the sign of small h; there the sums stay f32 until everything is added.
std::int64_t sums_bytes(std::int64_t m, std::int64_t n, Dtype dtype, bool bias);

/// dx (+)= dh weight^T; dx may be rows with a stride. With gelu_of (pre-activations, packed like dx) the product is multiplied by
/// gelu' of it before it is rounded. Returns false, and nothing is done, where the library does not offer that.
bool input_gradient(const void* dh, const Ref& weight, const Ref& dx, bool add, const void* gelu_of = nullptr);

/// dweight (+)= x^T dh for a weight (K, N); x may be rows with a stride. scratch: (K, N) f32, for a bf16 dweight.
void weight_gradient(const Ref& x, const void* dh, const Ref& dweight, bool add, float* scratch);

/// dh = dy activation'(h), and the sums of its rows, before dh is rounded, as partials of blocks of rows (partial_bytes); either may
/// be null. dh may be dy. Without activation nothing but the sums is computed.
void slope_and_sums(Activation activation, Dtype dtype, const void* dy, const void* h, void* dh, void* partials, std::int64_t m, std::int64_t n);
std::int64_t partial_bytes(std::int64_t m, std::int64_t n, Dtype dtype);
/// dbias (+)= the sum of those partials of `rows` rows, in order. dtype: that of the layer.
void add_sums(Dtype dtype, const void* partials, std::int64_t rows, const Ref& dbias, bool add);

/// to (+)= sums, rounded to bf16; to is contiguous.
void round_into(const float* sums, const Ref& to, bool add);
/// Bytes of a packed (m, n), so that what follows is aligned.
std::int64_t aligned_bytes(std::int64_t m, std::int64_t n, Dtype dtype);
/// daddend (+)= dy, unless they share memory.
void add_upstream(const Ref& dy, const Ref& daddend, bool add);
/// Every wanted gradient where the upstream one is zero.
void zero_gradients(const Call& c);

}  // namespace hedgehog::cuda
