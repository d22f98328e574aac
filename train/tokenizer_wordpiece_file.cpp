#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/files.h"
#include "train/hugging_face.h"
#include "train/tokenizer_wordpiece.h"

namespace hedgehog {

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestFile = size_t{1} << 26;  // bytes
constexpr int64_t kLongestWord = 10'000;          // characters

/// Reads a tokenizer.json with WordPiece.
class WordPieceJsonReader : HuggingFaceReader {
 public:
  using HuggingFaceReader::HuggingFaceReader;

  WordPieceVocabulary read() {
    // "truncation" and "padding" say how texts are put into batches, which encode does not
    const Json &model = member(json_, "model"), &normalizer = member(json_, "normalizer");
    const Json& longest = member(model, "max_input_chars_per_word");
    check_type(normalizer, "normalizer", "BertNormalizer", "BertNormalizer");
    check_type(member(json_, "pre_tokenizer"), "pre_tokenizer", "BertPreTokenizer", "BertPreTokenizer");
    check_type(member(json_, "decoder"), "decoder", "WordPiece", "WordPiece");
    if (member(model, "continuing_subword_prefix") != kContinuation)
      unsupported("model.continuing_subword_prefix", member(model, "continuing_subword_prefix"), "\"##\"");
    if (!longest.is_number_unsigned() || longest.get<uint64_t>() < 1 || longest.get<uint64_t>() > uint64_t(kLongestWord))
      unsupported("model.max_input_chars_per_word", longest, "a number from 1 to 10000");
    read_tokens();
    WordPieceVocabulary result;
    const Json& unknown = member(model, "unk_token");
    if (!unknown.is_string() || !reader_.has(unknown.get<std::string>())) unsupported("model.unk_token", unknown, "a token");
    result.unknown = reader_.id_of(unknown.get<std::string>());
    result.longest_word = longest.get<int64_t>();
    result.clean = flag(normalizer, "normalizer.", "clean_text", true);
    result.cjk = flag(normalizer, "normalizer.", "handle_chinese_chars", true);
    result.lowercase = flag(normalizer, "normalizer.", "lowercase", true);
    result.strip_accents = flag(normalizer, "normalizer.", "strip_accents", result.lowercase);
    result.frame = frame();
    BpeVocabulary tokens = reader_.finish();
    result.tokens = std::move(tokens.tokens);
    result.added = std::move(tokens.added);
    return result;
  }
};

}  // namespace

bool is_wordpiece_json(const Json& json) {
  return json.contains("model") && json["model"].is_object() && json["model"].contains("type") && json["model"]["type"] == "WordPiece";
}

WordPieceVocabulary read_wordpiece_json(const std::filesystem::path& file, const Json& json) {
  return WordPieceJsonReader(file, json).read();
}

WordPieceVocabulary read_wordpiece_words(const std::filesystem::path& file) {
  const std::string text = read_file(file, kLargestFile);
  WordPieceVocabulary v;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) fail_tokenizer(file, fmt::format("line {} is empty", v.tokens.size() + 1));
    v.tokens.push_back(std::move(line));
    begin = end + 1;
  }
  const auto id_of = [&](const char* token) {
    const auto found = std::find(v.tokens.begin(), v.tokens.end(), token);
    if (found == v.tokens.end()) fail_tokenizer(file, fmt::format("no line is {}", token));
    return int32_t(found - v.tokens.begin());
  };
  v.unknown = id_of("[UNK]");
  v.frame = {{id_of("[CLS]")}, {id_of("[SEP]")}};
  for (size_t id = 0; id < v.tokens.size(); ++id)
    for (const char* token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
      if (v.tokens[id] == token) v.added.push_back({int32_t(id)});
  return v;
}

std::string wordpiece_json(const WordPieceVocabulary& v) {
  std::string vocab;
  for (size_t id = 0; id < v.tokens.size(); ++id) vocab += fmt::format("{}\n   {}: {}", id == 0 ? "" : ",", json_text(v.tokens[id]), id);
  return fmt::format(R"({{
 "version": "1.0", "truncation": null, "padding": null,
 "added_tokens": {},
 "normalizer": {{"type": "BertNormalizer", "clean_text": {}, "handle_chinese_chars": {}, "strip_accents": {}, "lowercase": {}}},
 "pre_tokenizer": {{"type": "BertPreTokenizer"}},
 "post_processor": {},
 "decoder": {{"type": "WordPiece", "prefix": "{}", "cleanup": true}},
 "model": {{"type": "WordPiece", "unk_token": {}, "continuing_subword_prefix": "{}", "max_input_chars_per_word": {},
  "vocab": {{{}}}}}
}})", added_tokens_json(v.tokens, v.added), v.clean, v.cjk, v.strip_accents, v.lowercase, post_processor_json(v.tokens, v.frame),
                     kContinuation, json_text(v.tokens[size_t(v.unknown)]), kContinuation, v.longest_word, vocab);
}

}  // namespace hedgehog
