#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>

#include "core/text.h"
#include "nn/gpt.h"
#include "ops/ops.h"
#include "tests/tape_cases.h"
#include "train/step_page.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Json = nlohmann::ordered_json;

/// L = (x y + 3)^2.
Program scalar_program() {
  const Tensor x = leaf({}, {2}, "x"), y = leaf({}, {-1}, "y");
  return record([&] {
    const Tensor loss = named(square(named(x * y, "p") + 3.0), "L");
    backward(loss);
    return Tensors{loss};
  });
}

Tensor ids(Shape shape, std::int64_t step, std::int64_t vocabulary, const char* name) {
  const Tensor x = input(shape, name, Dtype::i32);
  for (std::int64_t i = 0; i < x.size(); ++i) x.as<std::int32_t>()[i] = std::int32_t((i * step + 1) % vocabulary);
  return x;
}

/// One block, two heads, eight tokens.
Program gpt_program(std::int64_t batch = 1) {
  GptOptions options;
  options.layers = 1;
  options.heads = 2;
  options.width = options.context = 8;
  options.vocabulary = 11;
  options.dtype = Dtype::f64;
  const Gpt model(options);
  const Tensor tokens = ids({batch, 8}, 3, 11, "tokens"), targets = ids({batch, 8}, 5, 11, "targets");
  return record([&] {
    const auto [loss, losses] = model.loss(tokens, targets);
    backward(loss);
    return Tensors{loss};
  });
}

/// A kink, logarithms that are not finite, a detached leaf, and a gradient that was planted wrong.
Program kink_program() {
  static const Op wrong = [] {
    Op op = find_op("square");
    op.backward.cpu = [](const Call& c) {
      for (std::int64_t i = 0; i < c.dx[0].size(); ++i) c.dx[0].as<double>()[i] = c.inputs[0].as<double>()[i] * c.dy[0].as<double>()[i];
    };
    return op;
  }();
  const Tensor x = leaf({3}, {0, 1, -2}, "x"), cut = leaf({3}, {1, 2, 3}, "cut"), false_one = leaf({3}, {1, 2, 3}, "wrong");
  return record([&] {
    const Tensor bad = named(log(x), "bad");
    const Tensor loss = sum(relu(x) * detach(cut)) + sum(apply(wrong, {}, {false_one})[0]);
    backward(loss);
    return Tensors{loss, bad};
  });
}

/// At least `steps` entries and 10 MB of numbers.
Program long_program(std::int64_t steps) {
  std::vector<double> start;
  for (int i = 0; i < 640; ++i) start.push_back(std::sin(i));
  const Tensor w = leaf({16, 40}, start, "w");
  return record([&] {
    Tensor x = w;
    for (std::int64_t i = 0; 2 * i < steps; ++i) {
      const Scope scope(fmt::format("part{}", i / 40));
      x = affine(x, i % 2 ? 1.01 : 0.99, 0.001 * double(i % 7));
    }
    const Tensor loss = mean(square(x));
    backward(loss);
    return Tensors{loss};
  });
}

/// The JSON of a page, as a browser finds it.
Json data_of(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const std::size_t begin = page.find(open);
  REQUIRE(begin != std::string::npos);
  const std::size_t from = begin + open.size();
  return Json::parse(page.substr(from, page.find("</script", from) - from));
}

const Json& tensor_of(const Json& data, const std::string& name) {
  for (const Json& t : data["tensors"])
    if (t["name"] == name) return t;
  FAIL("the page has no tensor " << name);
  return data;
}

}  // namespace

TEST_CASE("step page: every step, with its formula and links, and every tensor, with the trace's numbers") {
  const Stepper stepper(gpt_program());
  const Json data = data_of(step_page(stepper));
  REQUIRE(data["steps"].size() == stepper.size());
  for (std::size_t i = 0; i < stepper.size(); ++i) {
    const Entry& e = stepper.entries()[i];
    const Json& step = data["steps"][i];
    CHECK(step["op"] == e.op->name);
    CHECK(step["direction"] == (e.backward ? "backward" : "forward"));
    CHECK(step["scope"] == e.scope);
    CHECK(data["ops"][e.op->name]["backward"] == e.op->formula_backward);
    const auto wanted = std::count_if(e.dx.begin(), e.dx.end(), [](const Tensor& x) { return bool(x); });
    if (e.backward) CHECK(step["gradients"].size() == std::size_t(wanted));
  }
  std::set<std::string> names;
  for (const Json& t : data["tensors"]) {
    const std::string name = t["name"];
    CAPTURE(name);
    CHECK(names.insert(name).second);
    const Tensor x = stepper.find(name);
    for (const Json& version : t["versions"]) {
      const std::vector<double> values = stepper.trace().value(x, version["at"]);
      CHECK(version["statistics"]["count"] == values.size());
      for (std::size_t k = 0; k < values.size(); ++k) {
        const Json& shown = version.contains("fill") ? version["fill"] : version["numbers"].at(k);
        if (std::isfinite(values[k])) CHECK(shown.get<double>() == doctest::Approx(values[k]).epsilon(1e-8));
        else CHECK(shown.is_string());
      }
    }
  }
  for (const std::string& name : stepper.names()) CHECK(names.contains(name));
  CHECK(data["notices"].empty());
  CHECK(data["layers"].size() == 3);  // wte, h.0, ln_f
}

TEST_CASE("step page: terms, sums and checks of the gradients it explains") {
  const Json data = data_of(step_page(Stepper(scalar_program())));
  const Json& x = tensor_of(data, "x");
  REQUIRE(x["explained"].size() == 1);
  const Json& one = x["explained"][0];
  REQUIRE(one["terms"].size() == 1);
  CHECK(one["terms"][0]["upstream"] == 2);
  CHECK(one["terms"][0]["local"] == -1);
  CHECK(data["tensors"][one["terms"][0]["tensor"].get<std::size_t>()]["name"] == "p");
  CHECK(one["sum"] == -2);
  CHECK(one["check"]["passed"] == true);
  CHECK(x["direction"]["passed"] == true);
  CHECK(data["tensors"][x["gradient"].get<std::size_t>()]["name"] == "x.grad");
  const Json block = data_of(step_page(Stepper(gpt_program())));
  for (const Json& t : block["tensors"]) {
    if (!t.contains("explained")) continue;
    CAPTURE(t["name"].get<std::string>());
    CHECK(t["direction"]["passed"] == true);
    for (const Json& e : t["explained"]) CHECK(e["sum"].get<double>() == doctest::Approx(e["gradient"].get<double>()).epsilon(1e-6));
  }
}

TEST_CASE("step page: kinks, warnings and numbers that are not finite reach the page") {
  const Json data = data_of(step_page(Stepper(kink_program())));
  bool kink = false;
  for (const Json& e : tensor_of(data, "x")["explained"]) kink = kink || (e["element"] == 0 && e["check"]["kink"] == true);
  CHECK(kink);
  CHECK(data["warnings"].size() >= 1);
  CHECK(tensor_of(data, "bad")["versions"][0]["numbers"] == Json({"-inf", 0, "nan"}));
  CHECK(data["steps"][0]["finite"] == false);
  CHECK(!tensor_of(data, "cut.detached").contains("gradient"));
  CHECK(tensor_of(data, "wrong")["direction"]["passed"] == false);
}

TEST_CASE("step page: states and weights of linear attention, whose rows sum to 1 and end where the op's output is") {
  const Stepper stepper(gpt_program(2));
  std::size_t at = 0;
  while (stepper.entries()[at].op->name != "linear_attention") ++at;
  const Json data = data_of(step_page(stepper)), attention = data["steps"][at]["attention"];
  CHECK(attention["tokens"] == 8);
  CHECK(attention["shown"] == 8);
  REQUIRE(attention["heads"].size() == 2);
  const Entry& e = stepper.entries()[at];
  const std::vector<double> o = stepper.trace().value(e.outputs[0], at + 1);
  for (std::size_t h = 0; h < 2; ++h) {
    const Json& head = attention["heads"][h];
    for (std::size_t i = 0; i < 8; ++i) {
      double soft = 0, own = 0, output = 0;
      for (std::size_t j = 0; j < 8; ++j) {
        const double weight = head["weights"][i * 8 + j];
        soft += head["softmax"][i * 8 + j].get<double>();
        own += weight;
        output += weight * head["v"][j * 4].get<double>();
        if (j > i) CHECK(weight == 0);
      }
      CHECK(soft == doctest::Approx(1).epsilon(1e-4));
      CHECK(own == doctest::Approx(1).epsilon(1e-4));
      CHECK(output == doctest::Approx(o[(i * 2 + h) * 4]).epsilon(1e-3));
    }
    CHECK(head["measures"]["map"].size() == 5);
  }
  const Json small = step_page_data(stepper, {.bytes = 8000});
  CHECK(small["steps"][at]["attention"]["shown"] < 8);
  // made of primitive ops it has the same weights, but no values
  const Json composed = step_page_data(Stepper(stepper.expand(at)), {});
  for (std::size_t i = 0, maps = 0; i < composed["steps"].size(); ++i) {
    const Json& step = composed["steps"][i];
    if (step["op"] != "feature_map" || step["direction"] != "forward") continue;
    CHECK(step.contains("attention") == (++maps == 2));
    CHECK(step.contains("attention_at") == (maps == 1));
    if (maps == 2) CHECK(step["attention"]["heads"][1]["weights"] == attention["heads"][1]["weights"]);
  }
  const Tensor q = leaf({1, 3, 1, 2}, {1, 2, 3, 4, 5, 6}, "q");
  const Json both = step_page_data(Stepper(record([&] {
    const Tensor loss = sum(linear_attention(q, q, q, {.causal = false}).o);
    backward(loss);
    return Tensors{loss};
  })), {});
  CHECK(mentions(both["steps"][0]["attention"]["note"], "both sides"));
}

TEST_CASE("step page: gradients of a program in f32 are explained, but not checked, and the page says why") {
  const Tensor x = parameter({2}, "x");
  x.copy_from({1, 2});
  const Json data = step_page_data(Stepper(record([&] {
    const Tensor loss = sum(square(x));
    backward(loss);
    return Tensors{loss};
  })), {});
  CHECK(mentions(data["notices"][0], "f32"));
  CHECK(tensor_of(data, "x")["explained"][0]["sum"] == 4);
  CHECK(!tensor_of(data, "x")["explained"][0].contains("check"));
  CHECK(!tensor_of(data, "x").contains("direction"));
}

TEST_CASE("step page: names and titles are text, never markup") {
  const std::string evil = "</script><script>alert('x')</script><!--";
  const Tensor x = leaf({2}, {1, 2}, evil.c_str());
  const std::string page = step_page(Stepper(record([&] {
    const Scope scope(evil);
    const Tensor loss = sum(square(x));
    backward(loss);
    return Tensors{loss};
  })), {.title = fmt::format("{}\xff&{{}}", evil)});
  CHECK(page.find("alert('x')</script") == std::string::npos);
  CHECK(page.find("<!--") == std::string::npos);
  CHECK(page.find("&lt;/script&gt;&lt;script&gt;alert(&#39;x&#39;)") != std::string::npos);
  const Json data = data_of(page);
  CHECK(tensor_of(data, evil)["shape"] == Json({2}));
  std::size_t ends = 0;
  for (std::size_t i = page.find("</script"); i != std::string::npos; i = page.find("</script", i + 1)) ++ends;
  CHECK(ends == 2);
  CHECK(page.find("http://www.w3.org/2000/svg") == page.rfind("http"));
}

TEST_CASE("step page: what was cut is said, and whole rows are left") {
  const Stepper stepper(gpt_program());
  const std::string page = step_page(stepper, {.bytes = 4000, .tensors = 2});
  const Json data = data_of(page);
  REQUIRE(data["notices"].size() == 2);
  CHECK(mentions(data["notices"][0], "2 of"));
  CHECK(mentions(data["notices"][1], "cut"));
  std::size_t bytes = 0, explained = 0;
  for (const Json& t : data["tensors"]) {
    explained += t.contains("explained");
    for (const Json& version : t["versions"])
      if (version.contains("numbers")) bytes += version["numbers"].dump().size();
  }
  CHECK(explained == 2);
  CHECK(bytes <= 4000);
  CHECK(page.size() < step_page(stepper).size());
  const Json& table = tensor_of(data, "wte.weight");
  CHECK(table["versions"][0]["numbers"].size() < 88);
  CHECK(table["versions"][0]["statistics"]["count"] == 88);
}

TEST_CASE("step page: programs without backward, without steps, and wrong options") {
  const Tensor x = leaf({2}, {1, 2}, "x");
  const Json none = step_page_data(Stepper(record([&] { return Tensors{sum(x)}; })), {});
  CHECK(mentions(none["warnings"][0], "no backward pass"));
  CHECK(none["layers"].empty());
  CHECK(step_page_data(Stepper(Program{}), {})["steps"].empty());
  // what an update overwrites has a version for every step
  const Tensor total = state({2}, Dtype::f64, "total"), one = constant({2}, {10, 20}, Dtype::f64, "one");
  const Json updated = step_page_data(Stepper(record([&] {
    apply(add_to_state(), {}, {total, one});
    apply(add_to_state(), {}, {total, one});
    return Tensors{};
  })), {});
  CHECK(tensor_of(updated, "total")["versions"].size() == 3);
  CHECK(tensor_of(updated, "total")["versions"][2]["numbers"] == Json({20, 40}));
  CHECK(updated["steps"][1]["writes"].size() == 1);
  CHECK(mentions(error_of([&] { (void)step_page(Stepper(scalar_program()), {.bytes = 0}); }), "bytes must be at least 1, not 0"));
  CHECK(mentions(error_of([&] { (void)step_page(Stepper(scalar_program()), {.work = NAN}); }), "work must be above 0"));
  // little work: one tensor, and the page says so
  CHECK(mentions(step_page_data(Stepper(scalar_program()), {.work = 1})["notices"][0], "1 of 5"));
}

// pages for test_step_page_browser.sh, which gives the folder
TEST_CASE("step page: written for the browser") {
  const char* folder = std::getenv("HEDGEHOG_STEP_PAGES");
  if (!folder) return;
  const auto write = [&](const char* name, Program program, const StepPageOptions& options) {
    std::ofstream file(std::string(folder) + "/" + name, std::ios::binary);
    file << step_page(Stepper(std::move(program)), options);
    CHECK(file.good());
  };
  write("scalar.html", scalar_program(), {.title = "L = (x y + 3)^2"});
  write("gpt.html", gpt_program(), {.title = "One block of a Hedgehog GPT"});
  write("long.html", long_program(2000), {.title = "Two thousand steps", .bytes = 16 << 20, .terms = 4, .tensors = 4});
  const Stepper whole(gpt_program());
  for (std::size_t i = 0; i < whole.size(); ++i)
    if (whole.entries()[i].op->name == "linear_attention" && !whole.entries()[i].backward)
      write("composed.html", whole.expand(i), {.title = "Linear attention, op by op"});
  write("kinks.html", kink_program(), {.title = "Kinks and mistakes, with a title that is long enough to need a second line"});
  write("cut.html", gpt_program(2), {.title = "Cut short", .bytes = 6000, .tensors = 3});
}
