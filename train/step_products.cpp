#include "train/step_products.h"

#include <algorithm>

namespace hedgehog {
namespace {

/// Collects the products of one entry after the other.
class Products {
 public:
  std::map<ProductShape, double> counts;

  void add(const Entry& e) {
    const std::string& op = e.op->name;
    if (op == "linear") e.backward ? layer_backward(e, e.inputs[1], rows(e), 0, 1) : layer(e, e.inputs[1], rows(e));
    else if (op == "mlp") mlp(e);
    else if (op == "matmul") matmul(e);
    else if (op == "classifier_cross_entropy" && !e.backward) classifier(e);
  }

 private:
  static std::int64_t rows(const Entry& e) { return e.inputs[0].shape().rows(); }

  void count(const ProductShape& shape, double times = 1) { counts[shape] += times; }

  /// y (rows, n) = x (rows, k) weight (k, n).
  void layer(const Entry& e, const Tensor& weight, std::int64_t rows) {
    count({.m = rows, .n = weight.shape()[1], .k = weight.shape()[0], .dtype = e.inputs[0].dtype()});
  }

  void gradient_of_x(const Entry& e, const Tensor& weight, std::int64_t rows) {
    count({.m = rows, .n = weight.shape()[0], .k = weight.shape()[1], .transpose_b = true, .dtype = e.inputs[0].dtype()});
  }

  void gradient_of_weight(const Entry& e, const Tensor& weight, std::int64_t rows) {
    const Shape& w = weight.shape();
    count({.m = w[0], .n = w[1], .k = rows, .transpose_a = true, .into_weight_gradient = true, .dtype = e.inputs[0].dtype()});
  }

  void layer_backward(const Entry& e, const Tensor& weight, std::int64_t rows, std::size_t x, std::size_t of_weight) {
    if (e.dx[x]) gradient_of_x(e, weight, rows);
    if (e.dx[of_weight]) gradient_of_weight(e, weight, rows);
  }

  void mlp(const Entry& e) {
    const Tensor &weight_1 = e.inputs[1], &weight_2 = e.inputs[2];
    if (!e.backward) {
      layer(e, weight_1, rows(e));
      if (e.outputs[0]) layer(e, weight_2, rows(e));  // a repeat may want the saved tensors alone
      return;
    }
    layer_backward(e, weight_1, rows(e), 0, 1);
    if (e.dx[2]) gradient_of_weight(e, weight_2, rows(e));
    if (e.dx[0] || e.dx[1] || e.dx[3]) gradient_of_x(e, weight_2, rows(e));  // dh
  }

  /// Of a batch, or of rows and one matrix; a gradient has the products of a forward call whose operands change places.
  void matmul(const Entry& e) {
    const bool a = e.attributes.flag("transpose_a"), b = e.attributes.flag("transpose_b");
    const Shape &x = e.inputs[0].shape(), &w = e.inputs[1].shape(), &y = e.outputs[0].shape();
    const bool folded = w.rank() == 2 && !a;
    const std::int64_t m = folded ? y.rows() : y[-2], n = y[-1], k = x[a ? -2 : -1];
    const double batch = double(y.size() / (m * n));
    const Dtype dtype = e.inputs[0].dtype();
    if (!e.backward) return count({.m = m, .n = n, .k = k, .transpose_a = a, .transpose_b = b, .dtype = dtype}, batch);
    if (e.dx[0]) {
      if (a) count({.m = k, .n = m, .k = n, .transpose_a = b, .transpose_b = true, .dtype = dtype}, batch);
      else count({.m = m, .n = k, .k = n, .transpose_b = !b, .dtype = dtype}, batch);
    }
    if (!e.dx[1]) return;
    // the gradient of a weight: A^T dy, or dy^T A for one that is stored transposed
    const bool weight = !a && e.modes[1] == Mode::accumulate;
    if (b) count({.m = n, .n = k, .k = m, .transpose_a = true, .transpose_b = a, .into_weight_gradient = weight, .dtype = dtype}, batch);
    else count({.m = k, .n = n, .k = m, .transpose_a = !a, .into_weight_gradient = weight, .dtype = dtype}, batch);
  }

  /// Logits, dx and dweight, tile by tile: the workspace holds the logits of one tile.
  void classifier(const Entry& e) {
    const std::int64_t all = rows(e), classes = e.inputs[1].shape()[0], width = e.inputs[1].shape()[1];
    const Dtype dtype = e.inputs[0].dtype();
    const std::int64_t held = e.workspace / (classes * size_of(dtype)), tile = std::clamp<std::int64_t>(held, 1, all);
    const double tiles = double(all) / double(tile);
    count({.m = tile, .n = classes, .k = width, .transpose_b = true, .dtype = dtype}, tiles);
    // forward makes the gradients where they are wanted
    if (!e.saved.empty()) {
      count({.m = tile, .n = width, .k = classes, .dtype = dtype}, tiles);
      count({.m = classes, .n = width, .k = tile, .transpose_a = true, .into_weight_gradient = true, .dtype = dtype}, tiles);
    }
  }
};

}  // namespace

std::map<ProductShape, double> products_of(const Program& program) {
  Products products;
  for (const Entry& e : program.entries) products.add(e);
  return std::move(products.counts);
}

double flops_of(const std::map<ProductShape, double>& products) {
  double flops = 0;
  for (const auto& [shape, count] : products) flops += count * shape.flops();
  return flops;
}

double seconds_of(const std::map<ProductShape, double>& products) {
  double seconds = 0;
  for (const auto& [shape, count] : products) seconds += count * timed_product(shape).median;
  return seconds;
}

}  // namespace hedgehog
