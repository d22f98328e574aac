#include "ops/elementwise.h"
#include "ops/feature_map.h"
#include "ops/linear_attention_sizes.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/rotary.h"
#include "ops/shape.h"

namespace hedgehog::linear_attention_detail {
namespace {

/// 1 where two integer tensors agree, else 0, with broadcasting.
Tensor same(const Tensor& a, const Tensor& b) { return relu(1.0 - square(a - b)); }

Tensor heads_first(const Tensor& x) { return permute(x, {0, 2, 1, 3}); }
Tensor transposed(const Tensor& x) { return permute(x, {0, 1, 3, 2}); }

/// The arguments as the composition uses them. Empty tensors: all 1.
struct Parts {
  Tensor q, k, v;          // working features and values, (B, H, T, F) and (B, H, T, Dv)
  Tensor S, z, shift;      // initial state, (B, H, F, Dv), (B, H, F, 1), (B, H, F, 1)
  Tensor pairs, keys;      // who sees whom (B, 1, T, T); keys in the final state (B, 1, T, 1)
  Tensor first, carried;   // tokens that see the initial state (B, 1, T, 1); whether the final state holds it (B, 1, 1, 1)
};

Tensor times(const Tensor& a, const Tensor& b) { return !a ? b : !b ? a : a * b; }

void add_visibility(const Tensors& in, const Sizes& s, bool masked, Parts& p) {
  if (in[kDocumentStart]) {
    const Tensor start = cast(in[kDocumentStart], in[kQ].dtype());
    const Tensor rows = reshape(start, Shape{s.B, 1, s.T, 1}), columns = reshape(start, Shape{s.B, 1, 1, s.T});
    const Tensor first = s.T > 1 ? split(start, {1, s.T - 1}, 1)[0] : start, last = s.T > 1 ? split(start, {s.T - 1, 1}, 1)[1] : start;
    const Tensor of_first = reshape(first, Shape{s.B, 1, 1, 1}), of_last = reshape(last, Shape{s.B, 1, 1, 1});
    p.pairs = same(rows, columns);
    p.keys = same(rows, of_last);
    p.first = same(rows, of_first);
    p.carried = same(of_first, of_last);
  }
  if (!in[kMask] || !masked) return;
  const Tensor mask = cast(in[kMask], in[kQ].dtype());
  p.pairs = times(p.pairs, reshape(mask, Shape{s.B, 1, 1, s.T}));
  p.keys = times(p.keys, reshape(mask, Shape{s.B, 1, s.T, 1}));
}

Parts parts_of(const Attributes& a, const Tensors& in, const Sizes& s, Lost lost) {
  Parts p;
  const bool logarithmic = s.map.logarithmic(), mask_first = lost == Lost::mask_first && in[kMask];
  const auto turned = [&](const Tensor& x) { return in[kRotary] ? rotary(x, in[kRotary]) : x; };
  Tensor k = repeat_heads(turned(in[kK]), s.group());
  if (mask_first) k = k * reshape(cast(in[kMask], k.dtype()), Shape{s.B, s.T, 1, 1});
  const std::string& map = a.text("map");
  p.q = heads_first(feature_map(turned(in[kQ]), in[kWeightQ], in[kBiasQ], map, s.map.temperature, logarithmic));
  p.k = heads_first(feature_map(k, in[kWeightK], in[kBiasK], map, s.map.temperature, logarithmic));
  p.v = heads_first(repeat_heads(in[kV], s.group()));
  if (in[kInitialState]) {
    const Tensors blocks = split(in[kInitialState], {s.Dv, 1, 1}, 3);
    p.S = blocks[0], p.z = blocks[1], p.shift = blocks[2];
  }
  add_visibility(in, s, !mask_first, p);
  return p;
}

Tensor output(const Sizes& s, const Parts& p, Lost lost) {
  Tensor q = p.q, k = p.k, from_state = p.q;
  if (s.map.logarithmic()) {
    // any shift a feature is exact; the largest keeps exp in range
    Tensor c = max(p.k, 2, true);  // (B, H, 1, F)
    if (p.shift) c = max(concat({c, transposed(p.shift)}, 2), 2, true);
    c = detach(c);
    const Tensor m = detach(max(p.q + c, 3, true));
    q = exp(p.q + c - m);
    k = exp(p.k - c);
    if (p.shift) from_state = q * exp(transposed(p.shift) - c);
  }
  auto scores = [&](const Tensor& queries, const Tensor& keys) {
    Tensor A = matmul(queries, keys, false, true);  // (B, H, T, T)
    if (s.causal) A = causal_mask(A, 0);
    return times(A, p.pairs);
  };
  const Tensor A = scores(q, k);
  const Tensor counted = lost == Lost::normaliser_to_k ? scores(q, detach(k)) : lost == Lost::normaliser_to_q ? scores(detach(q), k) : A;
  Tensor num = matmul(A, p.v), den = sum(counted, 3, true);
  if (p.S) {
    from_state = times(from_state, p.first);
    num = num + matmul(from_state, p.S);
    den = den + matmul(from_state, p.z);
  }
  // rows that see nothing: 0 / smallest
  constexpr double kSmallestDenominator = 1e-30;
  return heads_first(num / floor_at(den, kSmallestDenominator));
}

Tensor final_state(const Sizes& s, const Parts& p) {
  Tensor k = p.k, shift;
  Tensor carry = p.carried;
  if (s.map.logarithmic()) {
    constexpr double kHidden = 1e30;
    Tensor seen = p.keys ? p.k * p.keys + kHidden * (p.keys - 1.0) : p.k;
    if (p.shift) {
      const Tensor c = transposed(p.shift);
      seen = concat({seen, p.carried ? c * p.carried + kHidden * (p.carried - 1.0) : c}, 2);
    }
    shift = max(seen, 2, true);  // (B, H, 1, F)
    k = exp(p.k - shift);
    shift = transposed(shift);
    if (p.shift) carry = times(exp(p.shift - shift), p.carried);
  }
  k = times(k, p.keys);
  Tensor S = matmul(k, p.v, true, false), z = transposed(sum(k, 2, true));
  if (p.S) {
    S = S + times(p.S, carry);
    z = z + times(p.z, carry);
  }
  return concat({S, z, shift ? shift : scale(z, 0)}, 3);
}

}  // namespace

Tensors composed(const Attributes& a, const Tensors& given, Lost lost) {
  Tensors in = given;
  in.resize(kInputs);
  if (in[kQ].dtype() == Dtype::bf16) {
    // the kernels keep features, sums and states in f32
    for (Tensor& x : in)
      if (x && x.dtype() == Dtype::bf16) x = cast(x, Dtype::f32);
    Tensors results = composed(a, in, lost);
    results[0] = cast(results[0], Dtype::bf16);
    return results;
  }
  const Shape* weight = in[kWeightQ] ? &in[kWeightQ].shape() : nullptr;
  const Sizes s = sizes_of(a, in[kQ].shape(), in[kK].shape(), in[kV].shape(), weight);
  const Parts p = parts_of(a, in, s, lost);
  Tensor o = output(s, p, lost);
  if (lost == Lost::mask_first) {
    // the right values with the wrong gradient, so that only backward is at fault
    const Tensor right = output(s, parts_of(a, in, s, Lost::nothing), Lost::nothing);
    o = detach(right) + (o - detach(o));
  }
  return {o, s.final_state ? final_state(s, p) : constant(Shape{1}, {0}, in[kQ].dtype())};
}

}  // namespace hedgehog::linear_attention_detail
