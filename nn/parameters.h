#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace hedgehog {

/// How a parameter starts.
struct Init {
  enum class Kind : std::uint8_t { zeros, ones, normal, uniform, identity } kind = Kind::zeros;
  double scale = 0;  // standard deviation of normal, upper bound of uniform, factor of identity
  static Init zeros() { return {Kind::zeros, 0}; }
  static Init ones() { return {Kind::ones, 0}; }
  static Init normal(double standard_deviation) { return {Kind::normal, standard_deviation}; }
  /// Uniform in [0, bound).
  static Init uniform(double bound) { return {Kind::uniform, bound}; }
  /// The last two axes are `gain` times the identity (rectangular: its leading block).
  static Init identity(double gain) { return {Kind::identity, gain}; }
};

/// What the optimiser needs, in flat buffers that all parameters are slices of.
struct FlatParameters {
  Tensor weights, gradients;            // (P); f32 masters and gradients where the parameters are bf16
  Tensor copies;                        // bf16 (P), what the ops read but of wide ones; empty unless the parameters are bf16
  Tensor first_moment, second_moment;   // (P) states
  Tensor spans;                         // f64 (S, 5): offset, length, learning-rate factor, decay factor, frozen
  std::vector<std::int64_t> offsets;    // (S) elements
};

/// The parameters of one model by name, in order of creation. Draws are Philox streams named by that order, so a model
/// starts equal on every machine.
///
/// A bf16 parameter is a copy that the ops read, rounded from a master in f32 that the optimiser and checkpoints hold. A
/// wide one is f32 there too, and its own master.
class Parameters {
 public:
  /// drawn: as each one's Init says; blank: zeros, to be overwritten; declared: shapes without memory, to record and plan with.
  enum class Start : std::uint8_t { drawn, blank, declared };

  explicit Parameters(Dtype dtype = Dtype::f32, std::uint64_t seed = 1, Start start = Start::drawn)
      : dtype_(dtype), seed_(seed), start_(start) {}

  /// A new parameter. `decay` scales the optimiser's weight decay (0 for maps, biases and norms). `wide`: f32 where the
  /// others are bf16, as norms ask for. Throws Error if the name is taken.
  Tensor add(const std::string& name, Shape shape, Init init, double decay, bool wide = false);
  const Tensors& all() const { return tensors_; }
  /// The tensors whose numbers count, in the same order: masters of bf16 parameters, else the parameters themselves.
  const Tensors& masters() const { return dtype_ == Dtype::bf16 ? masters_ : tensors_; }
  /// Sets a parameter, master and copy.
  void assign(const Tensor& parameter, const std::vector<double>& values);
  std::vector<double> values(const Tensor& parameter) const;
  /// After the masters were written from outside: rounds the copies anew.
  void refresh_copies();
  /// Throws Error naming the nearest parameter.
  Tensor find(const std::string& name) const;
  /// From now on only the parameters that `trains` names want a gradient and are updated; the others are frozen. Programs that
  /// were recorded before keep their gradients. Throws Error if nothing is left to train.
  void train_only(const std::function<bool(const std::string& name)>& trains);
  /// Number of elements.
  std::int64_t count() const;
  Dtype dtype() const { return dtype_; }
  bool drawn() const { return start_ == Start::drawn; }
  bool declared() const { return start_ == Start::declared; }

  /// Moves all parameters and gradients into flat buffers (the first time) and returns them. Parameters cannot be added
  /// afterwards.
  const FlatParameters& flatten();

 private:
  const Tensor& master_of(const Tensor& parameter) const;
  std::vector<double> span_table() const;

  Dtype dtype_;
  std::uint64_t seed_;
  Start start_;
  Tensors tensors_, masters_;
  std::vector<double> decay_;
  FlatParameters flat_;
};

}  // namespace hedgehog
