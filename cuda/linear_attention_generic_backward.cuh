#pragma once
#include "cuda/linear_attention_generic.cuh"
#include "cuda/packet.cuh"

/// The steps of the generic backward pass. With phi_q divided by its denominator and the column delta_i = -G_i . o_i beside G,
/// the gradients are those of attention without a normaliser: R (F, E) is [R | y], the sum of phi_q [G, delta] over later rows.
namespace hedgehog::cuda::linear_attention_generic {

template <class T>
struct BackwardArguments : Arguments<T> {
  using A = Accumulator<T>;
  Heads<const T> o, G;
  const A *saved, *dfinal;
  HeadsTarget<T> dq, dk, dv;
  A* dinitial;
  bool dinitial_adds;
  // sums of each batch element and head: (B, Hq, D, D'), (B, Hq, D'); of queries and keys
  A *dweight[2], *dbias[2];
  bool wants_weight[2], wants_bias[2], wants[2];

  BackwardArguments(const Call& c, const Sizes& sizes, A* partials)
      : Arguments<T>(c, sizes), o(Heads<const T>(kName, c.outputs[0])), G(Heads<const T>(kName, c.dy[0])), saved(c.saved[0].as<const A>()),
        dfinal(sizes.final_state ? c.dy[1].as<const A>() : nullptr), dq(kName, c, kQ), dk(kName, c, kK), dv(kName, c, kV),
        dinitial(c.dx[kInitialState].as<A>()), dinitial_adds(adds(c, kInitialState)) {
    const std::int64_t heads = sizes.B * sizes.Hq, matrix = sizes.D * sizes.width;
    for (int side = 0; side < 2; ++side) {
      dweight[side] = partials + side * heads * (matrix + sizes.width);
      dbias[side] = dweight[side] + heads * matrix;
      wants_weight[side] = bool(c.dx[kWeightQ + side]);
      wants_bias[side] = bool(c.dx[kBiasQ + side]);
      wants[side] = bool(side ? dk : dq) || wants_weight[side] || wants_bias[side];
    }
  }
};

template <class A>
struct BackwardScratch : Tile<A> {
  A *dq, *dk, *du, *dx;    // (chunk, F), (chunk, F), (chunk, D'), (chunk, D)
  A *G, *dscores;          // (chunk, E), (chunk, chunk)
  A *R, *gamma;            // (F, E), (F): gradient of the last shift
  A *dkeys, *dvalues;      // (chunk, D), (chunk, Dv); all T tokens where query heads share them
  std::int32_t* redo;      // (chunk): 1 for rows that forward made in log space
  char* states;            // before each chunk, and after the last
  std::int64_t state_bytes;

  __host__ __device__ BackwardScratch(Pieces& pieces, const Sizes& s) : Tile<A>(pieces, s) {
    dq = pieces.take<A>(s.chunk * s.F);
    dk = pieces.take<A>(s.chunk * s.F);
    du = pieces.take<A>(s.chunk * s.width);
    dx = pieces.take<A>(s.chunk * s.D);
    G = pieces.take<A>(s.chunk * (s.Dv + 1));
    dscores = pieces.take<A>(s.causal ? s.chunk * s.chunk : 0);
    R = pieces.take<A>(s.F * (s.Dv + 1));
    gamma = pieces.take<A>(s.F);
    const std::int64_t tokens = s.group() > 1 ? s.T : s.chunk;
    dkeys = pieces.take<A>(tokens * s.D);
    dvalues = pieces.take<A>(tokens * s.Dv);
    redo = pieces.take<std::int32_t>(s.chunk);
    Pieces one;
    DeviceState<A>().take(one, s);
    state_bytes = one.used;
    states = pieces.take<char>(state_bytes * (s.causal ? s.chunks() + 1 : 2));
  }
  __device__ DeviceState<A> state(std::int64_t index, const Sizes& s) const {
    Pieces pieces{states + index * state_bytes};
    DeviceState<A> out;
    out.take(pieces, s);
    return out;
  }
};

template <class T>
class Backward {
  using A = Accumulator<T>;

 public:
  __device__ Backward(const BackwardArguments<T>& a, const BackwardScratch<A>& x, const HeadPlace& head)
      : a_(a), s_(a.s), x_(x), head_(head), F_(int(a.s.F)), E_(int(a.s.Dv) + 1), Dv_(int(a.s.Dv)), D_(int(a.s.D)),
        width_(int(a.s.width)), logarithmic_(a.s.map.logarithmic()) {}

  __device__ void run() const {
    load_maps(a_, head_, x_);
    const std::int64_t index = head_.b * s_.Hq + head_.h, stored = index * F_ * (Dv_ + 2);
    for (int side = 0; side < 2; ++side) {
      if (a_.wants_weight[side]) for_elements(D_ * width_, [&](int i) { a_.dweight[side][index * D_ * width_ + i] = 0; });
      if (a_.wants_bias[side]) for_elements(width_, [&](int i) { a_.dbias[side][index * width_ + i] = 0; });
    }
    __syncthreads();
    for (std::int64_t begin = 0, end; begin < s_.T; begin = end) {
      end = head_.document_end(begin, s_.T);
      const bool filled = load_state(s_, begin == 0 && a_.initial ? a_.initial + stored : nullptr, x_.state(0, s_));
      const A* const dfinal = end == s_.T && a_.dfinal ? a_.dfinal + stored : nullptr;
      A* const to = begin == 0 && a_.dinitial ? a_.dinitial + stored : nullptr;
      if (s_.causal) causal(begin, end, filled, dfinal, to);
      else bidirectional(begin, end, filled, dfinal, to);
    }
  }

 private:
  __device__ int tokens(std::int64_t t0, std::int64_t end) const { return int(s_.chunk < end - t0 ? s_.chunk : end - t0); }
  __device__ A saved(std::int64_t t) const { return a_.saved[(head_.b * s_.T + t) * s_.Hq + head_.h]; }

  /// dk and dv are summed aside, over the query heads of a group, and reach their arguments in one addition.
  __device__ A* dkeys(std::int64_t t0) const { return x_.dkeys + (s_.group() > 1 ? t0 * D_ : 0); }
  __device__ A* dvalues(std::int64_t t0) const { return x_.dvalues + (s_.group() > 1 ? t0 * Dv_ : 0); }
  /// Whether earlier query heads of the group have left something there.
  __device__ bool earlier() const { return head_.h % s_.group() != 0; }
  __device__ __noinline__ void store_keys(std::int64_t t0, int n) const {
    if ((head_.h + 1) % s_.group() != 0) return;
    const A *from_k = dkeys(t0), *from_v = dvalues(t0);
    if (a_.dk) for_elements(n * D_, [&](int i) { a_.dk.put(a_.dk.at(head_.b, t0 + i / D_, head_.hkv) + i % D_, from_k[i]); });
    if (a_.dv) for_elements(n * Dv_, [&](int i) { a_.dv.put(a_.dv.at(head_.b, t0 + i / Dv_, head_.hkv) + i % Dv_, from_v[i]); });
    __syncthreads();
  }

  /// Tokens that see nothing and that nothing sees.
  __device__ void zero_gradients(std::int64_t t0, int n) const {
    if (a_.dq) for_elements(n * D_, [&](int i) { a_.dq.put(a_.dq.at(head_.b, t0 + i / D_, head_.h) + i % D_, A(0)); });
    if (!earlier()) {
      A *to_k = dkeys(t0), *to_v = dvalues(t0);
      for_elements(n * D_, [&](int i) { to_k[i] = 0; });
      for_elements(n * Dv_, [&](int i) { to_v[i] = 0; });
      __syncthreads();
    }
    store_keys(t0, n);
  }

  /// States before each chunk and, where `final`, after the last, each in the scale of its own shift. Returns the index of the
  /// first that holds a key: all after it do. chunks + 1: none.
  __device__ std::int64_t forward_states(std::int64_t begin, std::int64_t end, bool filled, bool final) const {
    std::int64_t index = 0, first = filled ? 0 : -1;
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk, ++index) {
      const int n = tokens(t0, end);
      const DeviceState<A> before = x_.state(index, s_), after = x_.state(index + 1, s_);
      const bool visible = head_.first_visible(t0, n) < n;
      if (visible && first < 0) first = index + 1;
      features(a_, head_, 1, t0, n, x_, x_.k);
      raise_shift(s_, head_, t0, n, x_.k, before.shift, after.shift, x_.factor);
      if (t0 + n == end && !final) continue;
      if (!visible) {
        copy(before.S, after.S, F_ * E_);
        continue;
      }
      scale_keys(s_, head_, t0, n, after.shift, x_.k);
      load_values(a_, head_, t0, n, x_);
      absorb(s_, n, x_.k, x_.v, x_.factor, before.S, after.S);
    }
    return first < 0 ? index + 1 : first;
  }

  /// Starts R and gamma from the upstream gradient of the final state. Returns whether R may differ from 0.
  __device__ bool start_reverse(const A* dfinal, const DeviceState<A>& last, bool filled) const {
    const bool given = dfinal && filled;
    for_rows(F_, [&](int r) {
      const A* const row = given ? dfinal + std::int64_t(r) * (Dv_ + 2) : nullptr;
      const bool empty = !given || last.shift[r] == -infinity<A>();
      A along = 0;
      for (int e = lane(); e < E_; e += kWarp) {
        x_.R[r * E_ + e] = empty ? A(0) : row[e];
        if (!empty) along += row[e] * last.S[r * E_ + e];
      }
      along = warp_sum(along);
      // the stored S and z are the true ones times exp(-shift)
      if (lane() == 0) x_.gamma[r] = empty || !logarithmic_ ? A(0) : row[Dv_ + 1] - along;
    });
    __syncthreads();
    return given;
  }

  /// gamma goes to the initial shift where no key has raised it.
  __device__ void store_initial(const DeviceState<A>& initial, const A* last_shift, bool reversed, A* to) const {
    for_rows(F_, [&](int r) {
      A* const row = to + std::int64_t(r) * (Dv_ + 2);
      const bool empty = initial.shift[r] == -infinity<A>();
      A along = 0;
      for (int e = lane(); e < E_; e += kWarp) {
        const A value = empty || !reversed ? A(0) : x_.R[r * E_ + e];
        if (!empty) along += initial.S[r * E_ + e] * value;
        store(row + e, value, a_.dinitial_adds);
      }
      along = warp_sum(along);
      const A gamma = !empty && initial.shift[r] == last_shift[r] ? x_.gamma[r] : A(0);
      if (lane() == 0) store(row + Dv_ + 1, logarithmic_ ? gamma + along : gamma, a_.dinitial_adds);
    });
    __syncthreads();
  }

  /// Query features divided by their denominators, in the scale of the shift. Rows that a chunk must redo in log space
  /// become 0 and are listed; returns whether there are any.
  __device__ __noinline__ bool normalised_queries(std::int64_t t0, int n, const A* shift, bool list) const {
    constexpr A kLargest = A(60 * 0.69314718055994530942);
    bool any = false;
    for_rows(n, [&](int i) {
      A* const row = x_.q + i * F_;
      const A den = saved(t0 + i), inverse = den == A(0) ? A(0) : A(1) / den;
      A largest = -infinity<A>();
      for (int r = lane(); r < F_; r += kWarp) {
        // in forward's order: nothing overflows however large the exponents are
        row[r] = logarithmic_ ? (row[r] + shift[r]) - den : row[r] * inverse;
        largest = row[r] > largest ? row[r] : largest;
      }
      if (!logarithmic_) return;
      const bool redo = list && warp_max(largest) > kLargest;
      for (int r = lane(); r < F_; r += kWarp) row[r] = redo || den == infinity<A>() ? A(0) : std::exp(row[r]);
      if (list && lane() == 0) x_.redo[i] = redo;
      any |= redo;
    });
    return __syncthreads_or(any);
  }

  /// G and its column delta.
  __device__ __noinline__ void load_gradients(std::int64_t t0, int n) const {
    for_rows(n, [&](int i) {
      A delta = 0;
      for (int e = lane(); e < Dv_; e += kWarp) {
        const A g = a_.G ? load(a_.G.at(head_.b, t0 + i, head_.h) + e) : A(0);
        if (a_.G) delta -= g * load(a_.o.at(head_.b, t0 + i, head_.h) + e);
        x_.G[i * E_ + e] = g;
      }
      delta = warp_sum(delta);
      if (lane() == 0) x_.G[i * E_ + Dv_] = delta;
    });
    __syncthreads();
  }

  /// R = (R + q^T [G, delta]) * factor
  __device__ void reverse(int n, const A* factor) const {
    block_product<A>({F_, E_, n, x_.q, 1, F_, x_.G, E_, 1, x_.R, E_, true});
    if (factor) scale_reverse(factor);
  }
  __device__ void scale_reverse(const A* factor) const {
    for_elements(F_ * E_, [&](int i) { x_.R[i] *= factor[i / E_]; });
    __syncthreads();
  }

  /// Adds what comes from the state, [G, delta] S^T * factor, and turns dq into the gradient of the working form.
  __device__ void query_working_gradient(std::int64_t t0, int n, const A* S, const A* factor, bool adds) const {
    if (S) block_product<A>({n, F_, E_, x_.G, E_, 1, S, 1, E_, x_.spare, F_});
    for_elements(n * F_, [&](int i) {
      A value = adds ? x_.dq[i] : A(0);
      if (S) value += factor ? x_.spare[i] * factor[i % F_] : x_.spare[i];
      const A den = logarithmic_ ? A(1) : saved(t0 + i / F_);
      x_.dq[i] = logarithmic_ ? value * x_.q[i] : den == A(0) ? A(0) : value * (A(1) / den);
    });
    __syncthreads();
  }
  /// Adds v R^T + y to dk and turns it into the gradient of the working form.
  __device__ void key_working_gradient(std::int64_t t0, int n, bool reversed, bool adds) const {
    if (reversed) block_product<A>({n, F_, E_, x_.v, E_, 1, x_.R, 1, E_, x_.dk, F_, adds});
    for_elements(n * F_, [&](int i) {
      if (!head_.visible(t0 + i / F_)) x_.dk[i] = 0;
      else if (logarithmic_) x_.dk[i] *= x_.k[i];
    });
    __syncthreads();
  }

  /// Gives gamma to the key that set the last shift: the first one of the chunk that holds it.
  __device__ void shift_gradient(int n, const A* before, const A* after) const {
    for_elements(F_, [&](int r) {
      if (x_.gamma[r] == A(0) || before[r] == after[r]) return;
      for (int j = 0; j < n; ++j)
        if (x_.k[j * F_ + r] == A(1)) {
          x_.dk[j * F_ + r] += x_.gamma[r];
          x_.gamma[r] = 0;
          break;
        }
    });
    __syncthreads();
  }

  __device__ __noinline__ void through_map(std::int64_t t0, int n, int side) const;
  __device__ void causal(std::int64_t begin, std::int64_t end, bool filled, const A* dfinal, A* dinitial) const;
  __device__ void chunk_backward(std::int64_t t0, int n, const DeviceState<A>& before, const A* after, bool reversed, bool goes_on) const;
  __device__ __noinline__ void log_space_row(std::int64_t t0, int i, const DeviceState<A>& before, bool goes_on) const;
  __device__ void bidirectional(std::int64_t begin, std::int64_t end, bool filled, const A* dfinal, A* dinitial) const;

  const BackwardArguments<T>& a_;
  const Sizes& s_;
  const BackwardScratch<A>& x_;
  const HeadPlace& head_;
  int F_, E_, Dv_, D_, width_;
  bool logarithmic_;
};

}  // namespace hedgehog::cuda::linear_attention_generic
