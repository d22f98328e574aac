#pragma once
#include "ops/linear_attention_state.h"
#include "ops/rows.h"

/// The steps of the backward pass of linear attention. Internal to ops/.
namespace hedgehog::linear_attention_detail {

template <class T>
struct BackwardScratch {
  T *q, *k, *dq, *dk, *spare;     // (chunk, F)
  T *u, *du, *turned;             // (chunk, D'), (chunk, D'), (chunk, D)
  T *scores, *dscores;            // (chunk, chunk)
  T *delta, *no_gradient;         // (chunk), (chunk, Dv) zeros
  T *factor, *row, *R, *y, *gamma;  // (F), (F), (F, Dv), (F), (F)
  T *dkeys, *dvalues;             // (chunk, D), (chunk, Dv); all T tokens where query heads share them
  std::int32_t* log_rows;         // (chunk)
  std::vector<State<T>> states;   // before each chunk, and after the last

  BackwardScratch(Carver& carver, const Sizes& s) {
    for (T** block : {&q, &k, &dq, &dk, &spare}) *block = carver.take<T>(s.chunk * s.F);
    for (T** block : {&u, &du}) *block = carver.take<T>(s.chunk * s.width);
    turned = carver.take<T>(s.chunk * s.D);
    for (T** block : {&scores, &dscores}) *block = carver.take<T>(s.causal ? s.chunk * s.chunk : 0);
    delta = carver.take<T>(s.chunk);
    no_gradient = carver.take<T>(s.chunk * s.Dv);
    for (T** block : {&factor, &row, &y, &gamma}) *block = carver.take<T>(s.F);
    R = carver.take<T>(s.F * s.Dv);
    const std::int64_t tokens = s.group() > 1 ? s.T : s.chunk;
    dkeys = carver.take<T>(tokens * s.D);
    dvalues = carver.take<T>(tokens * s.Dv);
    log_rows = carver.take<std::int32_t>(s.chunk);
    states.resize(std::size_t(s.causal ? s.chunks() + 1 : 2));
    for (State<T>& state : states) state.take(carver, s);
  }
};

/// A chunk of tokens and what is upstream of its rows.
template <class T>
struct Chunk {
  std::int64_t t0, n;
  const T *G, *v;
  std::int64_t G_row, v_row;
};

template <class T>
class Backward {
 public:
  Backward(const Call& c, const Sizes& s, T* partials)
      : c_(c), s_(s), features_(c, s), v_(kName, c.inputs[kV]), o_(kName, c.outputs[0]),
        G_(kName, c.dy[0]), dq_(kName, c.dx[kQ]), dk_(kName, c.dx[kK]), dv_(kName, c.dx[kV]), saved_(c.saved[0].as<T>()) {
    const std::int64_t heads = s.B * s.Hq, matrix = s.D * s.width;
    for (int side = 0; side < 2; ++side) {
      dweight_[side] = partials + side * heads * (matrix + s.width);
      dbias_[side] = dweight_[side] + heads * matrix;
      wants_weight_[side] = bool(c.dx[kWeightQ + side]);
      wants_bias_[side] = bool(c.dx[kBiasQ + side]);
    }
    wants_q_ = dq_ || wants_weight_[0] || wants_bias_[0];
    wants_k_ = dk_ || wants_weight_[1] || wants_bias_[1];
  }

  void run(std::int64_t b, std::int64_t h, BackwardScratch<T>& x) const {
    const Head<T> head(c_, s_, b, h);
    const std::int64_t index = b * s_.Hq + h, stored = index * s_.F * (s_.Dv + 2);
    for (int side = 0; side < 2; ++side) {
      if (wants_weight_[side]) std::fill_n(dweight_[side] + index * s_.D * s_.width, s_.D * s_.width, T(0));
      if (wants_bias_[side]) std::fill_n(dbias_[side] + index * s_.width, s_.width, T(0));
    }
    if (!G_) std::fill_n(x.no_gradient, s_.chunk * s_.Dv, T(0));
    for_each_document(head.document_start, s_.T, [&](std::int64_t begin, std::int64_t end) {
      const Ref &initial = c_.inputs[kInitialState], &dinitial = c_.dx[kInitialState];
      load_state(s_, begin == 0 && initial ? initial.as<T>() + stored : nullptr, x.states[0]);
      const T* dfinal = end == s_.T && s_.final_state && c_.dy[1] ? c_.dy[1].as<T>() + stored : nullptr;
      T* to = begin == 0 && dinitial ? dinitial.as<T>() + stored : nullptr;
      if (s_.causal) causal(head, begin, end, dfinal, to, x);
      else bidirectional(head, begin, end, dfinal, to, x);
    });
  }

  /// Adds the partial sums of weights and biases of all batch elements, in order.
  void finish() const {
    const std::int64_t matrix = s_.Hq * s_.D * s_.width, vector = s_.Hq * s_.width;
    for (int side = 0; side < 2; ++side) {
      if (wants_weight_[side])
        add_blocks(dweight_[side], s_.B, matrix, matrix, c_.dx[kWeightQ + side].as<T>(), c_.modes[kWeightQ + side]);
      if (wants_bias_[side]) add_blocks(dbias_[side], s_.B, vector, vector, c_.dx[kBiasQ + side].as<T>(), c_.modes[kBiasQ + side]);
    }
  }

 private:
  static constexpr const char* kName = "linear_attention";

  T saved(const Head<T>& head, std::int64_t t) const { return saved_[(head.b * s_.T + t) * s_.Hq + head.h]; }
  Chunk<T> chunk(const Head<T>& head, std::int64_t t0, std::int64_t end, const BackwardScratch<T>& x) const {
    Chunk<T> c{t0, std::min(s_.chunk, end - t0), x.no_gradient, v_.at(head.b, t0, head.hkv), s_.Dv, v_.row};
    if (G_) c.G = G_.at(head.b, t0, head.h), c.G_row = G_.row;
    return c;
  }

  /// dk and dv are summed aside, over the steps of a chunk and the query heads of a group, and reach their arguments in one
  /// addition.
  T* dkeys(std::int64_t t0, const BackwardScratch<T>& x) const { return x.dkeys + (s_.group() > 1 ? t0 * s_.D : 0); }
  T* dvalues(std::int64_t t0, const BackwardScratch<T>& x) const { return x.dvalues + (s_.group() > 1 ? t0 * s_.Dv : 0); }
  /// Factor of what earlier query heads of the group have left there.
  T earlier(const Head<T>& head) const { return head.h % s_.group() == 0 ? T(0) : T(1); }

  /// y (+)= the gradient of a vector from that of the vector turned.
  void turn_back(const Head<T>& head, std::int64_t t, const T* x, bool adds, T* y) const {
    const std::int64_t half = s_.D / 2;
    const T *cosines = head.rotary + t * s_.D, *sines = cosines + half;
    if (adds) turn_vector<false, true>(x, cosines, sines, T(-1), y, half);
    else turn_vector<false, false>(x, cosines, sines, T(-1), y, half);
  }

  void store_rows(const T* sums, const HeadRows<T>& to, Input i, const Head<T>& head, std::int64_t t0, std::int64_t n,
                  std::int64_t depth) const {
    for (std::int64_t t = 0; t < n && to; ++t) {
      T* __restrict row = to.at(head.b, t0 + t, head.hkv);
      const T* __restrict from = sums + t * depth;
      if (i == kK && head.rotary) turn_back(head, t0 + t, from, c_.modes[i] == Mode::accumulate, row);
      else if (c_.modes[i] == Mode::write) std::copy_n(from, depth, row);
      else
        for (std::int64_t e = 0; e < depth; ++e) row[e] += from[e];
    }
  }
  void store_keys(const Head<T>& head, std::int64_t t0, std::int64_t n, const BackwardScratch<T>& x) const {
    if ((head.h + 1) % s_.group() != 0) return;
    store_rows(dkeys(t0, x), dk_, kK, head, t0, n, s_.D);
    store_rows(dvalues(t0, x), dv_, kV, head, t0, n, s_.Dv);
  }

  /// Tokens that see nothing and that nothing sees.
  void zero_gradients(const Head<T>& head, std::int64_t t0, std::int64_t n, const BackwardScratch<T>& x) const {
    for (std::int64_t t = t0; t < t0 + n && dq_ && c_.modes[kQ] == Mode::write; ++t) std::fill_n(dq_.at(head.b, t, head.h), s_.D, T(0));
    if (earlier(head) == T(0)) std::fill_n(dkeys(t0, x), n * s_.D, T(0)), std::fill_n(dvalues(t0, x), n * s_.Dv, T(0));
    store_keys(head, t0, n, x);
  }

  /// States before each chunk and after the last, each in the scale of its own shift.
  void forward_states(const Head<T>& head, std::int64_t begin, std::int64_t end, bool final, BackwardScratch<T>& x) const {
    std::int64_t index = 0;
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk, ++index) {
      const std::int64_t n = std::min(s_.chunk, end - t0);
      const State<T>& before = x.states[index];
      State<T>& after = x.states[index + 1];
      features_.of_keys(head, t0, n, x, x.k);
      const bool raised = raise_shift(s_, head, t0, n, x.k, before.shift, after.shift, x.factor);
      after.filled = before.filled;
      const bool visible = any_visible(head, t0, n);
      if (t0 + n == end && !final) {
        after.filled |= visible;
        return;
      }
      if (before.filled) std::copy_n(before.S, s_.F * s_.Dv, after.S), std::copy_n(before.z, s_.F, after.z);
      if (!visible) continue;
      scale_keys(s_, head, t0, n, after.shift, x.k);
      absorb(s_, n, x.k, v_.at(head.b, t0, head.hkv), v_.row, x.factor, raised, after);
      after.filled = true;
    }
  }

  /// Starts R, y and gamma (the gradient of the last shift) from the upstream gradient of the final state.
  bool start_reverse(const T* dfinal, const State<T>& last, BackwardScratch<T>& x) const {
    std::fill_n(x.gamma, s_.F, T(0));
    if (!dfinal || !last.filled) return false;
    for (std::int64_t r = 0; r < s_.F; ++r) {
      const T* row = dfinal + r * (s_.Dv + 2);
      const bool empty = last.shift[r] == -kInfinity<T>;
      for (std::int64_t e = 0; e < s_.Dv; ++e) x.R[r * s_.Dv + e] = empty ? T(0) : row[e];
      x.y[r] = empty ? T(0) : row[s_.Dv];
      // the stored S and z are the true ones times exp(-shift)
      if (!empty && s_.map.logarithmic()) x.gamma[r] = row[s_.Dv + 1] - rows::dot(row, last.S + r * s_.Dv, s_.Dv) - row[s_.Dv] * last.z[r];
    }
    return true;
  }

  /// gamma goes to the initial shift where no key has raised it.
  void store_initial(const State<T>& initial, const T* last_shift, bool reversed, BackwardScratch<T>& x, T* to) const {
    const Mode mode = c_.modes[kInitialState];
    for (std::int64_t r = 0; r < s_.F; ++r, to += s_.Dv + 2) {
      const bool empty = initial.shift[r] == -kInfinity<T>;
      if (mode == Mode::write) std::fill_n(to, s_.Dv + 2, T(0));
      if (empty) continue;
      if (initial.shift[r] == last_shift[r]) to[s_.Dv + 1] += x.gamma[r];
      if (!reversed) continue;
      for (std::int64_t e = 0; e < s_.Dv; ++e) to[e] += x.R[r * s_.Dv + e];
      to[s_.Dv] += x.y[r];
      if (s_.map.logarithmic()) to[s_.Dv + 1] += rows::dot(initial.S + r * s_.Dv, x.R + r * s_.Dv, s_.Dv) + initial.z[r] * x.y[r];
    }
  }

  /// Query features divided by their denominators, in the scale of the shift. Rows that a chunk must redo in log space
  /// become 0 and are listed.
  std::int64_t normalised_queries(const Head<T>& head, const Chunk<T>& c, const T* __restrict shift, bool list, BackwardScratch<T>& x) const {
    constexpr T kLargest = T(60 * 0.69314718055994530942);
    std::int64_t listed = 0;
    for (std::int64_t i = 0; i < c.n; ++i) {
      T* __restrict row = x.q + i * s_.F;
      const T den = saved(head, c.t0 + i);
      if (!s_.map.logarithmic()) {
        const T inverse = den == T(0) ? T(0) : T(1) / den;
        for (std::int64_t r = 0; r < s_.F; ++r) row[r] *= inverse;
        continue;
      }
      T largest = -kInfinity<T>;
#pragma omp simd reduction(max : largest)
      for (std::int64_t r = 0; r < s_.F; ++r) {
        row[r] = (row[r] + shift[r]) - den;  // in forward's order: nothing overflows however large the exponents are
        largest = row[r] > largest ? row[r] : largest;
      }
      const bool redo = list && largest > kLargest;
      if (redo) x.log_rows[listed++] = std::int32_t(i);
      if (redo || den == kInfinity<T>) std::fill_n(row, s_.F, T(0));
      else
        for (std::int64_t r = 0; r < s_.F; ++r) row[r] = vector_exp(row[r]);
    }
    return listed;
  }

  void deltas(const Head<T>& head, const Chunk<T>& c, BackwardScratch<T>& x) const {
    for (std::int64_t i = 0; i < c.n; ++i) x.delta[i] = -rows::dot(c.G + i * c.G_row, o_.at(head.b, c.t0 + i, head.h), s_.Dv);
  }

  /// dq += (G S^T + delta z) * factor
  void queries_from_state(const Chunk<T>& c, const State<T>& state, const T* __restrict factor, T beta, BackwardScratch<T>& x) const {
    gemm_serial<T>(false, true, c.n, s_.F, s_.Dv, 1, c.G, c.G_row, state.S, s_.Dv, 0, x.spare, s_.F);
    for (std::int64_t i = 0; i < c.n; ++i) {
      T* __restrict to = x.dq + i * s_.F;
      const T* __restrict from = x.spare + i * s_.F;
      const T* __restrict z = state.z;
      const T delta = x.delta[i];
      if (beta == T(0))
        for (std::int64_t r = 0; r < s_.F; ++r) to[r] = (from[r] + delta * z[r]) * factor[r];
      else
        for (std::int64_t r = 0; r < s_.F; ++r) to[r] += (from[r] + delta * z[r]) * factor[r];
    }
  }

  /// dk += v R^T + y
  void keys_from_reverse(const Chunk<T>& c, T beta, BackwardScratch<T>& x) const {
    gemm_serial<T>(false, true, c.n, s_.F, s_.Dv, 1, c.v, c.v_row, x.R, s_.Dv, beta, x.dk, s_.F);
    for (std::int64_t j = 0; j < c.n; ++j) {
      T* __restrict row = x.dk + j * s_.F;
      const T* __restrict y = x.y;
      for (std::int64_t r = 0; r < s_.F; ++r) row[r] += y[r];
    }
  }

  /// [R, y] = ([R, y] + q^T [G, delta]) * factor; a state not reversed yet starts from 0.
  void reverse(const Chunk<T>& c, bool reversed, const T* factor, BackwardScratch<T>& x) const {
    gemm_serial<T>(true, false, s_.F, s_.Dv, c.n, 1, x.q, s_.F, c.G, c.G_row, reversed ? T(1) : T(0), x.R, s_.Dv);
    T* __restrict y = x.y;
    if (!reversed) std::fill_n(y, s_.F, T(0));
    for (std::int64_t i = 0; i < c.n; ++i) {
      const T* __restrict row = x.q + i * s_.F;
      const T delta = x.delta[i];
      for (std::int64_t r = 0; r < s_.F; ++r) y[r] += delta * row[r];
    }
    scale_reverse(factor, x);
  }
  void scale_reverse(const T* factor, BackwardScratch<T>& x) const {
    for (std::int64_t r = 0; r < s_.F; ++r) {
      if (factor[r] == T(1)) continue;
      T* __restrict row = x.R + r * s_.Dv;
      for (std::int64_t e = 0; e < s_.Dv; ++e) row[e] *= factor[r];
      x.y[r] *= factor[r];
    }
  }

  /// Turns dq and dk into gradients of the working form (ln phi or phi), in place.
  void query_working_gradient(const Head<T>& head, const Chunk<T>& c, BackwardScratch<T>& x) const {
    for (std::int64_t i = 0; i < c.n; ++i) {
      T* __restrict row = x.dq + i * s_.F;
      const T* __restrict q = x.q + i * s_.F;
      if (s_.map.logarithmic()) {
        for (std::int64_t r = 0; r < s_.F; ++r) row[r] *= q[r];
        continue;
      }
      const T den = saved(head, c.t0 + i), inverse = den == T(0) ? T(0) : T(1) / den;
      for (std::int64_t r = 0; r < s_.F; ++r) row[r] *= inverse;
    }
  }
  void key_working_gradient(const Head<T>& head, const Chunk<T>& c, BackwardScratch<T>& x) const {
    for (std::int64_t j = 0; j < c.n; ++j) {
      T* __restrict row = x.dk + j * s_.F;
      const T* __restrict k = x.k + j * s_.F;
      if (!head.visible(c.t0 + j)) std::fill_n(row, s_.F, T(0));
      else if (s_.map.logarithmic())
        for (std::int64_t r = 0; r < s_.F; ++r) row[r] *= k[r];
    }
  }

  /// Gives gamma to the key that set the last shift: the first one of the chunk that holds it.
  void shift_gradient(const Chunk<T>& c, const T* before, const T* after, BackwardScratch<T>& x) const {
    for (std::int64_t r = 0; r < s_.F; ++r) {
      if (x.gamma[r] == T(0) || before[r] == after[r]) continue;
      for (std::int64_t j = 0; j < c.n; ++j)
        if (x.k[j * s_.F + r] == T(1)) {
          x.dk[j * s_.F + r] += x.gamma[r];
          x.gamma[r] = 0;
          break;
        }
    }
  }

  /// From the gradient of the working form to x, weight and bias. side 0: queries, 1: keys.
  void through_map(const Head<T>& head, const Chunk<T>& c, int side, BackwardScratch<T>& x) const {
    const T* dworking = side ? x.dk : x.dq;
    if (s_.map.normalised() || !s_.map.logarithmic()) {
      if (side) features_.of_keys(head, c.t0, c.n, x, x.spare);
      else features_.of_queries(head, c.t0, c.n, x, x.spare);
      for (std::int64_t e = 0; s_.map.normalised() && e < c.n * s_.F; ++e) x.spare[e] = vector_exp(x.spare[e]);
    }
    for (std::int64_t i = 0; i < c.n; ++i)
      working_features_backward<T>(s_.map, s_.width, x.spare + i * s_.F, dworking + i * s_.F, x.du + i * s_.width);
    const T* weight = side ? head.weight_k : head.weight_q;
    const std::int64_t index = head.b * s_.Hq + head.h;
    if (wants_weight_[side]) {
      const TokenRows<T> from = side ? features_.keys(head, c.t0, c.n, x) : features_.queries(head, c.t0, c.n, x);
      gemm_serial<T>(true, false, s_.D, s_.width, c.n, 1, from.at, from.row, x.du, s_.width, 1, dweight_[side] + index * s_.D * s_.width,
                     s_.width);
    }
    for (std::int64_t i = 0; i < c.n && wants_bias_[side]; ++i)
      for (std::int64_t e = 0; e < s_.width; ++e) dbias_[side][index * s_.width + e] += x.du[i * s_.width + e];
    // keys stay turned until they are stored
    const bool turns = side == 0 && head.rotary, adds = c_.modes[kQ] == Mode::accumulate;
    const T add = side ? earlier(head) : T(adds && !turns);
    T* const to = side ? (dk_ ? dkeys(c.t0, x) : nullptr) : !dq_ ? nullptr : turns ? x.turned : dq_.at(head.b, c.t0, head.h);
    const std::int64_t to_row = side || turns ? s_.D : dq_.row;
    if (to && weight) gemm_serial<T>(false, true, c.n, s_.D, s_.width, 1, x.du, s_.width, weight, s_.width, add, to, to_row);
    for (std::int64_t i = 0; i < c.n && to && !weight; ++i) {
      T* __restrict row = to + i * to_row;
      const T* __restrict du = x.du + i * s_.width;
      for (std::int64_t e = 0; e < s_.D; ++e) row[e] = add == T(0) ? du[e] : row[e] + du[e];
    }
    for (std::int64_t i = 0; i < c.n && to && turns; ++i)
      turn_back(head, c.t0 + i, to + i * s_.D, adds, dq_.at(head.b, c.t0 + i, head.h));
  }

  void causal(const Head<T>& head, std::int64_t begin, std::int64_t end, const T* dfinal, T* dinitial, BackwardScratch<T>& x) const;
  void chunk_backward(const Head<T>& head, const Chunk<T>& c, const State<T>& before, const T* after, bool reversed, bool goes_on,
                      BackwardScratch<T>& x) const;
  void log_space_row(const Head<T>& head, const Chunk<T>& c, std::int64_t i, const State<T>& before, bool goes_on, BackwardScratch<T>& x) const;
  void bidirectional(const Head<T>& head, std::int64_t begin, std::int64_t end, const T* dfinal, T* dinitial, BackwardScratch<T>& x) const;

  const Call& c_;
  const Sizes& s_;
  HeadFeatures<T> features_;
  HeadRows<T> v_, o_, G_, dq_, dk_, dv_;
  const T* saved_;
  T *dweight_[2], *dbias_[2];
  bool wants_weight_[2], wants_bias_[2], wants_q_, wants_k_;
};

}  // namespace hedgehog::linear_attention_detail
