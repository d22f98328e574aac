#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "core/tape.h"
#include "tests/batch_cases.h"
#include "tests/cli_cases.h"
#include "tests/op_cases.h"
#include "train/generation.h"
#include "train/training_step.h"

// Attention whose keys lose weight with the distance, against the formula over all pairs, which knows no logarithms of positions.

namespace hedgehog {
namespace {

using namespace test;
using Numbers = std::vector<double>;

constexpr std::int64_t B = 2, T = 9, H = 3, D = 4;
const char* const kMaps[] = {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "exp", "performer"};

double softplus(double w) { return std::log1p(std::exp(w)); }

/// Everything that the loss of one layer depends on: q, k, v (B, T, H, D), maps (H, D, D), gates (H).
struct Point {
  Numbers q, k, v, map_q, map_k, gate;
  std::vector<Numbers*> all() { return {&q, &k, &v, &map_q, &map_k, &gate}; }
};

/// One layer of heads with a gate, queries, keys and values that want gradients, and what the result is multiplied by.
struct Layer {
  Parameters parameters{Dtype::f64};
  Attention attention;
  AttentionHeads heads;
  Tensor cotangent, documents;
  std::string map;

  explicit Layer(const std::string& kind, bool with_documents, bool decay_gate = true) : map(kind) {
    Attention::Options o;
    o.heads = H;
    o.width = H * D;
    o.kind = kind;
    o.features.performer_features = 6;
    o.decay_gate = decay_gate;
    attention = Attention(parameters, "attn", o);
    std::uint32_t id = 0;
    for (Tensor* x : {&heads.q, &heads.k, &heads.v}) {
      *x = parameter({B, T, H, D}, "x", Dtype::f64);
      x->copy_from(draw(B * T * H * D, 5, ++id));
    }
    for (const Tensor& p : parameters.all())
      if (p.name().starts_with("attn.map")) p.copy_from(draw(H * D * D, 5, ++id));
    cotangent = constant({B, T, H, D}, draw(B * T * H * D, 5, ++id), Dtype::f64);
    if (with_documents) documents = constant({B, T}, {0, 0, 0, 0, 4, 4, 4, 7, 7, 0, 1, 1, 1, 1, 1, 1, 1, 1}, Dtype::i32);
  }

  Tensor parameter_of(const char* name) const {
    for (const Tensor& p : parameters.all())
      if (p.name() == std::string("attn.") + name) return p;
    return {};
  }
  void set_gate(const Numbers& w) const { parameter_of("decay_gate").copy_from(w); }
  Tensor loss() const { return sum(attention.attend(heads, {.document_start = documents}) * cotangent); }

  Point point() const {
    const auto numbers = [](const Tensor& x) { return x ? x.to_vector() : Numbers{}; };
    return {numbers(heads.q), numbers(heads.k), numbers(heads.v), numbers(parameter_of("map_q.weight")), numbers(parameter_of("map_k.weight")),
            numbers(parameter_of("decay_gate"))};
  }
  Point gradient() const {
    const auto numbers = [](const Tensor& x) { return x ? x.grad().to_vector() : Numbers{}; };
    return {numbers(heads.q), numbers(heads.k), numbers(heads.v), numbers(parameter_of("map_q.weight")), numbers(parameter_of("map_k.weight")),
            numbers(parameter_of("decay_gate"))};
  }

  /// phi of one vector of head h.
  Numbers features(const double* x, const Numbers& weight, std::int64_t h) const {
    Numbers u(std::size_t(D), 0), phi;
    if (map == "performer") {
      const Numbers w = attention.projection().to_vector();
      const double scale = std::pow(double(D), -0.25);
      double square = 0;
      for (std::int64_t d = 0; d < D; ++d) square += x[d] * x[d] * scale * scale;
      for (std::size_t r = 0; r < w.size() / D; ++r) {
        double product = 0;
        for (std::int64_t d = 0; d < D; ++d) product += w[r * D + std::size_t(d)] * x[d] * scale;
        phi.push_back(std::exp(product - square / 2) / std::sqrt(double(w.size() / D)));
      }
      return phi;
    }
    for (std::int64_t e = 0; e < D; ++e)
      for (std::int64_t d = 0; d < D; ++d)
        u[std::size_t(e)] += weight.empty() ? (d == e ? x[d] : 0) : x[d] * weight[std::size_t((h * D + d) * D + e)];
    const double factor = map == "hedgehog-joint" ? 2 : 1;
    double plus = 0, minus = 0;
    for (double e : u) phi.push_back(std::exp(factor * e)), plus += phi.back();
    if (map == "exp") return phi;
    for (double e : u) phi.push_back(std::exp(-factor * e)), minus += phi.back();
    for (std::size_t f = 0; f < phi.size(); ++f)
      phi[f] /= map == "hedgehog-softmax" ? (f < std::size_t(D) ? plus : minus) : map == "hedgehog-joint" ? plus + minus : 1;
    return phi;
  }

  /// What is looked at (analyze, distillation) is what attention computes with: the weights of its features are those of attend.
  void check_features() const {
    const no_grad guard;
    const MappedHeads mapped = attention.features(heads);
    CHECK(mapped.logarithmic);
    LinearAttentionOptions o;
    o.map = "exp";
    const Numbers again = linear_attention(mapped.q, mapped.k, heads.v, o).o.to_vector(), once = attention.attend(heads).to_vector();
    for (std::size_t i = 0; i < once.size(); ++i) CHECK(again[i] == once[i]);
  }

  /// sum of o times the cotangent, with exp(-g (i - j)) as it is written.
  double dense(const Point& p) const {
    const Numbers G = cotangent.to_vector(), starts = documents ? documents.to_vector() : Numbers(std::size_t(B * T), 0);
    double loss = 0;
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t h = 0; h < H; ++h) {
        const auto at = [&](std::int64_t t) { return std::size_t(((b * T + t) * H + h) * D); };
        std::vector<Numbers> keys;
        for (std::int64_t j = 0; j < T; ++j) keys.push_back(features(&p.k[at(j)], p.map_k, h));
        for (std::int64_t i = 0; i < T; ++i) {
          const Numbers query = features(&p.q[at(i)], p.map_q, h);
          double above = 0, below = 0;
          for (std::int64_t j = std::int64_t(starts[std::size_t(b * T + i)]); j <= i; ++j) {
            double weight = 0, value = 0;
            for (std::size_t f = 0; f < query.size(); ++f) weight += query[f] * keys[std::size_t(j)][f];
            if (!p.gate.empty()) weight *= std::exp(-softplus(p.gate[std::size_t(h)]) * double(i - j));
            for (std::int64_t d = 0; d < D; ++d) value += p.v[at(j) + std::size_t(d)] * G[at(i) + std::size_t(d)];
            above += weight * value;
            below += weight;
          }
          loss += above / below;
        }
      }
    return loss;
  }
};

GptOptions small(const std::string& attention) {
  GptOptions o = small_gpt(attention);
  o.decay_gate = true;
  return o;
}

void set_gates(Gpt& model, double w) {
  Parameters& p = model.parameters();
  for (const Tensor& t : p.all())
    if (t.name().ends_with("decay_gate")) p.assign(t, Numbers(std::size_t(t.size()), w));
}

}  // namespace

TEST_CASE("decay gate: loss and gradients are those of the formula over all pairs, documents included") {
  for (const char* map : kMaps)
    for (const bool documents : {false, true}) {
      CAPTURE(std::string(map));
      CAPTURE(documents);
      const Layer layer(map, documents);
      layer.set_gate({-2, 0.3, 1.5});  // half of a weight is lost in 5.5, 0.8 and 0.4 tokens
      const Tensor loss = layer.loss();
      backward(loss);
      Point point = layer.point(), gradient = layer.gradient();
      CHECK(loss.to_vector()[0] == doctest::Approx(layer.dense(point)).epsilon(1e-12));
      if (!documents) layer.check_features();
      const std::vector<Numbers*> numbers = point.all(), found = gradient.all();
      for (std::size_t n = 0; n < numbers.size(); ++n) {
        CAPTURE(n);
        double most = 0, error = 0;
        for (std::size_t i = 0; i < numbers[n]->size(); ++i) {
          double& x = (*numbers[n])[i];
          const double kept = x, step = 1e-5;
          x = kept + step;
          const double up = layer.dense(point);
          x = kept - step;
          const double down = layer.dense(point);
          x = kept;
          most = std::max(most, std::abs((*found[n])[i]));
          error = std::max(error, std::abs((up - down) / (2 * step) - (*found[n])[i]));
        }
        // central differences: step^2 of the third derivatives, and rounding of 1e-15 / step
        CHECK(error <= 1e-7 * std::max(most, 0.1));
        if (!numbers[n]->empty()) CHECK(most > 1e-3);
      }
    }
}

TEST_CASE("decay gate: heads start with RetNet's rates, and without decay weights are those without a gate") {
  for (const char* map : kMaps)
    for (const bool documents : {false, true}) {
      CAPTURE(std::string(map));
      const no_grad guard;
      const Layer gated(map, documents), plain(map, documents, false);
      gated.set_gate({-1e4, -800, -745});  // softplus is 0 in f64
      CHECK(gated.loss().to_vector()[0] == doctest::Approx(plain.loss().to_vector()[0]).epsilon(1e-12));
      gated.set_gate({-1e4, 1e4, -1e4});  // the second head sees the last token alone
      const Numbers o = gated.attention.attend(gated.heads, {.document_start = gated.documents}).to_vector(), v = gated.heads.v.to_vector();
      for (std::int64_t n = 0; n < B * T; ++n)
        for (std::int64_t d = 0; d < D; ++d) CHECK(o[std::size_t((n * H + 1) * D + d)] == doctest::Approx(v[std::size_t((n * H + 1) * D + d)]));
    }
  Parameters parameters(Dtype::f64), one(Dtype::f64);
  Attention::Options o;
  o.heads = 8, o.width = 32, o.decay_gate = true;
  Attention(parameters, "a", o);
  const Numbers w = parameters.values(parameters.find("a.decay_gate"));
  for (std::size_t h = 0; h < 8; ++h) CHECK(softplus(w[h]) == doctest::Approx(-std::log(1 - std::exp2(-5 - double(h)))));
  o.heads = 1, o.width = 4;
  Attention(one, "a", o);
  CHECK(softplus(one.values(one.find("a.decay_gate"))[0]) == doctest::Approx(-std::log(1 - std::exp2(-12))));
}

TEST_CASE("decay gate: far positions and fast decay stay finite, and right in f32 as far as g T is exact there") {
  const no_grad guard;
  constexpr std::int64_t kTokens = 4000;
  Parameters wide(Dtype::f64), narrow(Dtype::f32);
  Attention::Options options;
  options.heads = 2, options.width = 8, options.decay_gate = true;
  const Attention exact(wide, "a", options), rounded(narrow, "a", options);
  const Numbers gates{std::log(std::expm1(0.03)), 3};  // RetNet's fastest; e^-3 a token is e^-12,000 over all
  for (Parameters* p : {&wide, &narrow}) p->assign(p->find("a.decay_gate"), gates);
  const auto heads = [&](Dtype dtype) {
    AttentionHeads h;
    std::uint32_t id = 0;
    for (Tensor* x : {&h.q, &h.k, &h.v}) *x = constant({1, kTokens, 2, 4}, draw(kTokens * 8, 3, ++id), dtype);
    return h;
  };
  const Numbers good = exact.attend(heads(Dtype::f64)).to_vector(), found = rounded.attend(heads(Dtype::f32)).to_vector();
  double error[2] = {};
  for (std::size_t i = 0; i < good.size(); ++i) {
    REQUIRE(std::isfinite(found[i]));
    error[i / 4 % 2] = std::max(error[i / 4 % 2], std::abs(found[i] - good[i]));
  }
  // values are of size 3; a logarithm of g T has an error of g T 2^-24, twice over
  CHECK(error[0] <= 2 * 3 * 0.03 * kTokens * 0x1p-24 + 1e-5);
  CHECK(error[1] <= 2 * 3 * 3 * kTokens * 0x1p-24 + 1e-5);
}

TEST_CASE("decay gate: decoding gives the logits of the whole text, and documents are apart") {
  for (const char* attention : kMaps)
    for (const char* positions : {"rotary", "learned"}) {
      CAPTURE(std::string(attention));
      CAPTURE(std::string(positions));
      GptOptions o = small(attention);
      o.positions = positions;
      o.short_convolution = o.positions == "rotary" ? 3 : 0;
      Gpt model(o);
      set_gates(model, -0.5);
      CHECK(model.parameters().count() == parameter_count(o));
      Batch b = counting_batch(1, 12, 11, 4);
      const Tensor tokens = input({1, 12}, "tokens", Dtype::i32), documents = input({1, 12}, "documents", Dtype::i32);
      copy_ids(b.tokens, tokens);
      const no_grad guard;
      const Numbers whole = model.logits(model.hidden(tokens)).to_vector();
      Generator generator(model, 12);
      for (std::size_t t = 0; t < 12; ++t) {
        generator.read(std::span(&b.tokens[t], 1));
        const Numbers logits = generator.logits();
        // as without a gate: some 20 products and sums of up to 64 terms
        for (std::size_t v = 0; v < 11; ++v) CHECK(std::abs(logits[v] - whole[t * 11 + v]) <= 20 * 64 * 0x1p-24 * std::max(1.0, largest(whole)));
      }
      copy_ids({0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5}, documents);
      const Numbers before = model.hidden(tokens, {documents, {}, {}}).to_vector();
      for (int t = 0; t < 5; ++t) b.tokens[std::size_t(t)] = 10 - b.tokens[std::size_t(t)];
      copy_ids(b.tokens, tokens);
      const Numbers after = model.hidden(tokens, {documents, {}, {}}).to_vector();
      for (std::size_t i = 5 * 16; i < before.size(); ++i) CHECK(before[i] == after[i]);
      CHECK(before[0] != after[0]);
    }
}

TEST_CASE("decay gate: a model with it learns a batch by heart, in planned memory with little of it too, and its gate learns") {
  std::vector<double> losses;
  constexpr int kSteps = 100;
  for (const Bytes arena : {StepShape::kUnlimited, Bytes(1)}) {
    const bool whole = arena == StepShape::kUnlimited;
    Gpt model(small("hedgehog"));
    const Numbers start = model.parameters().values(model.parameters().find("h.1.attn.decay_gate"));
    TrainingStep step(model, {.rows = 3, .context = 12, .arena = arena}, {.weight_decay = 0}, 1);
    const std::vector<Batch> batch{counting_batch(3, 12, 11, 3)};
    for (int i = 0; i < (whole ? kSteps : 5); ++i) losses.push_back(step.run(batch, 1e-2).loss);
    if (whole) CHECK(losses.back() < 0.05);
    CHECK(model.parameters().values(model.parameters().find("h.1.attn.decay_gate")) != start);
  }
  for (std::size_t i = 0; i < 5; ++i) CHECK(losses[i] == losses[kSteps + i]);
}

TEST_CASE("decay gate: where it cannot be it is refused with a sentence") {
  for (const char* attention : {"softmax", "elu", "relu", "t2r", "taylor", "cosformer"}) {
    CAPTURE(std::string(attention));
    CHECK_THROWS_WITH_AS(Gpt{small(attention)}, doctest::Contains("a decay gate is part of the logarithms of features"), ShapeError);
  }
  GptOptions o = small("hedgehog");
  o.window = 4;
  CHECK_THROWS_WITH_AS(Gpt{o}, doctest::Contains("does not go with a window"), ShapeError);
}

TEST_CASE("cli: a run with a decay gate is saved, resumed bit for bit, evaluated, looked at, and refused where it cannot be") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text() + "\n<|endoftext|>\n" + some_text());
  const std::string at = d.path().string();
  const std::string train = std::string("train --data=text.txt --schedule=constant ") + kSmall;
  REQUIRE(run_program(train + "--decay_gate --out=whole", at).code == 0);
  REQUIRE(run_program(train + "--decay_gate --out=parts --stop_at=3", at).code == 0);
  REQUIRE(run_program("train --quiet --resume=parts", at).code == 0);
  for (const char* file : {"/last/model.safetensors", "/last/optimizer.safetensors"})
    CHECK(bytes_of(d / (std::string("parts") + file)) == bytes_of(d / (std::string("whole") + file)));
  CHECK(contains(bytes_of(d / "whole/last/model.safetensors"), "h.0.attn.decay_gate"));
  const std::string state = bytes_of(d / "whole/last/state.json"), loss = run_program("eval --checkpoint=whole --json --batch=2", at).output;
  const auto number = [](const std::string& text, const std::string& name) { return std::stod(text.substr(text.find(name) + name.size())); };
  CHECK(number(loss, "\"loss\":") == number(state, "\"last_validation\":"));
  CHECK(run_program("sample --checkpoint=whole --tokens=5 --prompt=the", at).code == 0);
  CHECK(run_program("analyze --checkpoint=whole --lengths=8", at).code == 0);
  check_refused(run_program("train --quiet --steps=8 --resume=whole --decay_gate=false", at), 2, {"--decay_gate", "cannot change"});
  check_refused(run_program(train + "--decay_gate --attention=softmax", at), 2, {"--decay_gate", "--attention=softmax", "performer"});
  check_refused(run_program(train + "--decay_gate --attention=elu", at), 2, {"--decay_gate", "--attention=elu"});
  check_refused(run_program(train + "--decay_gate --window=4", at), 2, {"--decay_gate", "--window=4"});
  std::string damaged = state;
  damaged.replace(damaged.find("\"decay_gate\": true"), 18, "\"decay_gate\": 7");
  d.file("whole/last/state.json", damaged);
  check_refused(run_program("eval --checkpoint=whole", at), 3, {"model.decay_gate", "true or false"});
  damaged.replace(damaged.find("\"decay_gate\": 7"), 15, "\"decay_gate\": false");
  d.file("whole/last/state.json", damaged);
  check_refused(run_program("eval --checkpoint=whole", at), 3, {"model.safetensors", "parameters"});
}

}  // namespace hedgehog
