#include "train/hugging_face.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr uint64_t kLargestId = (uint64_t{1} << 24) - 1;

/// A value for a message.
std::string shown(const nlohmann::json& value) {
  if (value.is_object() && value.contains("type") && value["type"].is_string()) return fmt::format("type {}", value["type"].dump());
  const std::string text = value.dump();
  return text.size() <= 40 ? text : valid_utf8(text.substr(0, 40)) + "…";
}

}  // namespace

void fail_tokenizer(const std::filesystem::path& file, const std::string& why) {
  throw FileError(fmt::format("'{}' is not a valid tokenizer: {}", file.string(), why));
}

void VocabularyReader::take_tokens(const nlohmann::json& tokens, const std::string& field, size_t more) {
  vocabulary_.tokens.resize(tokens.size() + more);
  for (const auto& [token, id] : tokens.items()) take_token(token, checked_id(id, field, token), field);
}

void VocabularyReader::take_tokens(const std::vector<std::string_view>& tokens, const std::string& field) {
  vocabulary_.tokens.resize(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (valid_utf8(tokens[id]) != tokens[id]) fail(fmt::format("field '{}': token {} is no UTF-8", field, id));
    take_token(std::string(tokens[id]), int32_t(id), field);
  }
}

void VocabularyReader::take_added(const std::string& text, const AddedToken& token, const std::string& field) {
  if (text.empty()) fail(fmt::format("field '{}' has an empty text", field));
  const auto listed = ids_.find(text);
  if (listed != ids_.end() && listed->second != token.id)
    fail(fmt::format("field '{}' gives '{}' the id {}, but the vocabulary {}", field, text, token.id, listed->second));
  if (listed == ids_.end()) take_token(text, token.id, field);
  for (const AddedToken& other : vocabulary_.added)
    if (other.id == token.id) fail(fmt::format("field '{}' adds '{}' twice", field, text));
  vocabulary_.added.push_back(token);
}

void VocabularyReader::take_merge(const std::string& left, const std::string& right, const std::string& where) {
  const auto id_of = [&](const std::string& token) {
    const auto found = ids_.find(token);
    if (found == ids_.end()) fail(fmt::format("{}: '{}' is not in the vocabulary", where, valid_utf8(token)));
    return found->second;
  };
  vocabulary_.merges.push_back({id_of(left), id_of(right), id_of(left + right)});
}

void VocabularyReader::take_merge(const std::string& pair, const std::string& where) {
  const size_t space = pair.find(' ');
  if (space == std::string::npos || pair.find(' ', space + 1) != std::string::npos) fail(fmt::format("{} is not two tokens", where));
  take_merge(pair.substr(0, space), pair.substr(space + 1), where);
}

BpeVocabulary VocabularyReader::finish() {
  for (size_t id = 0; id < vocabulary_.tokens.size(); ++id)
    if (vocabulary_.tokens[id].empty()) fail(fmt::format("no token has the id {}, of {} tokens", id, vocabulary_.tokens.size()));
  return std::move(vocabulary_);
}

bool VocabularyReader::is_added(int32_t id) const {
  return std::any_of(vocabulary_.added.begin(), vocabulary_.added.end(), [&](const AddedToken& token) { return token.id == id; });
}

int32_t VocabularyReader::checked_id(const nlohmann::json& id, const std::string& field, const std::string& token) const {
  if (!id.is_number_unsigned() || id.get<uint64_t>() > kLargestId)
    fail(fmt::format("field '{}': the id of '{}' is not a whole number from 0 to {}", field, token, kLargestId));
  return int32_t(id.get<uint64_t>());
}

void VocabularyReader::take_token(const std::string& token, int32_t id, const std::string& field) {
  if (size_t(id) >= vocabulary_.tokens.size())
    fail(fmt::format("field '{}': the id of '{}' is {}, but there are {} tokens", field, token, id, vocabulary_.tokens.size()));
  std::string& place = vocabulary_.tokens[size_t(id)];
  if (!place.empty()) fail(fmt::format("field '{}': '{}' and '{}' both have the id {}", field, place, token, id));
  if (token.empty()) fail(fmt::format("field '{}': token {} is empty", field, id));
  place = token;
  ids_.emplace(token, id);
}

const nlohmann::json& HuggingFaceReader::member(const Json& object, const char* name) {
  static const Json kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

void HuggingFaceReader::unsupported(const std::string& field, const Json& value, const char* supported) const {
  fail(fmt::format("field '{}' is {}, but what is supported is {}", field, shown(value), supported));
}

void HuggingFaceReader::check_unset(const Json& object, const std::string& prefix, const char* name) const {
  const Json& value = member(object, name);
  const bool off = value.is_null() || value == false || value == "" || value == 0;
  if (!off) unsupported(prefix + name, value, "null (or false, or empty)");
}

void HuggingFaceReader::check_type(const Json& value, const std::string& field, const char* type, const char* supported) const {
  if (!value.is_object() || member(value, "type") != type) unsupported(field, value, supported);
}

bool HuggingFaceReader::flag(const Json& object, const std::string& prefix, const char* name, bool missing) const {
  const Json& value = member(object, name);
  if (value.is_null()) return missing;
  if (!value.is_boolean()) unsupported(prefix + name, value, "true or false");
  return value.get<bool>();
}

void HuggingFaceReader::read_tokens() {
  const Json &vocab = member(member(json_, "model"), "vocab"), &added = member(json_, "added_tokens");
  if (!vocab.is_object()) fail("field 'model.vocab' is not an object");
  if (!added.is_array() && !added.is_null()) fail("field 'added_tokens' is not a list");
  size_t more = 0;
  for (const Json& token : added) more += !vocab.contains(checked_content(token));
  reader_.take_tokens(vocab, "model.vocab", more);
  for (size_t i = 0; i < added.size(); ++i) {
    const std::string field = fmt::format("added_tokens[{}]", i), prefix = field + ".", text = checked_content(added[i]);
    if (flag(added[i], prefix, "single_word", false)) unsupported(prefix + "single_word", true, "false");
    AddedToken token;
    token.id = reader_.checked_id(member(added[i], "id"), field, text);
    token.special = flag(added[i], prefix, "special", true);
    token.lstrip = flag(added[i], prefix, "lstrip", false);
    token.rstrip = flag(added[i], prefix, "rstrip", false);
    token.normalized = flag(added[i], prefix, "normalized", false);
    reader_.take_added(text, token, field);
  }
}

std::string HuggingFaceReader::checked_content(const Json& token) const {
  if (!token.is_object() || !member(token, "content").is_string()) fail("field 'added_tokens' has an item without 'content'");
  return token["content"].get<std::string>();
}

void HuggingFaceReader::read_merges() {
  const Json& merges = member(member(json_, "model"), "merges");
  if (!merges.is_array()) fail("field 'model.merges' is not a list");
  for (size_t i = 0; i < merges.size(); ++i) {
    const Json& merge = merges[i];
    const std::string where = fmt::format("field 'model.merges' item {}", i);
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      reader_.take_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), where);
    else
      reader_.take_merge(merge.is_string() ? merge.get<std::string>() : "", where);
  }
}

int32_t HuggingFaceReader::framing_id(const Json& id, const std::string& field) const {
  if (!id.is_number_unsigned() || id.get<uint64_t>() >= reader_.size())
    fail(fmt::format("field '{}' is {}, but there are {} tokens", field, shown(id), reader_.size()));
  const int32_t result = int32_t(id.get<uint64_t>());
  if (!reader_.is_added(result)) fail(fmt::format("field '{}' is {}, which is no added token", field, result));
  return result;
}

TokenFrame HuggingFaceReader::frame() const {
  constexpr const char* kSupported = "null, ByteLevel, TemplateProcessing, BertProcessing, or a Sequence of these";
  const std::string field = "post_processor";
  const Json& value = member(json_, "post_processor");
  const Json only = Json::array({value});
  const Json* list = &only;
  if (value.is_null()) return {};
  if (!value.is_object()) unsupported(field, value, kSupported);
  if (member(value, "type") == "Sequence") list = &member(value, "processors");
  if (!list->is_array()) unsupported(field + ".processors", *list, "a list");
  TokenFrame result;
  for (const Json& item : *list) {
    if (!item.is_object()) unsupported(field, item, kSupported);
    const Json& type = member(item, "type");
    // ByteLevel moves offsets alone
    if (type == "ByteLevel") continue;
    if (!result.before.empty() || !result.after.empty()) unsupported(field, item, "one that adds tokens");
    if (type == "TemplateProcessing") {
      result = template_frame(item, field);
    } else if (type == "BertProcessing") {
      for (const char* name : {"cls", "sep"}) {
        const Json& pair = member(item, name);
        if (!pair.is_array() || pair.size() != 2) unsupported(field + "." + name, pair, "a token and its id");
        (name[0] == 'c' ? result.before : result.after).push_back(framing_id(pair[1], field + "." + name));
      }
    } else {
      unsupported(field, item, kSupported);
    }
  }
  return result;
}

TokenFrame HuggingFaceReader::template_frame(const Json& value, const std::string& field) const {
  const Json &single = member(value, "single"), &tokens = member(value, "special_tokens");
  if (!single.is_array()) unsupported(field + ".single", single, "a list");
  TokenFrame result;
  bool text = false;
  for (const Json& item : single) {
    const bool object = item.is_object() && item.size() == 1;
    if (object && member(item, "Sequence").is_object() && member(item["Sequence"], "id") == "A" && !text) {
      text = true;
      continue;
    }
    const bool special = object && item.contains("SpecialToken") && item["SpecialToken"].is_object();
    const Json name = special ? member(item["SpecialToken"], "id") : Json();
    if (!name.is_string()) unsupported(field + ".single", item, "SpecialToken, and once Sequence A");
    const Json& listed = tokens.is_object() ? member(tokens, name.get<std::string>().c_str()) : tokens;
    const Json& ids = listed.is_object() ? member(listed, "ids") : listed;
    const std::string place = fmt::format("{}.special_tokens.{}.ids", field, name.get<std::string>());
    if (!ids.is_array()) unsupported(place, ids, "a list");
    for (const Json& id : ids) (text ? result.after : result.before).push_back(framing_id(id, place));
  }
  if (!text) unsupported(field + ".single", single, "a list with Sequence A");
  return result;
}

std::string json_text(std::string_view text) { return nlohmann::json(std::string(text)).dump(); }

std::string added_tokens_json(const std::vector<std::string>& tokens, const std::vector<AddedToken>& added) {
  std::string list;
  for (const AddedToken& token : added)
    list += fmt::format("{}\n  {{\"id\": {}, \"content\": {}, \"single_word\": false, \"lstrip\": {}, \"rstrip\": {}, "
                        "\"normalized\": {}, \"special\": {}}}",
                        list.empty() ? "" : ",", token.id, json_text(tokens[size_t(token.id)]), token.lstrip, token.rstrip,
                        token.normalized, token.special);
  return fmt::format("[{}]", list);
}

std::string post_processor_json(const std::vector<std::string>& tokens, const TokenFrame& frame) {
  if (frame.before.empty() && frame.after.empty()) return "null";
  std::set<int32_t> ids;
  const auto items = [&](char sequence, int type) {
    std::string list;
    const auto add = [&](const std::string& item) { list += (list.empty() ? "" : ", ") + item; };
    const auto add_tokens = [&](const std::vector<int32_t>& some) {
      for (const int32_t id : some) {
        ids.insert(id);
        add(fmt::format("{{\"SpecialToken\": {{\"id\": {}, \"type_id\": {}}}}}", json_text(tokens[size_t(id)]), type));
      }
    };
    add_tokens(frame.before);
    add(fmt::format("{{\"Sequence\": {{\"id\": \"{}\", \"type_id\": {}}}}}", sequence, type));
    add_tokens(frame.after);
    return list;
  };
  const std::string first = items('A', 0), second = items('B', 1);
  std::string special;
  for (const int32_t id : ids) {
    const std::string name = json_text(tokens[size_t(id)]);
    special += fmt::format("{}\n   {}: {{\"id\": {}, \"ids\": [{}], \"tokens\": [{}]}}", special.empty() ? "" : ",", name, name, id,
                           name);
  }
  return fmt::format("{{\"type\": \"TemplateProcessing\",\n  \"single\": [{}],\n  \"pair\": [{}, {}],\n  \"special_tokens\": {{{}}}}}",
                     first, first, second, special);
}

}  // namespace hedgehog
