#include <fmt/core.h>

#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "train/config.h"
#include "train/files.h"
#include "train/hugging_face.h"
#include "train/strict_json.h"
#include "train/tokenizer.h"
#include "train/tokenizer_bpe.h"
#include "train/tokenizer_sentencepiece.h"
#include "train/tokenizer_wordpiece.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestFile = size_t{1} << 28;  // bytes
constexpr int kMaximumDepth = 8;                  // Hugging Face's files have 5

/// Reads a tokenizer.json; every error names the file.
class TokenizerReader {
 public:
  explicit TokenizerReader(const std::filesystem::path& file) : file_(file) {}

  TokenizerPointer read() {
    json_ = parse_strict_json(file_, read_file(file_, kLargestFile), "tokenizer", kMaximumDepth);
    if (json_.contains("model") && !json_.contains("hedgehog")) return hugging_face();
    if (text("hedgehog") != "tokenizer") fail("field 'hedgehog' is not \"tokenizer\": the file is not one of ours");
    if (!json_.contains("version") || json_["version"] != 1) fail("field 'version' is not 1");
    const std::string type = text("type");
    if (type == "byte") return byte_tokenizer();
    if (type == "char") return char_tokenizer(bytes());
    if (type == "sentencepiece") return sentencepiece_tokenizer_of(file_, read_sentencepiece_scores(file_, json_));
    if (type != "word" && type != "story")
      fail(fmt::format("field 'type' is '{}', not byte, char, word, story or sentencepiece", type));
    try {
      return type == "word" ? word_tokenizer(texts("tokens")) : story_tokenizer(texts("tokens"), texts("names"));
    } catch (const FileError&) {
      throw;
    } catch (const Error& error) {
      fail(error.what());
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    fail_tokenizer(file_, what);
  }

  TokenizerPointer hugging_face() const {
    if (is_wordpiece_json(json_)) return wordpiece_tokenizer_of(file_, read_wordpiece_json(file_, json_));
    if (is_sentencepiece_json(json_)) return sentencepiece_tokenizer_of(file_, read_sentencepiece_json(file_, json_));
    return bpe_tokenizer_of(file_, read_bpe_json(file_, json_));
  }

  std::string text(const char* field) const {
    if (!json_.contains(field) || !json_[field].is_string()) fail(fmt::format("field '{}' is not a string", field));
    return json_[field].get<std::string>();
  }

  std::vector<std::string> texts(const char* field) const {
    if (!json_.contains(field) || !json_[field].is_array()) fail(fmt::format("field '{}' is not a list", field));
    std::vector<std::string> result;
    for (const Json& item : json_[field]) {
      if (!item.is_string()) fail(fmt::format("field '{}' item {} is not a string", field, result.size()));
      result.push_back(item.get<std::string>());
    }
    return result;
  }

  std::string bytes() const {
    if (!json_.contains("bytes") || !json_["bytes"].is_array()) fail("field 'bytes' is not a list");
    std::string result;
    for (const Json& item : json_["bytes"]) {
      const bool fits = item.is_number_unsigned() && item.get<uint64_t>() < 256;
      if (!fits || (!result.empty() && uint8_t(result.back()) >= item.get<uint64_t>())) {
        fail(fmt::format("field 'bytes' item {} is not an ascending number from 0 to 255", result.size()));
      }
      result += char(uint8_t(item.get<uint64_t>()));
    }
    if (result.empty()) fail("field 'bytes' is empty");
    return result;
  }

  const std::filesystem::path& file_;
  Json json_;
};

/// The tokenizer of a directory: tokenizer.json, else GPT-2's two files under either pair of names.
TokenizerPointer tokenizer_of_directory(const std::filesystem::path& directory) {
  std::error_code error;
  if (std::filesystem::exists(directory / "tokenizer.json", error)) return load_tokenizer(directory / "tokenizer.json");
  for (const auto& [vocabulary, merges] : {std::pair("encoder.json", "vocab.bpe"), std::pair("vocab.json", "merges.txt")}) {
    if (std::filesystem::exists(directory / vocabulary, error))
      return bpe_tokenizer_of(directory / vocabulary, read_bpe_files(directory / vocabulary, directory / merges));
  }
  if (std::filesystem::exists(directory / "vocab.txt", error)) return load_tokenizer(directory / "vocab.txt");
  throw FileError(fmt::format("'{}' holds no tokenizer.json, nor encoder.json with vocab.bpe, nor vocab.json with "
                              "merges.txt, nor vocab.txt",
                              directory.string()));
}

}  // namespace

TokenizerPointer load_tokenizer(const std::filesystem::path& file) {
  if (file.extension() == ".bin") return sentencepiece_tokenizer_of(file, read_llama2c_tokenizer(file));
  if (file.extension() == ".txt") return wordpiece_tokenizer_of(file, read_wordpiece_words(file));
  return TokenizerReader(file).read();
}

void save_tokenizer(const Tokenizer& tokenizer, const std::filesystem::path& file) {
  write_file(file, tokenizer.to_json() + "\n");
}

TokenizerPointer make_tokenizer(const std::string& name, std::string_view text, int64_t vocabulary) {
  if (name == "byte") return byte_tokenizer();
  if (name == "char") return char_tokenizer(text);
  if (name == "word") return word_tokenizer(text, vocabulary);
  if (name == "bpe") return bpe_tokenizer(train_bpe(text, vocabulary));
  std::error_code error;
  const std::filesystem::path path(name);
  if (std::filesystem::is_directory(path, error)) return tokenizer_of_directory(path);
  if (std::filesystem::exists(path, error)) return load_tokenizer(path);
  const std::array<std::string, 4> kinds = {"byte", "char", "word", "bpe"};
  const std::string nearest = nearest_name(name, kinds);
  throw UsageError(
      fmt::format("--tokenizer expects byte, char, word, bpe or a directory that holds tokenizer.json, but got '{}'{}",
                  valid_utf8(name), nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest)));
}

}  // namespace hedgehog
