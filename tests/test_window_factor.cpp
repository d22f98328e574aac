#include <doctest/doctest.h>

#include <cmath>

#include "nn/distillation.h"
#include "tests/op_cases.h"
#include "train/analysis.h"
#include "train/window_factor.h"

namespace hedgehog {

using namespace test;

namespace {

GptOptions shape() {
  GptOptions o;
  o.layers = 2, o.heads = 2, o.width = 8, o.context = 24, o.vocabulary = 20, o.attention = "softmax", o.embedding_init = 1;
  o.dtype = Dtype::f64;
  return o;
}

Batch text_of(std::int64_t tokens, std::uint32_t seed) {
  Batch b;
  b.rows = 1, b.time = tokens;
  for (std::int64_t t = 0; t < tokens; ++t) b.tokens.push_back(std::int32_t((seed + std::uint32_t(t) * 7 + std::uint32_t(t * t) % 5) % 20));
  b.document_start.assign(std::size_t(tokens), 0);
  for (std::int64_t t = 15; t < tokens; ++t) b.document_start[std::size_t(t)] = 15;
  return b;
}

}  // namespace

TEST_CASE("match_window: what lies before the window weighs what it weighs in the teacher, on average over rows") {
  const Gpt teacher(shape());
  for (const char* map : {"hedgehog", "elu", "t2r"})
    for (const bool documents : {false, true}) {
      CAPTURE(std::string(map));
      CAPTURE(documents);
      GptOptions o = student_options(teacher.options(), map);
      o.window = 5;
      Gpt student(o);
      copy_weights(teacher, student);
      const std::vector<Batch> texts{text_of(24, 1), text_of(24, 4), text_of(4, 2)};
      match_window(teacher, student, texts, documents);
      for (std::int64_t l = 0; l < 2; ++l) {
        const std::vector<double> found = student.parameters().values(student.parameters().find("h." + std::to_string(l) + ".attn.log_factor"));
        for (std::int64_t h = 0; h < 2; ++h) {
          double sum = 0;
          int rows = 0;
          for (const Batch& text : texts) {  // the formula, pair by pair
            const LayerVectors v = read_vectors(teacher, text, documents)[std::size_t(l)];
            const WeightSource s = weights_of(student, l, v, map);
            for (std::int64_t i = 0; i < v.tokens; ++i) {
              double p = 0, a = 0;
              for (std::int64_t j = v.first_seen(i); j <= i - o.window; ++j) {
                double score = 0, product = 0;
                for (std::int64_t d = 0; d < v.width; ++d)
                  score += v.q[std::size_t((i * 2 + h) * v.width + d)] * v.k[std::size_t((j * 2 + h) * v.width + d)];
                for (std::int64_t f = 0; f < s.features; ++f) {
                  const double x = s.q[std::size_t((i * 2 + h) * s.features + f)], y = s.k[std::size_t((j * 2 + h) * s.features + f)];
                  product += s.logarithmic ? std::exp(x + y) : x * y;
                }
                p += std::exp(score / std::sqrt(double(v.width))), a += product;
              }
              if (p > 0 && a > 0) sum += std::log(a) - std::log(p), ++rows;
            }
          }
          REQUIRE(rows > 10);
          CHECK(found[std::size_t(h)] == doctest::Approx(sum / rows).epsilon(1e-12));
        }
      }
    }
}

}  // namespace hedgehog
