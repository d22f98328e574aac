#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/random.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/analysis_page.h"
#include "train/rank_correlation.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

std::vector<double> normal(std::int64_t count, std::uint32_t id, double scale = 1) {
  std::vector<double> x;
  for (std::int64_t i = 0; i < count; ++i) x.push_back(scale * Random{11, id, 0}.normal(std::uint64_t(i)));
  return x;
}

LayerVectors some_vectors(std::int64_t T, std::int64_t H = 2, std::int64_t D = 4) {
  return {T, H, D, normal(T * H * D, 1, 1.5), normal(T * H * D, 2, 1.5), {}};
}

WeightSource score_source(double factor) {
  return {.name = "scores", .of_score = [factor](double s) { return factor * s; }};
}

/// Ranks by counting, without sorting.
std::vector<double> counted_ranks(const std::vector<double>& x) {
  std::vector<double> ranks;
  for (double a : x) {
    double below = 0, equal = 0;
    for (double b : x) below += b < a, equal += b == a;
    ranks.push_back(below + (equal + 1) / 2);
  }
  return ranks;
}

double pearson(const std::vector<double>& x, const std::vector<double>& y) {
  double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) mx += x[i] / double(x.size()), my += y[i] / double(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) xx += (x[i] - mx) * (x[i] - mx), yy += (y[i] - my) * (y[i] - my), xy += (x[i] - mx) * (y[i] - my);
  return xy / std::sqrt(xx * yy);
}

/// All five from whole rows of plain features, in the open.
WeightMeasures dense(const LayerVectors& v, const std::vector<double>& fq, const std::vector<double>& fk, std::int64_t F, std::int64_t head) {
  WeightMeasures m;
  std::vector<double> all_scores, all_weights;
  double rows = 0, shared = 0, ranked = 0;
  for (std::int64_t i = 0; i < v.tokens; ++i) {
    std::vector<double> s, a, p;
    double sum_a = 0, sum_p = 0;
    for (std::int64_t j = v.first_seen(i); j <= i; ++j) {
      double score = 0, weight = 0;
      for (std::int64_t d = 0; d < v.width; ++d) score += v.q[std::size_t((i * v.heads + head) * v.width + d)] * v.k[std::size_t((j * v.heads + head) * v.width + d)];
      for (std::int64_t f = 0; f < F; ++f) weight += fq[std::size_t((i * v.heads + head) * F + f)] * fk[std::size_t((j * v.heads + head) * F + f)];
      s.push_back(score), a.push_back(weight), p.push_back(std::exp(score / std::sqrt(double(v.width))));
      sum_a += weight, sum_p += p.back();
    }
    double entropy = 0;
    for (std::size_t j = 0; j < a.size(); ++j) {
      a[j] /= sum_a, p[j] /= sum_p;
      entropy -= a[j] * std::log(a[j]);
      m.divergence += p[j] * std::log(p[j] / a[j]);
    }
    m.entropy += entropy, ++rows;
    if (a.size() >= 2) m.entropy_share += entropy / std::log(double(a.size())), ++shared;
    if (a.size() >= 3) m.rank_in_rows += pearson(counted_ranks(s), counted_ranks(a)), ++ranked;
    all_scores.insert(all_scores.end(), s.begin(), s.end());
    all_weights.insert(all_weights.end(), a.begin(), a.end());
  }
  m.entropy /= rows, m.divergence /= rows, m.entropy_share /= shared, m.rank_in_rows /= ranked;
  m.rank_pooled = pearson(counted_ranks(all_scores), counted_ranks(all_weights));
  return m;
}

void check_equal(const WeightMeasures& a, const WeightMeasures& b) {
  for (const MeasureColumn& c : measure_columns()) {
    CAPTURE(c.name);
    CHECK(a.*c.value == doctest::Approx(b.*c.value).epsilon(1e-10));
  }
}

Gpt small_model(const std::string& attention, std::int64_t layers = 2, std::int64_t heads = 2, std::int64_t width = 16) {
  GptOptions o;
  o.layers = layers, o.heads = heads, o.width = width, o.context = 24, o.vocabulary = 11, o.attention = attention, o.dtype = Dtype::f64, o.embedding_init = 1;
  return Gpt(o);
}

Batch some_text(std::int64_t T, bool documents) {
  Batch text{1, T, {}, {}, {}, 0};
  for (std::int64_t i = 0; i < T; ++i) {
    text.tokens.push_back(std::int32_t(Random{5, 1, 0}.below(std::uint64_t(i), 11)));
    text.document_start.push_back(documents && i >= 9 ? 9 : 0);
  }
  return text;
}

}  // namespace

TEST_CASE("analysis: rank correlation by hand, with ties") {
  CHECK(mean_ranks(std::vector<double>{4, 2, 2, 1, 2}) == std::vector<double>{5, 3, 3, 1, 3});
  // ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5)
  CHECK(rank_correlation(std::vector<double>{1, 2, 2, 4}, std::vector<double>{10, 30, 20, 40}) == doctest::Approx(4.5 / std::sqrt(22.5)).epsilon(1e-15));
  CHECK(rank_correlation(std::vector<double>{1, 2, 3}, std::vector<double>{-1, -5, -INFINITY}) == doctest::Approx(-1));
  CHECK(rank_correlation(std::vector<double>{1, 2, 3}, std::vector<double>{7, 7, 7}) == 0);
  CHECK(rank_correlation(std::vector<double>{}, std::vector<double>{}) == 0);
}

TEST_CASE("analysis: uniform weights have the entropy ln n, one-hot ones 0") {
  const std::int64_t T = 150;
  const LayerVectors v = some_vectors(T);
  double mean = 0;
  for (std::int64_t i = 0; i < T; ++i) mean += std::log(double(i + 1)) / double(T);
  const auto m = measure_layer(v, {softmax_weights(), score_source(0), score_source(1e7), score_source(-1)}, {});
  for (const std::size_t head : {0, 1}) {
    CHECK(m[0][head].rank_in_rows == doctest::Approx(1).epsilon(1e-14));
    CHECK(m[0][head].divergence == 0);
    CHECK(m[1][head].entropy == doctest::Approx(mean).epsilon(1e-13));
    CHECK(m[1][head].entropy_share == doctest::Approx(1).epsilon(1e-13));
    CHECK(m[1][head].rank_in_rows == 0);
    // ln n less the teacher's entropy
    CHECK(m[1][head].divergence == doctest::Approx(mean - m[0][head].entropy).epsilon(1e-11));
    CHECK(m[2][head].entropy < 1e-9);
    CHECK(m[2][head].rank_in_rows == doctest::Approx(1).epsilon(1e-14));
    CHECK(m[3][head].rank_in_rows == doctest::Approx(-1).epsilon(1e-14));
  }
}

TEST_CASE("analysis: measures equal those of whole weights made in the open, with several documents too") {
  for (const bool documents : {false, true}) {
    CAPTURE(documents);
    LayerVectors v = some_vectors(70);
    if (documents)
      for (std::int32_t i = 0; i < 70; ++i) v.document_start.push_back(i < 20 ? 0 : i < 21 ? 20 : i < 66 ? 21 : 66);
    for (const WeightSource& map : parameter_free_maps(v, 0, 1)) {
      CAPTURE(map.name);
      if (map.of_score) continue;
      std::vector<double> q = map.q, k = map.k;
      if (map.logarithmic)
        for (auto* side : {&q, &k})
          for (double& x : *side) x = std::exp(x);
      const auto m = measure_layer(v, {softmax_weights(), map}, {});
      for (std::int64_t head = 0; head < 2; ++head) check_equal(m[1][std::size_t(head)], dense(v, q, k, map.features, head));
    }
  }
}

TEST_CASE("analysis: the closed form of Taylor is the product of its features") {
  const LayerVectors v = some_vectors(40);
  const Tensor q = constant({1, 40, 2, 4}, v.q, Dtype::f64), k = constant({1, 40, 2, 4}, v.k, Dtype::f64);
  const WeightSource features{.name = "features", .features = 15, .q = taylor_features(q).to_vector(), .k = taylor_features(k).to_vector()};
  const auto m = measure_layer(v, {softmax_weights(), parameter_free_maps(v, 0, 1).back(), features}, {});
  for (const std::size_t head : {0, 1}) check_equal(m[1][head], m[2][head]);
}

TEST_CASE("analysis: features that lie hundreds of e-folds apart are summed by their logarithms") {
  const LayerVectors v = some_vectors(40);
  WeightSource plain{.name = "exp", .features = 3, .q = normal(240, 3), .k = normal(240, 4), .logarithmic = true}, far = plain;
  for (std::size_t i = 0; i < far.q.size(); ++i) {
    const double shift = i % 3 == 0 ? 500 : i % 3 == 1 ? -500 : 0;
    far.q[i] += shift, far.k[i] -= shift;
  }
  const auto m = measure_layer(v, {softmax_weights(), plain, far}, {});
  for (const std::size_t head : {0, 1}) check_equal(m[1][head], m[2][head]);
}

TEST_CASE("analysis: divergence and entropy are those of attention_cross_entropy, layer by layer of a model") {
  const std::int64_t T = 24;
  for (const bool documents : {false, true}) {
    const Gpt model = small_model("hedgehog");
    const Batch text = some_text(T, documents);
    const LengthAnalysis analysis = analyse_length(model, nullptr, {text}, documents, {});
    REQUIRE(analysis.maps.size() == 2);
    CHECK(analysis.maps[1].name == "hedgehog");
    const no_grad guard;
    std::vector<AttentionHeads> heads;
    AttentionContext context;
    context.heads = &heads;
    AttentionCrossEntropyOptions options;
    std::vector<double> starts(text.document_start.begin(), text.document_start.end()), ids(text.tokens.begin(), text.tokens.end());
    if (documents) context.document_start = options.document_start = constant({1, T}, starts, Dtype::i32);
    model.hidden(constant({1, T}, ids, Dtype::i32), context);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const MappedHeads mapped = model.attention(std::int64_t(layer)).features(heads[layer]);
      const auto rows = attention_cross_entropy(heads[layer].q, heads[layer].k, mapped.q, mapped.k, options);
      const std::vector<double> loss = rows.loss.to_vector(), entropy = rows.entropy.to_vector();
      for (std::size_t head = 0; head < 2; ++head) {
        double teacher = 0, divergence = 0;
        for (std::size_t i = head; i < loss.size(); i += 2) teacher += entropy[i] / T, divergence += (loss[i] - entropy[i]) / T;
        CHECK(analysis.maps[0].heads[layer][head].entropy == doctest::Approx(teacher).epsilon(1e-9));
        CHECK(analysis.maps[1].heads[layer][head].divergence == doctest::Approx(divergence).epsilon(1e-9));
      }
    }
  }
}

TEST_CASE("analysis: a drawn part of the rows changes the rank correlations little, and nothing else") {
  const LayerVectors v = some_vectors(300, 1, 4);
  const std::vector<WeightSource> sources{softmax_weights(), parameter_free_maps(v, 0, 1)[0]};
  const auto all = measure_layer(v, sources, {}), part = measure_layer(v, sources, {.pairs = 15000}), again = measure_layer(v, sources, {.pairs = 15000});
  CHECK(part[1][0].entropy == all[1][0].entropy);
  CHECK(part[1][0].divergence == all[1][0].divergence);
  CHECK(part[0][0].rank_in_rows == doctest::Approx(1).epsilon(1e-14));
  CHECK(part[1][0].rank_in_rows != all[1][0].rank_in_rows);
  CHECK(std::abs(part[1][0].rank_in_rows - all[1][0].rank_in_rows) < 0.05);
  CHECK(std::abs(part[1][0].rank_pooled - all[1][0].rank_pooled) < 0.05);
  CHECK(part[1][0].rank_pooled == again[1][0].rank_pooled);
}

TEST_CASE("analysis: vectors and features that are not finite, and students of another shape, are refused by name") {
  const LayerVectors v = some_vectors(20);
  WeightSource broken{.name = "mine", .features = 1, .q = std::vector<double>(40, 1), .k = std::vector<double>(40, 1)};
  broken.k[11] = NAN;  // head 2 of token 6
  CHECK(message_of<Error>([&] { measure_layer(v, {softmax_weights(), broken}, {}); }).find("the weights of mine attention in head 2 are no positive finite numbers at token 6") !=
        std::string::npos);
  broken.k.assign(40, 0);
  CHECK(message_of<Error>([&] { measure_layer(v, {softmax_weights(), broken}, {}); }).find("head 1") != std::string::npos);
  Gpt damaged = small_model("softmax");
  damaged.parameters().masters()[0].fill(NAN);
  CHECK(message_of<Error>([&] { read_vectors(damaged, some_text(5, false), false); }).find("layer 1 has queries or keys that are not finite") != std::string::npos);

  const Gpt softmax = small_model("softmax"), linear = small_model("hedgehog");
  const auto refusal = [&](const Gpt& model, const Gpt& student) { return message_of<UsageError>([&] { check_student(model, student); }); };
  CHECK(refusal(softmax, linear) == "");
  CHECK(refusal(linear, linear).find("the checkpoint has hedgehog attention") != std::string::npos);
  CHECK(refusal(softmax, softmax).find("has no maps") != std::string::npos);
  CHECK(refusal(softmax, small_model("hedgehog", 3)).find("has 3 layers, but the checkpoint has 2") != std::string::npos);
  CHECK(refusal(softmax, small_model("hedgehog", 2, 4)).find("has 4 heads, but the checkpoint has 2") != std::string::npos);
  CHECK(refusal(softmax, small_model("hedgehog", 2, 2, 32)).find("has 32 channels, but the checkpoint has 16") != std::string::npos);
}

TEST_CASE("analysis: the page shows the numbers of the JSON, and a student's maps") {
  const Gpt model = small_model("softmax"), student = small_model("hedgehog");
  const std::vector<Batch> texts{some_text(24, false)};
  Analysis analysis{.checkpoint = "a <b>", .attention = "softmax", .student = "s", .data = "text", .step = 7, .layers = 2, .heads = 2, .head_width = 8,
                    .options = {}, .lengths = {}, .pictures = {}};
  analysis.lengths.push_back(analyse_length(model, &student, texts, false, {}));
  analysis.pictures = draw_heads(model, &student, texts[0], false, 3, {});
  analysis.picture_length = 24;
  analysis.lengths[0].maps[2].heads[1][0].divergence = INFINITY;
  REQUIRE(analysis.pictures.size() == 3 * 10);
  // the student starts with the identity as its maps
  check_equal(analysis.lengths[0].maps[1].mean(), [&] {
    analysis.lengths[0].maps[2].heads[1][0].divergence = analysis.lengths[0].maps[1].heads[1][0].divergence;
    const WeightMeasures mean = analysis.lengths[0].maps[2].mean();
    analysis.lengths[0].maps[2].heads[1][0].divergence = INFINITY;
    return mean;
  }());
  for (const HeadPicture& picture : analysis.pictures)
    for (std::int64_t i = 0; i < picture.side; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < picture.side; ++j) sum += picture.cells[std::size_t(i * picture.side + j)];
      CHECK(sum == doctest::Approx(1));
    }
  const std::string html = analysis_html(analysis);
  const nlohmann::json json = nlohmann::json::parse(analysis_json(analysis).dump());
  const auto row = [](const std::string& name, const nlohmann::json& m) {
    std::string text = "<tr><td>" + name + "</td>";
    for (const char* key : {"entropy", "entropy_share", "rank_in_rows", "rank_pooled", "divergence"})
      text += m[key].is_null() ? "<td>∞</td>" : fmt::format("<td>{:.3f}</td>", m[key].get<double>());
    return text + "</tr>";
  };
  CHECK(json["lengths"][0]["length"] == 24);
  CHECK(json["lengths"][0]["maps"][1]["name"] == "student: hedgehog");
  CHECK(json["lengths"][0]["maps"][2]["mean"]["divergence"].is_null());
  CHECK(html.find("a &lt;b&gt;, step 7") != std::string::npos);
  std::size_t rows = 0;
  for (const auto& map : json["lengths"][0]["maps"]) {
    CHECK(html.find(row(map["name"], map["mean"])) != std::string::npos);
    for (std::size_t l = 0; l < 2; ++l) {
      CHECK(html.find(row(fmt::format("layer {}", l + 1), map["layers"][l]["mean"])) != std::string::npos);
      for (std::size_t h = 0; h < 2; ++h, ++rows)
        CHECK(html.find(row(fmt::format("layer {} head {}", l + 1, h + 1), map["layers"][l]["heads"][h])) != std::string::npos);
    }
  }
  CHECK(rows == 40);
}
