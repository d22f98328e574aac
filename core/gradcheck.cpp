#include "core/gradcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"
#include "core/random.h"

namespace hedgehog {
namespace {

using Function = std::function<Tensors(const Tensors&)>;

class Check {
 public:
  Check(const Function& function, const Tensors& parameters, const GradcheckOptions& options)
      : function_(function), parameters_(parameters), options_(options) {
    for (const Tensor& p : parameters_)
      if (p.dtype() != Dtype::f64) throw ShapeError(fmt::format("[gradcheck] parameter '{}' must be f64, got {}", p.name(), name_of(p.dtype())));
    analytic();
  }

  GradcheckRow row(std::size_t index) {
    const Tensor& p = parameters_[index];
    GradcheckRow out{p.name(), 0, 0, 0, false};
    const std::vector<Slope> slopes = slopes_of(p, std::uint32_t(index));
    std::vector<double> numeric;
    for (const Slope& s : slopes) {
      numeric.push_back(s.numeric(options_.step));
      out.largest = std::max(out.largest, std::abs(numeric.back()));
    }
    const double allowed = options_.tolerance * out.largest;
    double difference = 0;
    for (std::size_t i = 0; i < slopes.size(); ++i) {
      double d = distance(slopes[i].analytic, numeric[i]);
      // a kink between the two points of the difference is left behind by a smaller step, a wrong gradient is not
      if (d > allowed && difference <= allowed) d = std::min(d, distance(slopes[i].analytic, slopes[i].numeric(options_.step / 100)));
      difference = std::max(difference, d);
    }
    out.checked = std::int64_t(slopes.size());
    out.error = difference / std::max(out.largest, 1e-300);
    out.passed = out.largest >= options_.smallest && out.error <= options_.tolerance;
    return out;
  }

 private:
  /// A derivative along one element or one direction: what backward says, and the difference for a step.
  struct Slope {
    double analytic;
    std::function<double(double)> numeric;
  };

  /// |a - n|; a NaN must not slip through max().
  static double distance(double a, double n) { return std::isfinite(a) && std::isfinite(n) ? std::abs(a - n) : INFINITY; }

  std::vector<Slope> slopes_of(const Tensor& p, std::uint32_t index) {
    std::vector<Slope> out;
    const std::vector<double> gradient = p.grad().to_vector();
    auto element = [&](std::int64_t i) { out.push_back({gradient[std::size_t(i)], [this, p, i](double step) { return element_difference(p, i, step); }}); };
    if (p.size() <= options_.full) {
      for (std::int64_t i = 0; i < p.size(); ++i) element(i);
      return out;
    }
    const Random random{options_.seed, 77u + index, 0};
    for (std::int64_t k = 0; k < options_.full; ++k) element(random.below(std::uint64_t(k), std::uint32_t(p.size())));
    for (std::uint32_t d = 0; d < 4; ++d) out.push_back(direction(p, Random{options_.seed, 1077u + index, d}));
    return out;
  }

  void analytic() {
    for (const Tensor& p : parameters_) p.grad().fill(0);
    const Tensors results = function_(parameters_);
    Tensors differentiable, cotangents;
    for (std::size_t j = 0; j < results.size(); ++j) {
      std::vector<double> r(std::size_t(results[j].size()), 0.0);
      if (results[j].wants_gradient()) {
        const Random random{options_.seed, 5000u + std::uint32_t(j), 0};
        for (std::size_t i = 0; i < r.size(); ++i) r[i] = random.normal(i);
        differentiable.push_back(results[j]);
        cotangents.push_back(constant(results[j].shape(), r, results[j].dtype(), "cotangent"));
      }
      weights_.push_back(std::move(r));
    }
    if (differentiable.empty()) throw Error("[gradcheck] no result depends on the parameters");
    backward(differentiable, cotangents);
  }

  double loss() {
    const no_grad guard;
    const Tensors results = function_(parameters_);
    double sum = 0;
    for (std::size_t j = 0; j < results.size(); ++j) {
      const auto y = results[j].to_vector();
      for (std::size_t i = 0; i < y.size(); ++i)
        if (weights_[j][i] != 0) sum += weights_[j][i] * y[i];
    }
    return sum;
  }

  double element_difference(const Tensor& p, std::int64_t i, double step) {
    double kept = 0;
    p.read(&kept, i, 1);
    const double h = step * std::max(1.0, std::abs(kept)), above = kept + h, below = kept - h;
    p.write(&above, i, 1);
    const double up = loss();
    p.write(&below, i, 1);
    const double down = loss();
    p.write(&kept, i, 1);
    return (up - down) / (above - below);
  }

  Slope direction(const Tensor& p, const Random& random) {
    std::vector<double> direction(std::size_t(p.size()));
    const std::vector<double> gradient = p.grad().to_vector();
    double length = 0, slope = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) length += (direction[i] = random.normal(i)) * direction[i];
    length = std::sqrt(length);
    for (std::size_t i = 0; i < direction.size(); ++i) slope += (direction[i] /= length) * gradient[i];
    return {slope, [this, p, direction](double step) {
              const std::vector<double> kept = p.to_vector();
              auto at = [&](double h) {
                std::vector<double> moved(kept.size());
                for (std::size_t i = 0; i < kept.size(); ++i) moved[i] = kept[i] + h * direction[i];
                p.copy_from(moved);
                return loss();
              };
              const double numeric = (at(step) - at(-step)) / (2 * step);
              p.copy_from(kept);
              return numeric;
            }};
  }

  const Function& function_;
  const Tensors& parameters_;
  const GradcheckOptions& options_;
  std::vector<std::vector<double>> weights_;
};

}  // namespace

bool GradcheckReport::passed() const {
  return !rows.empty() && std::all_of(rows.begin(), rows.end(), [](const GradcheckRow& r) { return r.passed; });
}
double GradcheckReport::worst() const {
  double worst = 0;
  for (const GradcheckRow& r : rows) worst = std::max(worst, r.error);
  return worst;
}
std::int64_t GradcheckReport::checked() const {
  std::int64_t n = 0;
  for (const GradcheckRow& r : rows) n += r.checked;
  return n;
}

GradcheckReport gradcheck(const Function& function, const Tensors& parameters, const GradcheckOptions& options) {
  Check check(function, parameters, options);
  GradcheckReport report;
  for (std::size_t i = 0; i < parameters.size(); ++i) report.rows.push_back(check.row(i));
  return report;
}

Tensors empty_arguments(const Op& op, const Sample& sample, Dtype dtype) {
  Tensors out;
  for (std::size_t a = 0; a < sample.inputs.size(); ++a) {
    const SampleInput& in = sample.inputs[a];
    using Fill = SampleInput::Fill;
    if (in.fill == Fill::none) {
      out.push_back({});
      continue;
    }
    const std::string& name = op.arguments[a].name;
    const bool whole = in.fill == Fill::integers || in.fill == Fill::documents || in.fill == Fill::mask;
    const bool changes = op.updates >> a & 1u;
    const Dtype type = whole ? Dtype::i32 : in.fill == Fill::numbers ? Dtype::f64 : op.arguments[a].wide ? accumulator_of(dtype) : dtype;
    out.push_back(changes ? state(in.shape, type, name)
                  : in.differentiable && op.arguments[a].differentiable ? parameter(in.shape, name, type)
                                                                        : input(in.shape, name, type));
  }
  return out;
}

std::vector<double> draw_numbers(const SampleInput& in, std::uint64_t seed, std::uint32_t argument) {
  using Fill = SampleInput::Fill;
  if (in.fill == Fill::none) return {};
  if (in.fill == Fill::numbers) return in.values;
  const Random random{seed, argument, 1};
  std::vector<double> v(std::size_t(in.shape.size()));
  const std::size_t columns = std::size_t(in.shape.last());
  // each document start copies the one before it, so a block must begin with a row
  const std::int64_t together = in.fill == Fill::documents ? std::int64_t(columns) : 1;
  parallel_for(std::int64_t(v.size()) / together, std::max<std::int64_t>(1, 4096 / together), [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = std::size_t(begin * together); i < std::size_t(end * together); ++i) switch (in.fill) {
        case Fill::normal: v[i] = in.shift + in.scale * random.normal(i); break;
        case Fill::positive: v[i] = std::exp(in.scale * random.normal(i)) + 0.1; break;
        case Fill::away_from_zero: {
          const double z = random.normal(i);
          v[i] = in.scale * (z + std::copysign(0.1, z));
          break;
        }
        case Fill::integers: v[i] = in.shift + random.below(i, std::uint32_t(in.scale - in.shift)); break;
        case Fill::mask: v[i] = i % columns == 0 || random.below(i, 4) != 0; break;
        case Fill::documents: v[i] = i % columns == 0 ? 0 : random.below(i, 3) == 0 ? double(i % columns) : v[i - 1]; break;
        case Fill::numbers:
        case Fill::none: break;
      }
  });
  return v;
}

Tensors draw_arguments(const Op& op, const Sample& sample, std::uint64_t seed, Dtype dtype) {
  const Tensors out = empty_arguments(op, sample, dtype);
  for (std::size_t a = 0; a < out.size(); ++a)
    if (out[a]) out[a].copy_from(draw_numbers(sample.inputs[a], seed, std::uint32_t(a)));
  return out;
}

GradcheckReport gradcheck(const Op& op, const Sample& sample, const GradcheckOptions& options) {
  const Tensors arguments = draw_arguments(op, sample, options.seed);
  Tensors parameters;
  for (const Tensor& x : arguments)
    if (x && x.wants_gradient()) parameters.push_back(x);
  std::vector<std::pair<Tensor, std::vector<double>>> changing;
  for (std::size_t a = 0; a < arguments.size(); ++a)
    if (arguments[a] && (op.updates >> a & 1u)) changing.emplace_back(arguments[a], arguments[a].to_vector());
  return gradcheck(
      [&](const Tensors&) {
        for (const auto& [x, values] : changing) x.copy_from(values);
        Tensors inputs = arguments;
        // a view of a parameter is no result of a call, so backward cannot start there
        if (op.views) inputs[0] = apply(detail::kCopy, {}, {inputs[0]})[0];
        return apply(op, sample.attributes, inputs);
      },
      parameters, options);
}

}  // namespace hedgehog
