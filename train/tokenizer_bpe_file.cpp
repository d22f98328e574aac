#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/error.h"
#include "train/files.h"
#include "train/strict_json.h"
#include "train/tokenizer_bpe.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestFile = size_t{1} << 28;  // bytes
constexpr uint64_t kLargestId = (uint64_t{1} << 24) - 1;

constexpr bool printable(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173); }

/// Code point by byte.
const std::array<uint16_t, 256>& visible_code_points() {
  static const std::array<uint16_t, 256> points = [] {
    std::array<uint16_t, 256> result{};
    uint16_t next = 256;
    for (int byte = 0; byte < 256; ++byte) result[size_t(byte)] = printable(byte) ? uint16_t(byte) : next++;
    return result;
  }();
  return points;
}

/// What is read so far, and the errors' frame.
class BpeReader {
 public:
  explicit BpeReader(const std::filesystem::path& file) : file_(file) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw FileError(fmt::format("'{}' is not a valid tokenizer: {}", file_.string(), what));
  }

  /// Takes tokens with their ids, as JSON has them: visible bytes, or the text of an added token. The ids must be 0 … n-1.
  void take_tokens(const Json& tokens, const std::string& field, size_t more) {
    vocabulary_.tokens.resize(tokens.size() + more);
    for (const auto& [token, id] : tokens.items()) take_token(token, checked_id(id, field, token), field);
  }

  /// Takes an added token, which the vocabulary may hold already.
  void take_added(const std::string& text, int32_t id, bool special, const std::string& field) {
    if (text.empty()) fail(fmt::format("field '{}' has an empty text", field));
    const auto listed = ids_.find(text);
    if (listed != ids_.end() && listed->second != id)
      fail(fmt::format("field '{}' gives '{}' the id {}, but the vocabulary {}", field, text, id, listed->second));
    if (listed == ids_.end()) take_token(text, id, field);
    vocabulary_.tokens[size_t(id)] = text;
    for (const BpeAddedToken& other : vocabulary_.added)
      if (other.id == id) fail(fmt::format("field '{}' adds '{}' twice", field, text));
    vocabulary_.added.push_back({id, special});
  }

  /// Takes a merge of two tokens as they are written.
  void take_merge(const std::string& left, const std::string& right, const std::string& where) {
    const auto id_of = [&](const std::string& token) {
      const auto found = ids_.find(token);
      if (found == ids_.end()) fail(fmt::format("{}: '{}' is not in the vocabulary", where, valid_utf8(token)));
      return found->second;
    };
    vocabulary_.merges.push_back({id_of(left), id_of(right), id_of(left + right)});
  }

  /// Reads the bytes of all tokens that were not added.
  BpeVocabulary finish() {
    std::vector<bool> added(vocabulary_.tokens.size());
    for (const BpeAddedToken& token : vocabulary_.added) added[size_t(token.id)] = true;
    for (size_t id = 0; id < added.size(); ++id) {
      if (added[id]) continue;
      try {
        vocabulary_.tokens[id] = bytes_of_visible(vocabulary_.tokens[id]);
      } catch (const Error& error) {
        fail(fmt::format("token {} ('{}'): {}", id, valid_utf8(vocabulary_.tokens[id]), error.what()));
      }
    }
    return std::move(vocabulary_);
  }

  int32_t checked_id(const Json& id, const std::string& field, const std::string& token) const {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > kLargestId)
      fail(fmt::format("field '{}': the id of '{}' is not a whole number from 0 to {}", field, token, kLargestId));
    return int32_t(id.get<uint64_t>());
  }
  bool has(const std::string& token) const { return ids_.contains(token); }
  int32_t id_of(const std::string& token) const { return ids_.at(token); }
  void set_pattern(std::string pattern) { vocabulary_.pattern = std::move(pattern); }

 private:
  void take_token(const std::string& token, int32_t id, const std::string& field) {
    if (size_t(id) >= vocabulary_.tokens.size())
      fail(fmt::format("field '{}': the id of '{}' is {}, but there are {} tokens", field, token, id, vocabulary_.tokens.size()));
    std::string& place = vocabulary_.tokens[size_t(id)];
    if (!place.empty()) fail(fmt::format("field '{}': '{}' and '{}' both have the id {}", field, place, token, id));
    if (token.empty()) fail(fmt::format("field '{}': token {} is empty", field, id));
    place = token;
    ids_.emplace(token, id);
  }

  const std::filesystem::path& file_;
  BpeVocabulary vocabulary_;
  std::unordered_map<std::string, int32_t> ids_;  // by the token as written
};

/// Walks over a tokenizer.json of Hugging Face.
class HuggingFaceReader {
 public:
  HuggingFaceReader(const std::filesystem::path& file, const Json& json) : reader_(file), json_(json) {}

  BpeVocabulary read() {
    for (const char* field : {"truncation", "padding", "normalizer"}) check_unset(json_, "", field);
    reader_.set_pattern(pattern_of(member(json_, "pre_tokenizer")));
    const Json& after = member(json_, "post_processor");
    if (!after.is_null()) check_type(after, "post_processor", "ByteLevel", "null or ByteLevel");
    check_type(member(json_, "decoder"), "decoder", "ByteLevel", "ByteLevel");
    read_model(member(json_, "model"));
    return reader_.finish();
  }

 private:
  /// A member, or null where there is none.
  static const Json& member(const Json& object, const char* name) {
    static const Json kNull;
    const auto found = object.find(name);
    return found == object.end() ? kNull : *found;
  }

  /// A value for a message.
  static std::string shown(const Json& value) {
    if (value.is_object() && value.contains("type") && value["type"].is_string()) return fmt::format("type {}", value["type"].dump());
    const std::string text = value.dump();
    return text.size() <= 40 ? text : valid_utf8(text.substr(0, 40)) + "…";
  }

  [[noreturn]] void unsupported(const std::string& field, const Json& value, const char* supported) const {
    reader_.fail(fmt::format("field '{}' is {}, but what is supported is {}", field, shown(value), supported));
  }

  void check_unset(const Json& object, const std::string& prefix, const char* name) const {
    const Json& value = member(object, name);
    const bool off = value.is_null() || value == false || value == "" || value == 0;
    if (!off) unsupported(prefix + name, value, "null (or false, or empty)");
  }

  void check_type(const Json& value, const std::string& field, const char* type, const char* supported) const {
    if (!value.is_object() || member(value, "type") != type) unsupported(field, value, supported);
  }

  /// Whether a ByteLevel pre-tokenizer cuts text into GPT-2's pieces itself.
  bool cuts(const Json& byte_level, const std::string& field) const {
    const Json& space = member(byte_level, "add_prefix_space");
    if (space != false) unsupported(field + ".add_prefix_space", space, "false");
    const Json& regex = member(byte_level, "use_regex");
    if (!regex.is_null() && !regex.is_boolean()) unsupported(field + ".use_regex", regex, "true or false");
    return regex != false;
  }

  std::string pattern_of(const Json& value) const {
    constexpr const char* kSupported = "ByteLevel, or a Sequence of one Split by a Regex (behavior Isolated) and ByteLevel";
    const std::string field = "pre_tokenizer";
    if (!value.is_object()) unsupported(field, value, kSupported);
    if (member(value, "type") == "ByteLevel" && cuts(value, field)) return kGpt2Pattern;
    const Json& list = member(value, "pretokenizers");
    if (member(value, "type") != "Sequence" || !list.is_array()) unsupported(field, value, kSupported);
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string item = fmt::format("{}.pretokenizers[{}]", field, i);
      if (i > 1) unsupported(item, list[i], kSupported);
      check_type(list[i], item, i == 0 ? "Split" : "ByteLevel", kSupported);
    }
    if (list.size() != 2) unsupported(field, value, kSupported);
    const Json &split = list[0], &pattern = member(split, "pattern");
    if (cuts(list[1], field + ".pretokenizers[1]")) unsupported(field + ".pretokenizers[1].use_regex", member(list[1], "use_regex"), "false after Split");
    if (member(split, "behavior") != "Isolated") unsupported(field + ".pretokenizers[0].behavior", member(split, "behavior"), "\"Isolated\"");
    check_unset(split, field + ".pretokenizers[0].", "invert");
    if (!pattern.is_object() || !member(pattern, "Regex").is_string()) unsupported(field + ".pretokenizers[0].pattern", pattern, "a Regex");
    return pattern["Regex"].get<std::string>();
  }

  void read_model(const Json& model) {
    // GPT-2's own file has no type
    if (!model.is_object() || model.contains("type")) check_type(model, "model", "BPE", "BPE");
    for (const char* field : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"})
      check_unset(model, "model.", field);
    const Json &vocab = member(model, "vocab"), &merges = member(model, "merges"), &added = member(json_, "added_tokens");
    if (!vocab.is_object()) reader_.fail("field 'model.vocab' is not an object");
    if (!merges.is_array()) reader_.fail("field 'model.merges' is not a list");
    if (!added.is_array() && !added.is_null()) reader_.fail("field 'added_tokens' is not a list");
    size_t more = 0;
    for (const Json& token : added) more += !vocab.contains(checked_content(token));
    reader_.take_tokens(vocab, "model.vocab", more);
    for (size_t i = 0; i < added.size(); ++i) read_added(added[i], fmt::format("added_tokens[{}]", i));
    for (size_t i = 0; i < merges.size(); ++i) read_merge(merges[i], fmt::format("field 'model.merges' item {}", i));
  }

  std::string checked_content(const Json& token) const {
    if (!token.is_object() || !member(token, "content").is_string()) reader_.fail("field 'added_tokens' has an item without 'content'");
    return token["content"].get<std::string>();
  }

  void read_added(const Json& token, const std::string& field) {
    const std::string text = checked_content(token);
    for (const char* option : {"single_word", "lstrip", "rstrip"}) check_unset(token, field + ".", option);
    reader_.take_added(text, reader_.checked_id(member(token, "id"), field, text), member(token, "special") != false, field);
  }

  void read_merge(const Json& merge, const std::string& where) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      return reader_.take_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), where);
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      reader_.fail(fmt::format("{} is not two tokens", where));
    reader_.take_merge(text.substr(0, space), text.substr(space + 1), where);
  }

  BpeReader reader_;
  const Json& json_;
};

}  // namespace

const std::array<uint8_t, 256>& gpt2_byte_order() {
  static const std::array<uint8_t, 256> order = [] {
    std::array<uint8_t, 256> bytes{};
    for (int byte = 0; byte < 256; ++byte) bytes[size_t(byte)] = uint8_t(byte);
    std::stable_partition(bytes.begin(), bytes.end(), [](uint8_t byte) { return printable(byte); });
    return bytes;
  }();
  return order;
}

std::string visible_bytes(std::string_view bytes) {
  std::string visible;
  for (const char c : bytes) {
    const uint16_t point = visible_code_points()[uint8_t(c)];
    if (point >= 0x80) visible += char(0xc0 | point >> 6);
    visible += point >= 0x80 ? char(0x80 | (point & 0x3f)) : char(point);
  }
  return visible;
}

std::string bytes_of_visible(std::string_view visible) {
  static const std::unordered_map<std::string, char> bytes_by_character = [] {
    std::unordered_map<std::string, char> result;
    for (int byte = 0; byte < 256; ++byte) result.emplace(visible_bytes(std::string(1, char(byte))), char(byte));
    return result;
  }();
  std::string bytes;
  for (size_t i = 0; i < visible.size();) {
    const std::string character(visible.substr(i, utf8_step(visible, i).bytes));
    const auto found = bytes_by_character.find(character);
    if (found == bytes_by_character.end()) throw Error(fmt::format("'{}' stands for no byte", valid_utf8(character)));
    bytes += found->second;
    i += character.size();
  }
  return bytes;
}

BpeVocabulary read_bpe_json(const std::filesystem::path& file, const Json& json) { return HuggingFaceReader(file, json).read(); }

BpeVocabulary read_bpe_files(const std::filesystem::path& vocabulary, const std::filesystem::path& merges) {
  BpeReader reader(vocabulary);
  const std::string end(kEndOfText);
  reader.set_pattern(kGpt2Pattern);
  reader.take_tokens(parse_strict_json(vocabulary, read_file(vocabulary, kLargestFile), "tokenizer", 1), "vocabulary", 0);
  if (reader.has(end)) reader.take_added(end, reader.id_of(end), true, "vocabulary");
  const std::string text = read_file(merges, kLargestFile);
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t stop = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, stop - begin);
    begin = stop + 1;
    ++line_number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || (line_number == 1 && line.starts_with("#version"))) continue;
    const std::string where = fmt::format("line {} of '{}'", line_number, merges.string());
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
      reader.fail(fmt::format("{} is not two tokens", where));
    reader.take_merge(line.substr(0, space), line.substr(space + 1), where);
  }
  return reader.finish();
}

std::string bpe_json(const BpeVocabulary& v) {
  const auto text = [](std::string_view bytes) { return Json(std::string(bytes)).dump(); };
  std::vector<bool> is_added(v.tokens.size());
  std::string added, vocab, merges;
  for (const BpeAddedToken& token : v.added) {
    is_added[size_t(token.id)] = true;
    added += fmt::format("{}\n  {{\"id\": {}, \"content\": {}, \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                         "\"normalized\": false, \"special\": {}}}",
                         added.empty() ? "" : ",", token.id, text(v.tokens[size_t(token.id)]), token.special);
  }
  for (size_t id = 0; id < v.tokens.size(); ++id)
    vocab += fmt::format("{}\n   {}: {}", id == 0 ? "" : ",", text(is_added[id] ? v.tokens[id] : visible_bytes(v.tokens[id])), id);
  for (const BpeMerge& merge : v.merges) {
    const std::string pair = visible_bytes(v.tokens[size_t(merge.left)]) + " " + visible_bytes(v.tokens[size_t(merge.right)]);
    merges += fmt::format("{}\n   {}", merges.empty() ? "" : ",", text(pair));
  }
  const bool gpt2 = v.pattern == kGpt2Pattern;
  const std::string byte_level =
      fmt::format(R"({{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": {}}})", gpt2);
  const std::string cutter =
      gpt2 ? byte_level
           : fmt::format(R"({{"type": "Sequence", "pretokenizers": [
  {{"type": "Split", "pattern": {{"Regex": {}}}, "behavior": "Isolated", "invert": false}},
  {}]}})", Json(v.pattern).dump(-1, ' ', true), byte_level);
  return fmt::format(R"({{
 "version": "1.0", "truncation": null, "padding": null,
 "added_tokens": [{}],
 "normalizer": null,
 "pre_tokenizer": {},
 "post_processor": null,
 "decoder": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
 "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
  "vocab": {{{}}},
  "merges": [{}]}}
}})", added, cutter, vocab, merges);
}

}  // namespace hedgehog
