#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "core/error.h"
#include "core/random.h"
#include "nn/distillation.h"
#include "tests/batch_cases.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "train/distillation_step.h"

namespace hedgehog {
namespace {

constexpr std::int64_t B = 2, T = 9, L = 2, H = 2, C = 12, D = C / H;

GptOptions shape_of(const std::string& attention, Dtype dtype = Dtype::f64, bool causal = true) {
  GptOptions o;
  o.layers = L, o.heads = H, o.width = C, o.context = T, o.vocabulary = 11, o.attention = attention, o.dtype = dtype;
  o.embedding_init = 1, o.causal = causal;
  return o;
}

Tensor some_tokens() {
  std::vector<double> ids;
  const Random random{5, 1, 0};
  for (std::int64_t i = 0; i < B * T; ++i) ids.push_back(double(random.below(std::uint64_t(i), 11)));
  return constant({B, T}, ids, Dtype::i32);
}

/// Weights away from the identity, so that nothing cancels.
void shake_maps(Gpt& model, double by) {
  std::uint32_t id = 0;
  for (const Tensor& t : model.parameters().all()) {
    if (!is_map(t.name())) continue;
    std::vector<double> values = model.parameters().values(t);
    const std::vector<double> noise = test::draw(t.size(), 9, id++);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += by * noise[i];
    model.parameters().assign(t, values);
  }
}

struct Pair {
  Gpt teacher, student;
  explicit Pair(const std::string& attention, Dtype dtype = Dtype::f64, bool map_weights = false, bool causal = true)
      : teacher(shape_of("softmax", dtype, causal)), student([&] {
          GptOptions o = student_options(teacher.options(), attention);
          o.map_weights = map_weights;
          return o;
        }()) {
    copy_weights(teacher, student);
    student.parameters().train_only(is_map);
  }
};

/// Divergence and gradients of one layer's maps with both matrices of weights formed whole.
struct Dense {
  std::vector<double> divergence, dq, dk;  // (H), (H, D, D), (H, D, D)
};

/// Features [e^u, e^-u] of one head's rows, u = x W, and the rows x.
struct Mapped {
  std::vector<std::vector<double>> x, phi;
};
Mapped mapped(const std::vector<double>& heads, const std::vector<double>& weight, std::int64_t b, std::int64_t h) {
  Mapped m;
  for (std::int64_t t = 0; t < T; ++t) {
    std::vector<double> x, phi(std::size_t(2 * D));
    for (std::int64_t d = 0; d < D; ++d) x.push_back(heads[std::size_t(((b * T + t) * H + h) * D + d)]);
    for (std::int64_t e = 0; e < D; ++e) {
      double u = 0;
      for (std::int64_t d = 0; d < D; ++d) u += x[std::size_t(d)] * weight[std::size_t((h * D + d) * D + e)];
      phi[std::size_t(e)] = std::exp(u);
      phi[std::size_t(D + e)] = std::exp(-u);
    }
    m.x.push_back(x);
    m.phi.push_back(phi);
  }
  return m;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Adds x^T du of one row, where dphi is the gradient of its features.
void add_weight_gradient(std::vector<double>& dweight, std::int64_t h, const Mapped& m, std::size_t row, const std::vector<double>& dphi) {
  for (std::int64_t e = 0; e < D; ++e) {
    const auto at = std::size_t(e), half = std::size_t(D);
    const double du = dphi[at] * m.phi[row][at] - dphi[half + at] * m.phi[row][half + at];
    for (std::int64_t d = 0; d < D; ++d) dweight[std::size_t((h * D + d) * D + e)] += m.x[row][std::size_t(d)] * du;
  }
}

Dense dense_layer(const AttentionHeads& heads, const std::vector<double>& weight_q, const std::vector<double>& weight_k, bool causal) {
  Dense r{std::vector<double>(H), std::vector<double>(weight_q.size()), std::vector<double>(weight_k.size())};
  const std::vector<double> q = heads.q.to_vector(), k = heads.k.to_vector();
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t h = 0; h < H; ++h) {
      const Mapped mq = mapped(q, weight_q, b, h), mk = mapped(k, weight_k, b, h);
      std::vector<std::vector<double>> dphi_q(std::size_t(T), std::vector<double>(std::size_t(2 * D))), dphi_k = dphi_q;
      for (std::size_t i = 0; i < std::size_t(T); ++i) {
        std::vector<double> p, A;
        double sum_p = 0, sum_A = 0;
        for (std::size_t j = 0; j < (causal ? i + 1 : std::size_t(T)); ++j) {
          p.push_back(std::exp(dot(mq.x[i], mk.x[j]) / std::sqrt(double(D))));
          A.push_back(dot(mq.phi[i], mk.phi[j]));
          sum_p += p[j], sum_A += A[j];
        }
        for (std::size_t j = 0; j < (causal ? i + 1 : std::size_t(T)); ++j) {
          const double share = p[j] / sum_p;
          r.divergence[std::size_t(h)] += share * std::log(share * sum_A / A[j]) / double(B * T);
          const double dA = (1 / sum_A - share / A[j]) / double(B * T * H * L);
          for (std::size_t f = 0; f < std::size_t(2 * D); ++f) {
            dphi_q[i][f] += dA * mk.phi[j][f];
            dphi_k[j][f] += dA * mq.phi[i][f];
          }
        }
      }
      for (std::size_t i = 0; i < std::size_t(T); ++i) {
        add_weight_gradient(r.dq, h, mq, i, dphi_q[i]);
        add_weight_gradient(r.dk, h, mk, i, dphi_k[i]);
      }
    }
  return r;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  return test::rms(test::difference(a, b)) / std::max(test::rms(b), 1e-300);
}

}  // namespace

TEST_CASE("model distillation: loss, divergence of each head and gradients of all maps equal dense f64 formulas, the rest gets none") {
  bool causal = true;
  SUBCASE("each token sees those before") {}
  SUBCASE("an encoder's sees all") { causal = false; }
  Pair pair("hedgehog", Dtype::f64, false, causal);
  shake_maps(pair.student, 0.3);
  const Tensor tokens = some_tokens();
  const Tensor loss = distillation_loss(pair.teacher, pair.student, tokens);
  const std::vector<DistillationRows> rows = distillation_rows(pair.teacher, pair.student, tokens);
  std::vector<AttentionHeads> heads;
  {
    const no_grad guard;
    heads = pair.teacher.heads(tokens);
  }
  backward(loss);
  double total = 0;
  for (std::int64_t layer = 0; layer < L; ++layer) {
    CAPTURE(layer);
    const std::string name = "h." + std::to_string(layer) + ".attn.map_";
    const Parameters& p = pair.student.parameters();
    const Tensor wq = p.find(name + "q.weight"), wk = p.find(name + "k.weight");
    const Dense dense = dense_layer(heads[std::size_t(layer)], wq.to_vector(), wk.to_vector(), causal);
    // f64, sums of some hundred terms
    CHECK(distance(wq.grad().to_vector(), dense.dq) < 1e-11);
    CHECK(distance(wk.grad().to_vector(), dense.dk) < 1e-11);
    std::vector<double> each(H);
    const std::vector<double> l = rows[std::size_t(layer)].loss.to_vector(), e = rows[std::size_t(layer)].entropy.to_vector();
    for (std::size_t i = 0; i < l.size(); ++i) each[i % H] += (l[i] - e[i]) / double(B * T);
    CHECK(distance(each, dense.divergence) < 1e-11);
    for (const double head : dense.divergence) total += head / double(H * L);
  }
  CHECK(loss.item() == doctest::Approx(total).epsilon(1e-11));
  for (const Tensor& t : pair.student.parameters().all())
    if (!is_map(t.name())) CHECK(test::largest(t.grad().to_vector()) == 0);
  for (const Tensor& t : pair.teacher.parameters().all()) CHECK(test::largest(t.grad().to_vector()) == 0);
}

TEST_CASE("model distillation: gradients of every kind of map, by weights and by output, equal central differences") {
  const Tensor tokens = some_tokens();
  for (const char* attention : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "t2r", "exp", "elu"})
    for (const char* by : {"weights", "output"}) {
      CAPTURE(attention);
      CAPTURE(by);
      Pair pair(attention, Dtype::f64, true);  // exp and elu have weights only if asked
      shake_maps(pair.student, 0.2);
      backward(distillation_loss(pair.teacher, pair.student, tokens, by));
      for (const Tensor& t : pair.student.parameters().all()) {
        if (!is_map(t.name())) continue;
        CAPTURE(t.name());
        const std::vector<double> at = t.to_vector(), direction = test::draw(t.size(), 11, 3), gradient = t.grad().to_vector();
        double sides[2];
        for (const int side : {0, 1}) {
          std::vector<double> moved = at;
          for (std::size_t i = 0; i < at.size(); ++i) moved[i] += (side ? 1e-6 : -1e-6) * direction[i];
          t.copy_from(moved);
          const no_grad guard;
          sides[side] = distillation_loss(pair.teacher, pair.student, tokens, by).item();
        }
        t.copy_from(at);
        const double expected = (sides[1] - sides[0]) / 2e-6;
        const double scale = test::rms(gradient) * test::rms(direction) * std::sqrt(double(at.size()));
        // a difference of losses near 1 rounds at 1e-16 / 1e-6; a kink of t2r within the step would show at 1e-3
        CHECK(std::abs(dot(gradient, direction) - expected) <= 1e-6 * scale + 1e-9);
      }
    }
}

TEST_SUITE("device") {
  TEST_CASE("model distillation: a model in bf16 has the losses of f32, and gradients of Hedgehog maps as large") {
    test::on_cuda([] {
      for (const char* attention : {"hedgehog", "t2r"})
        for (const char* by : {"weights", "output"}) {
          CAPTURE(std::string(attention));
          CAPTURE(std::string(by));
          double losses[2], sizes[2] = {};
          for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
            Pair pair(attention, dtype);
            shake_maps(pair.student, 0.2);
            const Tensor loss = distillation_loss(pair.teacher, pair.student, some_tokens(), by);
            backward(loss);
            losses[dtype == Dtype::bf16] = loss.item();
            for (const Tensor& t : pair.student.parameters().all())
              if (is_map(t.name())) sizes[dtype == Dtype::bf16] += test::rms(t.grad().to_vector());
          }
          // numbers of 8 bits, through two layers
          CHECK(losses[1] == doctest::Approx(losses[0]).epsilon(0.03));
          // T2R's gradients come from the pairs whose products lie near the floor, and which ones do is a matter of rounding
          if (std::string(attention) == "hedgehog") CHECK(sizes[1] == doctest::Approx(sizes[0]).epsilon(0.1));
        }
    });
  }
}

TEST_CASE("model distillation: some steps bring the divergence of every layer down and leave all other weights alone") {
  for (const char* attention : {"hedgehog", "t2r"})
    for (const char* by : {"weights", "output"}) {
      CAPTURE(attention);
      CAPTURE(by);
      Pair pair(attention);
      for (const Tensor& t : pair.teacher.parameters().all())  // scores spread enough to have something to learn
        if (t.name().find("c_attn") != std::string::npos) {
          std::vector<double> larger = t.to_vector();
          for (double& x : larger) x *= 2;
          t.copy_from(larger);
        }
      copy_weights(pair.teacher, pair.student);
      std::map<std::string, std::vector<double>> before;
      for (const Tensor& t : pair.student.parameters().all()) before[t.name()] = t.to_vector();
      const Tensor tokens = some_tokens();
      auto value = [&] {
        const no_grad guard;
        return distillation_loss(pair.teacher, pair.student, tokens, by).item();
      };
      const double untrained = value();
      Batch batch = test::counting_batch(B, T, 11, 3);
      const std::vector<double> ids = tokens.to_vector();
      batch.tokens.assign(ids.begin(), ids.end());
      TrainingStep step(pair.student, {B, T}, {.weight_decay = 0.1}, 1, {}, distils_from(pair.teacher, by));
      double reported = 0;
      for (int i = 0; i < 60; ++i) {
        const StepResult r = step.run(std::span(&batch, 1), 0.02);
        if (i == 0) reported = r.loss;
      }
      CHECK(reported == doctest::Approx(untrained).epsilon(1e-12));
      CHECK(value() < (std::string(attention) == "t2r" ? 0.9 : 0.5) * untrained);
      for (const Tensor& t : pair.student.parameters().all()) CHECK((t.to_vector() == before[t.name()]) != is_map(t.name()));
    }
}

TEST_CASE("model distillation: the meter counts valid targets alone, and documents apart") {
  Pair pair("hedgehog");
  class OneBatch : public BatchSource {
   public:
    Batch batch;
    Batch training(std::int64_t, std::int64_t, std::int64_t) const override { return batch; }
    std::int64_t validation_batches(std::int64_t) const override { return 1; }
    Batch validation(std::int64_t, std::int64_t) const override { return batch; }
    std::string describe() const override { return "one batch"; }
  } source;
  source.batch = test::counting_batch(B, T, 11, 3);
  test::cut_documents(source.batch, 4);
  const Tensor tokens = constant({B, T}, {source.batch.tokens.begin(), source.batch.tokens.end()}, Dtype::i32),
               starts = constant({B, T}, {source.batch.document_start.begin(), source.batch.document_start.end()}, Dtype::i32);
  for (const int ignored : {3, 4, 13}) test::ignore_target(source.batch, ignored);
  const Divergence measured = DivergenceMeter(pair.teacher, pair.student, B, T, true).measure(source);
  const no_grad guard;
  const auto rows = distillation_rows(pair.teacher, pair.student, tokens, {.document_start = starts});
  double total = 0;
  for (std::size_t layer = 0; layer < std::size_t(L); ++layer) {
    const std::vector<double> loss = rows[layer].loss.to_vector(), entropy = rows[layer].entropy.to_vector();
    for (std::size_t h = 0; h < std::size_t(H); ++h) {
      double sum = 0;
      for (std::size_t row = 0; row < std::size_t(B * T); ++row)
        if (row != 3 && row != 4 && row != 13) sum += loss[row * H + h] - entropy[row * H + h];
      CHECK(measured.heads[layer][h] == doctest::Approx(sum / double(B * T - 3)).epsilon(1e-12));
      total += sum / double(B * T - 3) / double(L * H);
    }
  }
  CHECK(measured.mean() == doctest::Approx(total).epsilon(1e-12));
  const Divergence across = DivergenceMeter(pair.teacher, pair.student, B, T, false).measure(source);
  CHECK(std::abs(across.mean() - measured.mean()) > 1e-3 * measured.mean());
}

TEST_CASE("model distillation: what cannot be distilled is refused") {
  const Gpt teacher(shape_of("softmax"));
  const Tensor tokens = some_tokens();
  auto student = [&](auto&& change) {
    GptOptions o = shape_of("hedgehog");
    change(o);
    return Gpt(o);
  };
  auto refused = [&](const Gpt& from, const Gpt& to, const char* part) {
    CHECK_THROWS_WITH_AS(distillation_rows(from, to, tokens), doctest::Contains(part), ShapeError);
    CHECK_THROWS_WITH_AS(distillation_loss(from, to, tokens), doctest::Contains(part), ShapeError);
  };
  const Gpt hedgehog = student([](GptOptions&) {});
  refused(hedgehog, hedgehog, "the teacher must have softmax attention, but has 'hedgehog'");
  refused(teacher, teacher, "the student must have linear attention");
  refused(teacher, student([](GptOptions& o) { o.layers = 1; }), "the same layers, but they are 2 and 1");
  refused(teacher, student([](GptOptions& o) { o.heads = 1; }), "the same heads, but they are 2 and 1");
  refused(teacher, student([](GptOptions& o) { o.width = 8; }), "the same width, but they are 12 and 8");
  for (const char* empty : {"elu", "relu", "exp"}) {
    const Gpt plain = student([&](GptOptions& o) { o.attention = empty; });
    CHECK_FALSE(has_maps(plain));
    CHECK_THROWS_WITH_AS(distillation_loss(teacher, plain, tokens), doctest::Contains("nothing to distil"), ShapeError);
    CHECK(distillation_rows(teacher, plain, tokens).size() == std::size_t(L));  // but it can be measured
  }
  CHECK_THROWS_WITH_AS(distillation_loss(teacher, hedgehog, tokens, "logits"), doctest::Contains("not by 'logits'"), UsageError);
  CHECK_THROWS_WITH_AS(student_options(hedgehog.options(), "hedgehog"), doctest::Contains("this one has 'hedgehog'"), UsageError);
  GptOptions windowed = shape_of("softmax");
  windowed.window = 4;
  CHECK_THROWS_WITH_AS(student_options(windowed, "hedgehog"), doctest::Contains("has a window of 4"), UsageError);
  CHECK_THROWS_WITH_AS(distillation_loss(Gpt(windowed), Gpt(shape_of("hedgehog")), some_tokens()), doctest::Contains("has a window"), ShapeError);
  CHECK_THROWS_WITH_AS(student_options(teacher.options(), "softmax"), doctest::Contains("which it has already"), UsageError);
  CHECK_THROWS_WITH_AS(student_options(teacher.options(), "taylor"), doctest::Contains("not to 'taylor'"), UsageError);
  GptOptions learned = shape_of("softmax");
  learned.positions = "learned";
  learned.context = T - 1;
  const Gpt shorter(learned);
  CHECK_THROWS_WITH_AS(distillation_rows(shorter, hedgehog, tokens), doctest::Contains("exceed the context of 8"), ShapeError);
}

TEST_CASE("model distillation: weights are copied by name, and what differs is refused") {
  const Gpt teacher(shape_of("softmax"));
  Gpt student(student_options(teacher.options(), "t2r"));
  for (const Tensor& t : student.parameters().all())
    if (!is_map(t.name())) t.fill(7);
  copy_weights(teacher, student);
  for (const Tensor& t : teacher.parameters().all()) CHECK(student.parameters().find(t.name()).to_vector() == t.to_vector());
  const std::vector<double> map = student.parameters().find("h.1.attn.map_k.weight").to_vector();
  for (std::size_t i = 0; i < map.size(); ++i) CHECK(map[i] == (i / D % D == i % D ? 1 : 0));
  GptOptions o = shape_of("hedgehog");
  o.vocabulary = 12;
  Gpt other(o);
  CHECK_THROWS_WITH_AS(copy_weights(teacher, other), doctest::Contains("'wte.weight' is (11, 12) in one model and (12, 12)"), ShapeError);
  o = shape_of("hedgehog");
  o.layers = 1;
  Gpt shallow(o);
  CHECK_THROWS_WITH_AS(copy_weights(teacher, shallow), doctest::Contains("has no counterpart"), ShapeError);
}

TEST_CASE("parameters: only those named train, also in flat buffers, and naming none is refused") {
  Gpt model(shape_of("hedgehog"));
  const FlatParameters& flat = model.parameters().flatten();
  model.parameters().train_only(is_map);
  const std::vector<double> spans = flat.spans.to_vector();
  const Tensors& all = model.parameters().all();
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(all[i].wants_gradient() == is_map(all[i].name()));
    CHECK(spans[i * kSpanColumns + kSpanFrozen] == (is_map(all[i].name()) ? 0 : 1));
  }
  CHECK_THROWS_WITH_AS(model.parameters().train_only([](const std::string&) { return false; }), doctest::Contains("none of the"), Error);
}

}  // namespace hedgehog
