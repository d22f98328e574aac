#pragma once
#include <vector>

#include "core/op.h"

/// How hybrid_attention is put together, on every device: softmax attention in the window, linear attention of the queries from token
/// `window` on over the keys that lie as far behind them, and a few passes over rows between the two. Internal to ops/ and cuda/.
namespace hedgehog::hybrid_attention_detail {

enum Input : int { kQ, kK, kV, kWeightQ, kWeightK, kBiasQ, kBiasK, kLogFactor, kDocumentStart, kInputs };

struct Sizes {
  std::int64_t B, T, Hq, Hkv, D, Dv, window;
  std::int64_t behind;  // tokens with a query `window` after them, which are the linear part's; 0: there is none
  double scale;
  bool maximum, logarithmic;
  Dtype dtype;

  std::int64_t group() const { return Hq / Hkv; }
  std::int64_t rows() const { return B * T * Hq; }
  Dtype accumulator() const { return accumulator_of(dtype); }
};

enum class Pass : int { forward, backward };

/// Pieces of the workspace. What a pass does not need has no memory.
struct Scratch {
  Ref o_window;                         // (B, T, Hq, Dv), the window's result alone
  void* log_window = nullptr;           // (B, T, Hq), ln of its denominator; in backward what makes its weights those of the whole
  void* denominator = nullptr;          // (B, behind, Hq), of the linear part
  void* no_state = nullptr;             // (1), the second result of the linear part, which nobody asks for
  std::int32_t* starts = nullptr;       // (B, behind), document_start of keys
  void* largest = nullptr;              // (B, T, Hq), c
  std::int32_t* nearest = nullptr;      // (B, T, Hq), the key that c comes from
  void* row_sums = nullptr;             // (B, T, Hq), of the score gradients in the window
  void* rest = nullptr;                 // for the two ops
  std::int64_t used = 0;                // bytes before it

  Scratch(const Sizes& s, Pass pass, bool has_factor, bool has_documents, void* workspace);
};

/// One call, as the passes over rows see it.
struct Parts {
  const Call& c;
  Sizes s;
  Scratch x;

  /// Whether row t of batch element b sees keys by the linear part: start (B, T) of its document, or null.
  static bool reaches(const std::int32_t* start, std::int64_t t, std::int64_t window) { return t >= window && (!start || start[t] <= t - window); }
};

/// What a device does itself.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual void run(const Op& op, Pass pass, const Call& c) const = 0;
  virtual std::int64_t bytes(const Op& op, Pass pass, const Attributes& attributes, std::span<const Meta> inputs) const = 0;
  /// starts of the keys in the linear part.
  virtual void gather_starts(const Parts& w) const = 0;
  /// largest and nearest.
  virtual void find_largest(const Parts& w) const = 0;
  /// o = what lies in o and o_window, weighted by their denominators; saves the whole denominator. Without a linear part o is the
  /// window's already.
  virtual void merge(const Parts& w) const = 0;
  /// log_window and denominator of backward, from the whole denominator; infinite where a row sees nothing by the linear part.
  virtual void part_denominators(const Parts& w) const = 0;
  /// row_sums, from o_window and its log_window.
  virtual void sum_rows(const Parts& w) const = 0;
  /// dlog_factor, from row_sums.
  virtual void factor_gradient(const Parts& w) const = 0;
  /// Takes row_sums from the gradient of the largest scores, and so from dq and dk.
  virtual void take_from_largest(const Parts& w) const = 0;
  /// x lies without gaps, or is (B, T, H, D).
  virtual void zero(const Ref& x) const = 0;
};

Sizes sizes_of(const Attributes& attributes, std::span<const Meta> inputs);
void forward(const Call& c, const Backend& backend);
void backward(const Call& c, const Backend& backend);
/// Of the workspace.
std::int64_t bytes(Pass pass, const Backend& backend, const Attributes& attributes, std::span<const Meta> inputs);

/// The linear part as a call of linear_attention: its attributes and inputs; none if there is no such part.
Attributes linear_attributes(const Attributes& attributes);
std::vector<Meta> linear_inputs(const Sizes& s, std::span<const Meta> inputs);

const Backend& cpu();

}  // namespace hedgehog::hybrid_attention_detail
