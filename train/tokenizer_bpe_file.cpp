#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/error.h"
#include "train/files.h"
#include "train/hugging_face.h"
#include "train/strict_json.h"
#include "train/tokenizer_bpe.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestFile = size_t{1} << 28;  // bytes

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

/// Puts bytes in place of what stands for them, save in added tokens.
BpeVocabulary byte_level(BpeVocabulary v, const VocabularyReader& reader) {
  std::vector<bool> added(v.tokens.size());
  for (const AddedToken& token : v.added) added[size_t(token.id)] = true;
  for (size_t id = 0; id < added.size(); ++id) {
    if (added[id]) continue;
    try {
      v.tokens[id] = bytes_of_visible(v.tokens[id]);
    } catch (const Error& error) {
      reader.fail(fmt::format("token {} ('{}'): {}", id, valid_utf8(v.tokens[id]), error.what()));
    }
  }
  return v;
}

constexpr const char* kCutters =
    "ByteLevel, or a Sequence of one Split by a Regex (behavior Isolated) or Digits (individual_digits) "
    "and ByteLevel";

/// Reads a tokenizer.json with byte-level BPE.
class BpeJsonReader : HuggingFaceReader {
 public:
  using HuggingFaceReader::HuggingFaceReader;

  BpeVocabulary read() {
    for (const char* field : {"truncation", "padding"}) check_unset(json_, "", field);
    const Json& normalizer = member(json_, "normalizer");
    if (!normalizer.is_null()) check_type(normalizer, "normalizer", "NFC", "null or NFC");
    const Json &cutter = member(json_, "pre_tokenizer"), &model = member(json_, "model");
    bool prefix_space = false;
    const std::string pattern = pattern_of(cutter, prefix_space);
    check_type(member(json_, "decoder"), "decoder", "ByteLevel", "ByteLevel");
    // GPT-2's own file has no type
    if (!model.is_object() || model.contains("type")) check_type(model, "model", "BPE", "BPE");
    for (const char* field : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"})
      check_unset(model, "model.", field);
    read_tokens();
    read_merges();
    const TokenFrame framing = frame();
    BpeVocabulary result = byte_level(reader_.finish(), reader_);
    result.pattern = pattern;
    result.prefix_space = prefix_space;
    result.ignore_merges = flag(model, "model.", "ignore_merges", false);
    result.compose = !normalizer.is_null();
    result.frame = framing;
    return result;
  }

 private:
  /// Whether a ByteLevel pre-tokenizer cuts text into GPT-2's pieces itself.
  bool cuts(const Json& byte_level, const std::string& field) const {
    return flag(byte_level, field + ".", "use_regex", true);
  }

  std::string pattern_of(const Json& value, bool& prefix_space) const {
    const std::string field = "pre_tokenizer";
    if (!value.is_object()) unsupported(field, value, kCutters);
    if (member(value, "type") == "ByteLevel" && cuts(value, field)) {
      prefix_space = flag(value, field + ".", "add_prefix_space", true);
      return kGpt2Pattern;
    }
    const Json& list = member(value, "pretokenizers");
    if (member(value, "type") != "Sequence" || !list.is_array()) unsupported(field, value, kCutters);
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string item = fmt::format("{}.pretokenizers[{}]", field, i);
      if (i > 1) unsupported(item, list[i], kCutters);
      if (i == 1 || !list[i].is_object() || member(list[i], "type") != "Digits")
        check_type(list[i], item, i == 0 ? "Split" : "ByteLevel", kCutters);
    }
    if (list.size() != 2) unsupported(field, value, kCutters);
    const std::string first = field + ".pretokenizers[0].", second = field + ".pretokenizers[1].";
    const Json &cutter = list[0], &pattern = member(cutter, "pattern");
    if (flag(list[1], second, "add_prefix_space", true)) unsupported(second + "add_prefix_space", true, "false in a Sequence");
    const bool digits = member(cutter, "type") == "Digits";
    if (cuts(list[1], second.substr(0, second.size() - 1)) != digits)
      unsupported(second + "use_regex", member(list[1], "use_regex"), digits ? "true after Digits" : "false after Split");
    if (digits) {
      if (!flag(cutter, first, "individual_digits", false))
        unsupported(first + "individual_digits", member(cutter, "individual_digits"), "true");
      return kDigitsPattern;
    }
    if (member(cutter, "behavior") != "Isolated") unsupported(first + "behavior", member(cutter, "behavior"), "\"Isolated\"");
    check_unset(cutter, first, "invert");
    if (!pattern.is_object() || !member(pattern, "Regex").is_string()) unsupported(first + "pattern", pattern, "a Regex");
    return pattern["Regex"].get<std::string>();
  }
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

BpeVocabulary read_bpe_json(const std::filesystem::path& file, const Json& json) { return BpeJsonReader(file, json).read(); }

BpeVocabulary read_bpe_files(const std::filesystem::path& vocabulary, const std::filesystem::path& merges) {
  VocabularyReader reader(vocabulary);
  const std::string end(kEndOfText);
  reader.take_tokens(parse_strict_json(vocabulary, read_file(vocabulary, kLargestFile), "tokenizer", 1), "vocabulary", 0);
  if (reader.has(end)) reader.take_added(end, {reader.id_of(end)}, "vocabulary");
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
    reader.take_merge(line, where);
  }
  BpeVocabulary result = byte_level(reader.finish(), reader);
  result.pattern = kGpt2Pattern;
  return result;
}

BpeVocabulary read_bpe_lists(const std::filesystem::path& file, const std::vector<std::string_view>& tokens,
                             const std::vector<std::string_view>& merges, const std::vector<AddedToken>& added) {
  VocabularyReader reader(file);
  reader.take_tokens(tokens, "tokens");
  for (const AddedToken& token : added) reader.take_added(std::string(tokens.at(size_t(token.id))), token, "tokens");
  for (size_t rank = 0; rank < merges.size(); ++rank) reader.take_merge(std::string(merges[rank]), fmt::format("merge {}", rank));
  return byte_level(reader.finish(), reader);
}

std::string bpe_json(const BpeVocabulary& v) {
  std::vector<bool> is_added(v.tokens.size());
  std::string vocab, merges;
  for (const AddedToken& token : v.added) is_added[size_t(token.id)] = true;
  const auto written = [&](int32_t id) {
    return is_added[size_t(id)] ? v.tokens[size_t(id)] : visible_bytes(v.tokens[size_t(id)]);
  };
  for (size_t id = 0; id < v.tokens.size(); ++id)
    vocab += fmt::format("{}\n   {}: {}", id == 0 ? "" : ",", json_text(written(int32_t(id))), id);
  for (const BpeMerge& merge : v.merges)
    merges += fmt::format("{}\n   {}", merges.empty() ? "" : ",", json_text(written(merge.left) + " " + written(merge.right)));
  const bool digits = v.pattern == kDigitsPattern, alone = v.pattern == kGpt2Pattern;
  const std::string byte_level = fmt::format(R"({{"type": "ByteLevel", "add_prefix_space": {}, "trim_offsets": true, "use_regex": {}}})",
                                             v.prefix_space, alone || digits);
  const std::string first =
      digits ? R"({"type": "Digits", "individual_digits": true})"
             : fmt::format(R"({{"type": "Split", "pattern": {{"Regex": {}}}, "behavior": "Isolated", "invert": false}})",
                           Json(v.pattern).dump(-1, ' ', true));
  const std::string cutter =
      alone ? byte_level : fmt::format("{{\"type\": \"Sequence\", \"pretokenizers\": [\n  {},\n  {}]}}", first, byte_level);
  return fmt::format(R"({{
 "version": "1.0", "truncation": null, "padding": null,
 "added_tokens": {},
 "normalizer": {},
 "pre_tokenizer": {},
 "post_processor": {},
 "decoder": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
 "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": false, "byte_fallback": false, "ignore_merges": {},
  "vocab": {{{}}},
  "merges": [{}]}}
}})", added_tokens_json(v.tokens, v.added), v.compose ? R"({"type": "NFC"})" : "null", cutter,
                     post_processor_json(v.tokens, v.frame), v.ignore_merges, vocab, merges);
}

}  // namespace hedgehog
