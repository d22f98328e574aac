#include "train/foreign_model.h"

#include <fmt/format.h>

#include "core/device.h"
#include "core/error.h"
#include "train/files.h"
#include "train/gguf.h"
#include "train/json_fields.h"
#include "train/strict_json.h"
#include "train/tokenizer_sentencepiece.h"
#include "train/tokenizer_wordpiece.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

/// vocab.txt, which does not say whether there are capitals: tokenizer_config.json may.
TokenizerPointer words_of(const fs::path& folder) {
  WordPieceVocabulary words = read_wordpiece_words(folder / "vocab.txt");
  const fs::path file = folder / "tokenizer_config.json";
  if (is_file(file)) {
    const nlohmann::json root = parse_strict_json(file, read_file(file, std::size_t(16) << 20), "config of a tokenizer", 16);
    const JsonFields f(root, file, "import", "the config is damaged");
    if (f.has("do_lower_case")) words.lowercase = f.get<bool>("do_lower_case", "true or false");
    if (f.has("tokenize_chinese_chars")) words.cjk = f.get<bool>("tokenize_chinese_chars", "true or false");
    words.strip_accents = f.has("strip_accents") ? f.get<bool>("strip_accents", "true or false") : words.lowercase;
  }
  return wordpiece_tokenizer_of(folder / "vocab.txt", std::move(words));
}

TokenizerPointer tokenizer_of(const fs::path& folder) {
  if (is_file(folder / "tokenizer.json")) return load_tokenizer(folder / "tokenizer.json");
  if (is_file(folder / "vocab.json") && is_file(folder / "merges.txt")) return make_tokenizer(folder.string(), "", 0);
  if (is_file(folder / "vocab.txt")) return words_of(folder);
  throw FileError(fmt::format("[import] {} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt nor vocab.txt",
                              folder.string()));
}

/// llama2.c's own name for the tokenizer of so many tokens, or the general one.
fs::path llama2c_tokenizer(const fs::path& folder, std::int64_t vocabulary) {
  for (const std::string& name : {fmt::format("tok{}.bin", vocabulary), std::string("tokenizer.bin")})
    if (is_file(folder / name)) return folder / name;
  throw FileError(fmt::format("[import] {} has no tokenizer for the model: neither tok{}.bin nor tokenizer.bin", folder.string(), vocabulary));
}

ForeignModel open_hugging_face(const fs::path& folder) {
  ForeignModel model;
  model.options = read_hugging_face_config(folder / "config.json", model.family);
  model.weights = safetensors_folder(folder);
  model.tokenizer = tokenizer_of(folder);
  return model;
}

ForeignModel open_llama2c_with_tokenizer(const fs::path& path) {
  ForeignModel model = open_llama2c(path);
  const fs::path file = llama2c_tokenizer(path.parent_path(), model.options.vocabulary);
  model.tokenizer = sentencepiece_tokenizer_of(file, read_llama2c_tokenizer(file, model.options.vocabulary));
  return model;
}

ForeignModel open_any(const fs::path& path) {
  if (!is_file(path)) return open_hugging_face(path);
  if (is_gguf(path)) return open_gguf(path);
  if (path.extension() == ".bin") return open_llama2c_with_tokenizer(path);
  throw FileError(fmt::format("[import] {} is a file of no known kind; give a folder of Hugging Face with a config.json, a GGUF file, or a "
                              "llama2.c model (.bin)", path.string()));
}

}  // namespace

bool is_foreign_model(const fs::path& path) { return is_file(path / "config.json") || is_file(path); }

ForeignModel open_foreign_model(const fs::path& path) {
  ForeignModel model = open_any(path);
  GptOptions& o = model.options;
  // tables are often padded behind the last token
  if (model.tokenizer->size() > o.vocabulary)
    throw FileError(fmt::format("[import] {}: the tokenizer has {} tokens, but the model {}; they do not belong together", path.string(),
                                model.tokenizer->size(), o.vocabulary));
  o.vocabulary = model.tokenizer->size();
  if (!current_device().host()) o.dtype = Dtype::bf16;
  return model;
}

}  // namespace hedgehog
