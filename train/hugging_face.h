#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "train/tokenizer_bpe.h"

namespace hedgehog {

/// Throws FileError: the file is not a valid tokenizer, and why.
[[noreturn]] void fail_tokenizer(const std::filesystem::path& file, const std::string& why);

/// Takes tokens, added tokens and merges of a file that is not trusted, checked as they come; every error names the file.
class VocabularyReader {
 public:
  explicit VocabularyReader(const std::filesystem::path& file) : file_(file) {}

  /// Takes tokens with their ids, as JSON has them; `more` come as added tokens. The ids must be 0 … n-1.
  void take_tokens(const nlohmann::json& tokens, const std::string& field, size_t more);
  /// Takes tokens by id.
  void take_tokens(const std::vector<std::string_view>& tokens, const std::string& field);
  /// Takes an added token, which the vocabulary may hold already.
  void take_added(const std::string& text, const AddedToken& token, const std::string& field);
  /// Takes a merge of two tokens as they are written.
  void take_merge(const std::string& left, const std::string& right, const std::string& where);
  /// Takes a merge that is written as two tokens with a space between.
  void take_merge(const std::string& pair, const std::string& where);
  /// What was taken: tokens as written. Throws FileError where an id has no token.
  BpeVocabulary finish();

  int32_t checked_id(const nlohmann::json& id, const std::string& field, const std::string& token) const;
  bool has(const std::string& token) const { return ids_.contains(token); }
  int32_t id_of(const std::string& token) const { return ids_.at(token); }
  bool is_added(int32_t id) const;
  size_t size() const { return vocabulary_.tokens.size(); }
  [[noreturn]] void fail(const std::string& why) const { fail_tokenizer(file_, why); }

 private:
  void take_token(const std::string& token, int32_t id, const std::string& field);

  const std::filesystem::path& file_;
  BpeVocabulary vocabulary_;
  std::unordered_map<std::string, int32_t> ids_;  // by the token as written
};

/// Walks over a tokenizer.json of Hugging Face that is not trusted; errors name file and field.
class HuggingFaceReader {
 public:
  HuggingFaceReader(const std::filesystem::path& file, const nlohmann::json& json) : json_(json), reader_(file) {}

 protected:
  using Json = nlohmann::json;

  /// A member, or null where there is none.
  static const Json& member(const Json& object, const char* name);
  [[noreturn]] void fail(const std::string& why) const { reader_.fail(why); }
  [[noreturn]] void unsupported(const std::string& field, const Json& value, const char* supported) const;
  void check_unset(const Json& object, const std::string& prefix, const char* name) const;
  void check_type(const Json& value, const std::string& field, const char* type, const char* supported) const;
  /// A member that is true or false; `missing` where it is null or not there.
  bool flag(const Json& object, const std::string& prefix, const char* name, bool missing) const;

  /// Takes model.vocab and added_tokens.
  void read_tokens();
  /// Takes model.merges: pairs, or texts with a space between.
  void read_merges();
  /// What the post_processor puts around a text, known after the tokens.
  TokenFrame frame() const;

  const Json& json_;
  VocabularyReader reader_;

 private:
  std::string checked_content(const Json& token) const;
  TokenFrame template_frame(const Json& value, const std::string& field) const;
  int32_t framing_id(const Json& id, const std::string& field) const;
};

/// A JSON string of the text.
std::string json_text(std::string_view text);

/// The list "added_tokens", its brackets included.
std::string added_tokens_json(const std::vector<std::string>& tokens, const std::vector<AddedToken>& added);

/// The value of "post_processor": TemplateProcessing, or null where the frame is empty.
std::string post_processor_json(const std::vector<std::string>& tokens, const TokenFrame& frame);

}  // namespace hedgehog
