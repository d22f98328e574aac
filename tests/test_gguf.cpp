#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "tests/foreign_cases.h"
#include "train/gguf.h"
#include "train/gguf_names.h"
#include "train/safetensors.h"

// GGUF files give here what PyPI's gguf and transformers make of them: fixtures of tests/data/make_gguf_fixtures.py.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;

const fs::path kFiles = kModels / "gguf";

std::vector<float> read_all(const ForeignTensor& t) {
  std::vector<float> all(static_cast<std::size_t>(t.size()));
  t.read(0, t.size(), all.data());
  return all;
}

/// A fixture with other bytes.
struct Damaged {
  TemporaryDirectory directory;
  std::string good;
  explicit Damaged(const char* name) : good(read_file(kFiles / name)) {}
  /// What opening, and reading all of it, says of other bytes; empty if nothing.
  std::string message(const std::string& bytes) const {
    write_file(directory / "m.gguf", bytes);
    try {
      load_foreign_model(open_foreign_model(directory / "m.gguf"));
    } catch (const FileError& error) {
      return error.what();
    }
    return "";
  }
  /// The same with `old`, where it is first found, replaced by as many bytes.
  std::string with(const std::string& old, const std::string& now) const {
    std::string bytes = good;
    const std::size_t at = bytes.find(old);
    REQUIRE(at != std::string::npos);
    REQUIRE(old.size() == now.size());
    return bytes.replace(at, old.size(), now);
  }
  /// With a number put `behind` the end of a text.
  template <class T>
  std::string with_number(const std::string& text, std::size_t behind, T number) const {
    std::string bytes = good;
    const std::size_t at = bytes.find(text);
    REQUIRE(at != std::string::npos);
    std::memcpy(bytes.data() + at + text.size() + behind, &number, sizeof number);
    return bytes;
  }
};

}  // namespace

TEST_CASE("gguf: blocks of every format are what gguf makes of them, whole and in parts") {
  const GgufFile file(kFiles / "quantised.gguf");
  const SafetensorsFile expected(kFiles / "quantised.safetensors");
  CHECK(file.tensors().size() == 11);
  for (const auto& [name, tensor] : file.tensors()) {
    CAPTURE(name);
    REQUIRE(tensor.shape == std::vector<std::int64_t>{2, 256});
    CHECK(block_format(tensor.format).name == name);
    CHECK(block_format(tensor.format).elements <= kMostBlockElements);
    const auto* const numbers = static_cast<const float*>(expected.get(name).data);
    const std::vector<float> found = read_all(tensor);
    const std::int64_t each = block_format(tensor.format).elements;
    for (std::int64_t i = 0; i < 512; ++i) {
      // up to three roundings of products and differences no larger than twice the largest of a block
      float largest = 0;
      for (std::int64_t j = i / each * each; j < (i / each + 1) * each; ++j) largest = std::max(largest, std::abs(numbers[j]));
      CHECK(std::abs(found[std::size_t(i)] - numbers[i]) <= 6 * 0x1p-24f * largest);
    }
    for (const auto& [first, count] : {std::pair{5, 300}, {255, 2}, {256, 256}, {511, 1}, {31, 34}}) {
      std::vector<float> part(static_cast<std::size_t>(count));
      tensor.read(first, count, part.data());
      CHECK(std::equal(part.begin(), part.end(), found.begin() + first));
    }
  }
}

TEST_CASE("gguf: logits are those of the original library") {
  for (const auto& [name, expected] : {std::pair{"llama.gguf", kModels / "llama-grouped/expected.json"},
                                       {"qwen2.gguf", kModels / "qwen2/expected.json"}, {"llama3.gguf", kFiles / "llama3.json"}}) {
    CAPTURE(std::string(name));
    const ForeignModel foreign = open_gguf(kFiles / name);
    CHECK(error_of(load_foreign_model(foreign), expected_of(expected)) <= 1e-5);
  }
  CHECK(open_gguf(kFiles / "llama3.gguf").options.rotary_scaling == RotaryScaling{32, 1, 4, 8192});
}

TEST_CASE("gguf: the vocabulary is in the file, what pads it left out") {
  using Ids = std::vector<std::int32_t>;
  const ForeignModel llama = open_foreign_model(kFiles / "llama.gguf"), qwen2 = open_foreign_model(kFiles / "qwen2.gguf"),
                     llama3 = open_foreign_model(kFiles / "llama3.gguf");
  CHECK(llama.tokenizer->encode("the") == Ids{32});
  CHECK(llama.tokenizer->encode("he the") == Ids{3, 31, 32});
  CHECK(llama.tokenizer->frame().before == Ids{1});
  CHECK(llama.tokenizer->end() == 2);
  CHECK(llama.options.vocabulary == 50);
  for (const ForeignModel* model : {&qwen2, &llama3}) {
    CHECK(model->tokenizer->encode(" the in<|end|>12") == Ids{41, 2, 42, 1, 30, 31});
    CHECK(model->tokenizer->decode(Ids{41, 2, 42, 44}) == " the iner");
    CHECK(model->options.vocabulary == 45);
  }
  CHECK(qwen2.tokenizer->frame().before.empty());
  CHECK(llama3.tokenizer->frame().before == Ids{0});
  CHECK(hugging_face_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias");
  for (const char* unknown : {"", "blk.", "blk.3", "blk.attn_q", "blk.3.attn_q", "attn_q.weight", "blk.3.attn_w.weight"})
    CHECK(!hugging_face_name(unknown));
}

TEST_CASE("gguf: what is damaged or not supported is refused with file, key or tensor, and what would do") {
  const Damaged llama("llama.gguf"), pairs("qwen2.gguf"), scaled("llama3.gguf");
  const auto says = [](const std::string& message, std::initializer_list<const char*> parts) {
    CAPTURE(message);
    CHECK(contains(message, "m.gguf"));
    for (const char* part : parts) CHECK(contains(message, part));
  };
  const auto u32 = [](std::uint32_t x) { return std::string(reinterpret_cast<const char*>(&x), 4); };
  says(llama.message(llama.with("GGUF" + u32(3), "GGUF" + u32(1))), {"version 1", "2 and 3"});
  says(llama.message(llama.with("GGUF" + u32(3), "GGUF" + u32(0x03000000))), {"big-endian"});
  CHECK(llama.message(llama.with("GGUF" + u32(3), "GGUF" + u32(2))) == "");
  says(llama.message(llama.with("GGUF", "GGUX")), {"no known kind"});
  says(llama.message(llama.with_number("GGUF", 4, ~std::uint64_t{0})), {"tensor"});
  says(llama.message(llama.with_number("GGUF", 12, ~std::uint64_t{0})), {"key"});
  says(llama.message(llama.with("llama", "mamba")), {"'mamba'", "llama (Llama 2 and 3"});
  says(llama.message(llama.with("llama.block_count", "llama.block_counx")), {"no key 'llama.block_count'"});
  says(llama.message(llama.with("llama.block_count", "llama.feed_forwar")), {"no key 'llama.block_count'"});
  says(llama.message(llama.with_number("llama.block_count", 4, 0)), {"'llama.block_count'", "from 1 to 4096", "is 0"});
  says(llama.message(llama.with_number("llama.block_count", 4, 3)), {"lacks the tensor 'model.layers.2."});
  says(llama.message(llama.with_number("llama.block_count", 4, 1)), {"holds a tensor 'model.layers.1."});
  says(llama.message(llama.with_number("llama.attention.head_count", 4, 3)), {"heads must divide width"});
  // 1 TiB of parameters: refused by the tensors' shapes, before there is memory
  says(llama.message(llama.with_number("llama.feed_forward_length", 4, 1 << 22)), {"mlp.gate_proj.weight'"});
  says(llama.message(llama.with_number("llama.block_count", 0, 99)), {"'llama.block_count' has the type 99"});
  says(llama.message(llama.with_number("llama.rope.freq_base", 4, std::nanf(""))), {"'llama.rope.freq_base'", "finite"});
  says(llama.message(llama.with_number("tokenizer.ggml.scores", 0, std::uint32_t{6})), {"m.gguf"});
  says(llama.message(llama.with_number("tokenizer.ggml.scores", 8, std::uint64_t{1} << 62)), {"cut off or damaged"});
  says(llama.message(llama.with_number("tokenizer.ggml.scores", 4, std::uint32_t{9})), {"list of lists"});
  says(llama.message(llama.with_number("tokenizer.ggml.token_type", 16, 7)), {"token 0 has the type 7"});
  says(llama.message(llama.with_number("tokenizer.ggml.bos_token_id", 4, 50)), {"'tokenizer.ggml.bos_token_id'", "from 0 to 49"});
  says(llama.message(llama.with("tokenizer.ggml.tokens", "tokenizer.ggml.tokenx")), {"no key 'tokenizer.ggml.tokens'"});
  says(pairs.message(pairs.with("tokenizer.ggml.pre" + u32(8) + std::string("\5\0\0\0\0\0\0\0qwen2", 13),
                                "tokenizer.ggml.pre" + u32(8) + std::string("\5\0\0\0\0\0\0\0falco", 13))),
       {"'falco'", "smollm, starcoder, llama-bpe"});
  says(pairs.message(pairs.with("\xc4\xa0the", "\xc4\xa0thf")), {"merge 2"});
  says(pairs.message(pairs.with("<|end|>", "<|end|\xff")), {"token 1 is no UTF-8"});
  says(llama.message(llama.with("llama.rope.freq_base", "llama.residual_scale")), {"'llama.residual_scale' is 10000", "not supported"});
  // tensors: name, axes, sizes, format, offset
  says(llama.message(llama.with_number("token_embd.weight", 0, std::uint32_t{5})), {"'token_embd.weight' has 5 axes"});
  says(llama.message(llama.with_number("token_embd.weight", 4, std::uint64_t{0})), {"'token_embd.weight': axis 0 has 0 elements"});
  says(llama.message(llama.with_number("token_embd.weight", 12, ~std::uint64_t{0})), {"which cannot be"});
  says(llama.message(llama.with_number("token_embd.weight", 20, std::uint32_t{10})), {"has the format 10", "Q4_K"});
  says(llama.message(llama.with_number("token_embd.weight", 20, std::uint32_t{8})), {"not whole blocks of Q8_0: 32 each"});
  says(llama.message(llama.with_number("token_embd.weight", 24, std::uint64_t{33})), {"offset 33", "no multiple of 32"});
  says(llama.message(llama.with_number("token_embd.weight", 24, std::uint64_t{1} << 62)), {"cut off or damaged"});
  says(llama.message(llama.with_number("token_embd.weight", 24, ~std::uint64_t{31})), {"cut off or damaged"});
  says(llama.message(llama.with_number("blk.0.attn_q.weight", 24, std::uint64_t{0})), {"overlap"});
  says(llama.message(llama.with("blk.0.attn_q.weight", "blk.0.attn_k.weight")), {"'blk.0.attn_k.weight' is there twice"});
  says(llama.message(llama.with("blk.0.attn_q.weight", "blk.0.attn_r.weight")), {"lacks the tensor 'model.layers.0.self_attn.q_proj.weight'"});
  says(scaled.message(scaled.with_number("rope_freqs.weight", 4, std::uint64_t{8})), {"'rope_freqs.weight' must have 16 numbers, but has 8"});
  std::string other = scaled.good;
  const float twice[] = {2, 2};
  const std::size_t end = other.find(std::string("\0\0\x80\x3f\0\0\x80\x3f", 8));  // two frequencies that stay
  REQUIRE(end != std::string::npos);
  std::memcpy(other.data() + end, twice, sizeof twice);
  says(scaled.message(other), {"divides frequency", "other scalings"});
}

TEST_CASE("gguf: any file cut off, and any byte of a header changed, gives a model or an error") {
  const Damaged llama("llama.gguf"), pairs("qwen2.gguf");
  int refused = 0, opened = 0;
  for (std::size_t bytes = 0; bytes < llama.good.size(); bytes += 1 + bytes / 40) CHECK(llama.message(llama.good.substr(0, bytes)) != "");
  for (const Damaged* d : {&llama, &pairs}) {
    const std::size_t header = GgufFile(kFiles / (d == &llama ? "llama.gguf" : "qwen2.gguf")).tensors().size() * 60 + 2600;
    for (std::size_t at = 4; at < header; at += 3)
      for (const char change : {'\x01', '\x80', '\xff'}) {
        std::string bytes = d->good;
        bytes[at] = char(bytes[at] ^ change);
        ++(d->message(bytes).empty() ? opened : refused);
      }
  }
  CHECK(refused > 1000);
  CHECK(opened > 100);
}

TEST_CASE("cli: a GGUF file is imported, described and sampled from") {
  const TemporaryDirectory d;
  const std::string file = (kFiles / "llama.gguf").string();
  CHECK(contains(run_program("info --checkpoint=" + file, d.path().string()).output, "2 layers, 4 heads, width 16"));
  CHECK(run_program("sample --checkpoint=" + file + " --prompt=the --tokens=3 --device=cpu", d.path().string()).code == 0);
  const ProgramResult imported = run_program("import --from=" + file + " --out=run", d.path().string());
  CHECK(imported.code == 0);
  CHECK(run_program("sample --checkpoint=run --prompt=the --tokens=3 --device=cpu", d.path().string()).code == 0);
}

}  // namespace hedgehog
