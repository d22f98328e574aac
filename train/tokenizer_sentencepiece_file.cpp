#include <fmt/core.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/files.h"
#include "train/hugging_face.h"
#include "train/tokenizer_sentencepiece.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::json;
using Type = SentencePieceType;

constexpr size_t kLargestFile = size_t{1} << 28;  // bytes

constexpr const char* kNormalizers = "a Sequence of Prepend of \"\u2581\" (or not) and Replace of \" \" by \"\u2581\"";
constexpr const char* kDecoders = "a Sequence of Replace, ByteFallback, Fuse, and Strip of one space where a space was put first";

/// Reads a tokenizer.json with BPE over characters.
class SentencePieceJsonReader : HuggingFaceReader {
 public:
  using HuggingFaceReader::HuggingFaceReader;

  SentencePieceVocabulary read() {
    for (const char* field : {"truncation", "padding", "pre_tokenizer"}) check_unset(json_, "", field);
    const Json& model = member(json_, "model");
    check_type(model, "model", "BPE", "BPE");
    for (const char* field : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"})
      check_unset(model, "model.", field);
    SentencePieceVocabulary result;
    result.prefix_space = prefix_of(member(json_, "normalizer"));
    check_decoder(member(json_, "decoder"), result.prefix_space);
    result.fuse_unknown = flag(model, "model.", "fuse_unk", false);
    read_tokens();
    read_merges();
    result.frame = frame();
    const int32_t unknown = unknown_id(member(model, "unk_token"));
    for (const char* end : {"</s>", "<eos>"})
      if (reader_.has(end) && result.end < 0) result.end = reader_.id_of(end);
    BpeVocabulary tokens = reader_.finish();
    result.types.assign(tokens.tokens.size(), Type::kNormal);
    result.tokens = std::move(tokens.tokens);
    result.merges = std::move(tokens.merges);
    result.added = std::move(tokens.added);
    for (size_t id = 0; id < result.tokens.size(); ++id)
      if (result.tokens[id].size() == 6 && result.tokens[id].starts_with("<0x")) result.types[id] = Type::kByte;
    for (const AddedToken& token : result.added)
      if (token.special) result.types[size_t(token.id)] = Type::kControl;
    if (unknown >= 0) result.types[size_t(unknown)] = Type::kUnknown;
    return result;
  }

 private:
  int32_t unknown_id(const Json& token) const {
    if (token.is_null()) return -1;
    if (!token.is_string() || !reader_.has(token.get<std::string>())) unsupported("model.unk_token", token, "a token or null");
    return reader_.id_of(token.get<std::string>());
  }

  bool prefix_of(const Json& value) const {
    const std::string field = "normalizer";
    const Json only = Json::array({value});
    const bool sequence = value.is_object() && member(value, "type") == "Sequence";
    const Json& list = sequence ? member(value, "normalizers") : only;
    if (!list.is_array() || list.empty() || list.size() > 2) unsupported(field, value, kNormalizers);
    for (const Json& item : list) check_type(item, field, &item == &list.back() ? "Replace" : "Prepend", kNormalizers);
    const Json& replace = list.back();
    if (member(replace, "content") != kSpaceMark || member(replace, "pattern") != Json{{"String", " "}})
      unsupported(field, replace, kNormalizers);
    if (list.size() == 2 && member(list[0], "prepend") != kSpaceMark) unsupported(field, list[0], kNormalizers);
    return list.size() == 2;
  }

  void check_decoder(const Json& value, bool prefix) const {
    const Json expected = decoders(prefix);
    const Json& list = value.is_object() ? member(value, "decoders") : value;
    if (!value.is_object() || member(value, "type") != "Sequence" || list != expected) unsupported("decoder", value, kDecoders);
  }

 public:
  static Json decoders(bool prefix) {
    Json list = {{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                 {{"type", "ByteFallback"}},
                 {{"type", "Fuse"}}};
    if (prefix) list.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    return list;
  }
};

/// A list of our own format, with a check of each item.
template <typename Item, typename Check>
std::vector<Item> items_of(const std::filesystem::path& file, const Json& json, const char* field, const char* what, const Check& check) {
  if (!json.contains(field) || !json[field].is_array()) fail_tokenizer(file, fmt::format("field '{}' is not a list", field));
  std::vector<Item> result;
  for (const Json& item : json[field]) {
    if (!check(item)) fail_tokenizer(file, fmt::format("field '{}' item {} is not {}", field, result.size(), what));
    result.push_back(item.get<Item>());
  }
  return result;
}

/// Walks over the bytes of a file.
class ByteReader {
 public:
  ByteReader(const std::filesystem::path& file, std::string content) : file_(file), content_(std::move(content)) {}

  std::string_view take(size_t count, int64_t id) {
    if (count > content_.size() - at_)
      fail_tokenizer(file_, fmt::format("it ends at byte {} inside token {}", content_.size(), id));
    at_ += count;
    return std::string_view(content_).substr(at_ - count, count);
  }
  template <typename Number>
  Number number(int64_t id) {
    uint32_t bits = 0;
    const std::string_view bytes = take(4, id);
    for (size_t i = 0; i < 4; ++i) bits |= uint32_t(uint8_t(bytes[i])) << 8 * i;
    return std::bit_cast<Number>(bits);
  }
  size_t at() const { return at_; }
  bool done() const { return at_ == content_.size(); }

 private:
  const std::filesystem::path& file_;
  std::string content_;
  size_t at_ = 0;
};

}  // namespace

bool is_sentencepiece_json(const Json& json) {
  return json.contains("model") && json["model"].is_object() && json["model"].contains("byte_fallback") &&
         json["model"]["byte_fallback"] == true;
}

SentencePieceVocabulary read_sentencepiece_json(const std::filesystem::path& file, const Json& json) {
  return SentencePieceJsonReader(file, json).read();
}

SentencePieceVocabulary read_sentencepiece_scores(const std::filesystem::path& file, const Json& json) {
  SentencePieceVocabulary v;
  v.tokens = items_of<std::string>(file, json, "tokens", "a string", [](const Json& item) { return item.is_string(); });
  v.scores = items_of<float>(file, json, "scores", "a number", [](const Json& item) { return item.is_number(); });
  const auto whole = [](uint64_t most) {
    return [most](const Json& item) { return item.is_number_unsigned() && item.get<uint64_t>() <= most; };
  };
  for (const uint8_t type : items_of<uint8_t>(file, json, "types", "a number from 0 to 6", whole(6))) v.types.push_back(Type(type));
  v.frame.before = items_of<int32_t>(file, json, "before", "an id", whole(INT32_MAX));
  v.frame.after = items_of<int32_t>(file, json, "after", "an id", whole(INT32_MAX));
  const std::vector<int32_t> ends = items_of<int32_t>(file, json, "end", "an id", whole(INT32_MAX));
  if (ends.size() > 1) fail_tokenizer(file, "field 'end' has more than one id");
  if (!ends.empty()) v.end = ends[0];
  if (json.value("space", Json()) != kSpaceMark && json.value("space", Json()) != " ")
    fail_tokenizer(file, "field 'space' is not \"\u2581\" or \" \"");
  if (!json.contains("prefix_space") || !json["prefix_space"].is_boolean())
    fail_tokenizer(file, "field 'prefix_space' is not true or false");
  v.space = json["space"].get<std::string>();
  v.prefix_space = json["prefix_space"].get<bool>();
  if (v.scores.empty()) fail_tokenizer(file, "field 'scores' is empty");
  return v;
}

SentencePieceVocabulary read_llama2c_tokenizer(const std::filesystem::path& file, int64_t vocabulary) {
  ByteReader reader(file, read_file(file, kLargestFile));
  SentencePieceVocabulary v;
  const int32_t longest = reader.number<int32_t>(0);
  for (int64_t id = 0; vocabulary < 0 ? !reader.done() : id < vocabulary; ++id) {
    v.scores.push_back(reader.number<float>(id));
    const int32_t length = reader.number<int32_t>(id);
    if (length < 0 || length > longest)
      fail_tokenizer(file, fmt::format("at byte {}, token {} has {} bytes, but the longest should have {}", reader.at() - 4, id, length,
                                       longest));
    v.tokens.emplace_back(reader.take(size_t(length), id));
    const std::string& token = v.tokens.back();
    const bool byte = token.size() == 6 && token.starts_with("<0x");
    v.types.push_back(id == 0 ? Type::kUnknown : id < 3 ? Type::kControl : byte ? Type::kByte : Type::kNormal);
  }
  if (!reader.done()) fail_tokenizer(file, fmt::format("after {} tokens, at byte {}, it goes on", vocabulary, reader.at()));
  if (v.tokens.size() < 3)
    fail_tokenizer(file, fmt::format("it has {} tokens, but needs the unknown one, a beginning and an end", v.tokens.size()));
  v.space = " ";
  v.end = 2;
  v.frame.before = {1};
  return v;
}

std::string sentencepiece_json(const SentencePieceVocabulary& v) {
  std::string tokens, scores, types, merges, vocab, unknown = "null";
  const auto separator = [](const std::string& list) { return list.empty() ? "\n  " : ",\n  "; };
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string text = json_text(v.tokens[id]);
    tokens += separator(tokens) + text;
    vocab += fmt::format("{}{}: {}", separator(vocab), text, id);
    types += fmt::format("{}{}", types.empty() ? "" : ",", int(v.types[id]));
    if (!v.scores.empty()) scores += fmt::format("{}{}", scores.empty() ? "" : ",", v.scores[id] + 0.0f);  // 0 for -0
    if (v.types[id] == Type::kUnknown) unknown = text;
  }
  if (!v.scores.empty())
    return fmt::format(R"({{"hedgehog": "tokenizer", "version": 1, "type": "sentencepiece",
 "space": {}, "prefix_space": {}, "before": {}, "after": {}, "end": {},
 "tokens": [{}],
 "scores": [{}],
 "types": [{}]}})", json_text(v.space), v.prefix_space, Json(v.frame.before).dump(), Json(v.frame.after).dump(),
                       v.end < 0 ? "[]" : fmt::format("[{}]", v.end), tokens, scores, types);
  for (const BpeMerge& merge : v.merges)
    merges += fmt::format("{}[{}, {}]", separator(merges), json_text(v.tokens[size_t(merge.left)]),
                          json_text(v.tokens[size_t(merge.right)]));
  const std::string prepend = v.prefix_space ? fmt::format(R"({{"type": "Prepend", "prepend": "{}"}}, )", kSpaceMark) : "";
  return fmt::format(R"({{
 "version": "1.0", "truncation": null, "padding": null,
 "added_tokens": {},
 "normalizer": {{"type": "Sequence", "normalizers": [{}{{"type": "Replace", "pattern": {{"String": " "}}, "content": "{}"}}]}},
 "pre_tokenizer": null,
 "post_processor": {},
 "decoder": {{"type": "Sequence", "decoders": {}}},
 "model": {{"type": "BPE", "dropout": null, "unk_token": {}, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": {}, "byte_fallback": true, "ignore_merges": false,
  "vocab": {{{}}},
  "merges": [{}]}}
}})", added_tokens_json(v.tokens, v.added), prepend, kSpaceMark, post_processor_json(v.tokens, v.frame),
                     SentencePieceJsonReader::decoders(v.prefix_space).dump(), unknown, v.fuse_unknown, vocab, merges);
}

}  // namespace hedgehog
