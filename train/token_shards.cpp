#include "train/token_shards.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

#include "core/error.h"
#include "train/files.h"
#include "train/safetensors.h"
#include "train/utf8.h"

namespace hedgehog {

namespace fs = std::filesystem;

namespace {

using Metadata = std::map<std::string, std::string>;

constexpr const char* kFormat = "hedgehog tokens";
constexpr const char* kVersion = "1";
constexpr std::int64_t kMostShards = 99'999, kMostTokens = std::int64_t(1) << 40, kMostBytes = std::int64_t(1) << 50;
constexpr std::int64_t kNarrowVocabulary = 65536;  // up to here 16 bits hold an id

std::string shard_name(std::int64_t shard, std::int64_t shards) { return fmt::format("tokens-{:05}-of-{:05}.safetensors", shard, shards); }

/// Names of the files in a directory that are called as shards are, in order; none where there is no directory. Throws FileError if it
/// cannot be read.
std::vector<std::string> shard_names(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("tokens-") && name.find("-of-") != std::string::npos && name.ends_with(".safetensors")) names.push_back(name);
  }
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    throw FileError(fmt::format("cannot read '{}': {}", directory.string(), error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

/// All tokens of a text, with true starts of documents alone: where the split cuts one, none begins.
TokenShards encoded(const TextSource& text, const Tokenizer& tokenizer) {
  const TokenDataset parts = TokenDataset::from_text(text, tokenizer, kTrainFraction);
  const TokenStream& validation = parts.validation_stream();
  TokenShards shards;
  shards.all = parts.training_stream();
  shards.split = std::int64_t(shards.all.tokens.size());
  shards.all.tokens.insert(shards.all.tokens.end(), validation.tokens.begin(), validation.tokens.end());
  const bool begins = std::binary_search(text.document_starts.begin(), text.document_starts.end(), split_position(text.text, kTrainFraction));
  for (const std::int64_t start : validation.document_starts)
    if (start > 0 || begins) shards.all.document_starts.push_back(shards.split + start);
  return shards;
}

template <class Id>
void write_shard(const fs::path& file, const TokenStream& all, std::int64_t first, std::int64_t count, const Metadata& metadata) {
  const std::vector<Id> ids(all.tokens.begin() + first, all.tokens.begin() + first + count);
  std::vector<std::int64_t> starts;
  const auto begin = std::lower_bound(all.document_starts.begin(), all.document_starts.end(), first);
  for (auto start = begin; start != all.document_starts.end() && *start < first + count; ++start) starts.push_back(*start - first);
  const std::int64_t documents = std::int64_t(starts.size());
  const TensorRecord records[] = {{"tokens", sizeof(Id) == 2 ? "U16" : "I32", {count}, ids.data(), ids.size() * sizeof(Id)},
                                  {"document_starts", "I64", {documents}, starts.data(), starts.size() * sizeof(std::int64_t)}};
  fs::path unfinished = file;
  unfinished += ".unfinished";
  write_safetensors(unfinished, records, metadata);
  std::error_code error;
  fs::rename(unfinished, file, error);
  if (error) throw WriteError(fmt::format("cannot write '{}': {}", file.string(), error.message()));
}

/// Reads the shards of a directory one by one; all errors name the file.
class ShardReader {
 public:
  ShardReader(const fs::path& directory, const Tokenizer& tokenizer) : directory_(directory), tokenizer_(tokenizer) {}

  TokenShards read() {
    const std::vector<std::string> names = shard_names(directory_);
    if (names.empty()) throw FileError(fmt::format("'{}' holds no token shards", directory_.string()));
    std::int64_t shards = 1;  // as the first says
    for (std::int64_t i = 0; i < shards; ++i) {
      file_ = directory_ / (i == 0 ? names.front() : shard_name(i, shards));
      const SafetensorsFile file(file_);
      if (i == 0) {
        read_first(file.metadata());
        shards = number("shards", 1, kMostShards);
        check_names(names, shards);
      }
      check_metadata(file.metadata(), i);
      if (file.names().size() != 2) fail(fmt::format("holds {} tensors, but a shard has 'tokens' and 'document_starts'", file.names().size()));
      read_starts(file.get("document_starts"), vector_size(file.get("tokens"), narrow_ ? "U16" : "I32"));
      narrow_ ? read_tokens<std::uint16_t>(file.get("tokens")) : read_tokens<std::int32_t>(file.get("tokens"));
    }
    if (const auto held = std::int64_t(result_.all.tokens.size()); held != tokens_)
      fail(fmt::format("field 'tokens' says {} in all, but the {} shards hold {}", tokens_, shards, held));
    return std::move(result_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw FileError(fmt::format("'{}' {}", file_.string(), what)); }

  /// The beginning of a text of the file, without what would steer the terminal.
  static std::string shown(const std::string& text) {
    std::string begin = valid_utf8(text.substr(0, 40));
    std::replace_if(begin.begin(), begin.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    return begin;
  }

  const std::string& field(const char* name) const {
    const auto found = metadata_.find(name);
    if (found == metadata_.end()) fail(fmt::format("has no field '{}' in its metadata: it is no shard of tokens as prepare writes them", name));
    return found->second;
  }

  std::int64_t number(const char* name, std::int64_t low, std::int64_t high) const {
    const std::string& text = field(name);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
      fail(fmt::format("has '{}' in field '{}', where a whole number from {} to {} belongs", shown(text), name, low, high));
    return value;
  }

  void read_first(const Metadata& metadata) {
    metadata_ = metadata;
    if (field("format") != kFormat) fail(fmt::format("has '{}' in field 'format', where '{}' belongs", shown(field("format")), kFormat));
    if (field("version") != kVersion)
      fail(fmt::format("is of version '{}' of the format, but this program reads version {}", shown(field("version")), kVersion));
    const std::int64_t vocabulary = number("vocabulary", 1, INT32_MAX);
    if (vocabulary != tokenizer_.size())
      fail(fmt::format("has {} in field 'vocabulary', but the tokenizer has {} tokens: the shards are of another one", vocabulary,
                       tokenizer_.size()));
    if (field("tokenizer") != sha256(tokenizer_.to_json()))
      fail(fmt::format("is of another tokenizer of {} tokens: field 'tokenizer' is not the checksum of this one", vocabulary));
    narrow_ = vocabulary <= kNarrowVocabulary;
    tokens_ = number("tokens", 4, kMostTokens);
    result_.split = number("training_tokens", 2, tokens_ - 2);
    result_.text_bytes = number("text_bytes", 1, kMostBytes);
    result_.name = field("name");
    const auto plain = [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_'; };
    if (result_.name.empty() || result_.name.size() > 255 || !std::all_of(result_.name.begin(), result_.name.end(), plain))
      fail("has a field 'name' that is not 1 to 255 letters, digits, - and _");
  }

  void check_names(const std::vector<std::string>& names, std::int64_t shards) const {
    std::vector<std::string> missing, expected;
    for (std::int64_t i = 0; i < shards; ++i) expected.push_back(shard_name(i, shards));
    std::set_difference(expected.begin(), expected.end(), names.begin(), names.end(), std::back_inserter(missing));
    if (!missing.empty())
      throw FileError(fmt::format("'{}' is missing: the first shard says that there are {}", (directory_ / missing.front()).string(), shards));
    for (const std::string& name : names)
      if (!std::binary_search(expected.begin(), expected.end(), name))
        throw FileError(fmt::format("'{}' does not belong to the {} shards beside it; move it away",
                                    (directory_ / valid_utf8(name)).string(), shards));
  }

  void check_metadata(const Metadata& metadata, std::int64_t shard) {
    Metadata expected = metadata_;
    expected["shard"] = std::to_string(shard);
    for (const auto& [name, value] : expected)
      if (const auto found = metadata.find(name); found == metadata.end() || found->second != value)
        fail(fmt::format("has '{}' in field '{}', where '{}' belongs after the first shard and its place",
                         found == metadata.end() ? "" : shown(found->second), shown(name), shown(value)));
  }

  std::int64_t vector_size(const TensorRecord& tensor, const char* dtype) const {
    if (tensor.dtype != dtype || tensor.shape.size() != 1)
      fail(fmt::format("tensor '{}' must be a vector of {}, but is {} with {} axes", tensor.name, dtype, tensor.dtype, tensor.shape.size()));
    return tensor.shape[0];
  }

  void read_starts(const TensorRecord& tensor, std::int64_t tokens) {
    const std::int64_t count = vector_size(tensor, "I64"), before = std::int64_t(result_.all.tokens.size());
    std::int64_t last = -1;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::size_t at = std::size_t(i) * sizeof(std::int64_t);
      std::int64_t start = 0;
      std::memcpy(&start, static_cast<const char*>(tensor.data) + at, sizeof(start));
      if (start <= last || start >= tokens)
        fail(fmt::format("tensor 'document_starts' item {} at offset {} is {}, but must be over {} and below the shard's {} tokens", i,
                         tensor.offset + at, start, last, tokens));
      mix(of_starts_, std::uint64_t(before + start));
      result_.all.document_starts.push_back(before + start);
      last = start;
    }
    if (before == 0 && (count == 0 || result_.all.document_starts.front() != 0))
      fail("tensor 'document_starts' must begin with 0 in the first shard");
  }

  template <class Id>
  void read_tokens(const TensorRecord& tensor) {
    const std::int64_t count = tensor.shape[0], vocabulary = tokenizer_.size();
    if (count < 1) fail("tensor 'tokens' is empty");
    auto& all = result_.all.tokens;
    if (tokens_ - std::int64_t(all.size()) < count)
      fail(fmt::format("tensor 'tokens' has {}, more than the {} that field 'tokens' says", count, tokens_));
    // no more than a few files can hold: what the field says is not believed
    if (all.empty()) all.reserve(std::size_t(std::min(tokens_, 16 * count)));
    for (std::int64_t i = 0; i < count; ++i) {
      Id id = 0;
      std::memcpy(&id, static_cast<const char*>(tensor.data) + std::size_t(i) * sizeof(Id), sizeof(Id));
      if (std::int64_t(id) < 0 || std::int64_t(id) >= vocabulary)
        fail(fmt::format("tensor 'tokens' item {} at offset {} is {}, but ids are from 0 to {}", i,
                         tensor.offset + std::size_t(i) * sizeof(Id), id, vocabulary - 1));
      mix(of_tokens_, std::uint64_t(id));
      all.push_back(std::int32_t(id));
    }
    result_.fingerprint = fmt::format("tokens-{:016x}-{:016x}-{}-{}", of_tokens_, of_starts_, all.size(), result_.split);
  }

  /// FNV-1a, a number at a time.
  static void mix(std::uint64_t& hash, std::uint64_t number) { hash = (hash ^ number) * 1099511628211ull; }

  const fs::path& directory_;
  const Tokenizer& tokenizer_;
  fs::path file_;
  Metadata metadata_;  // of the first shard
  bool narrow_ = true;
  std::int64_t tokens_ = 0;
  std::uint64_t of_tokens_ = 1469598103934665603ull, of_starts_ = of_tokens_;  // each by itself: wherever shards are cut
  TokenShards result_;
};

}  // namespace

TokenDataset TokenShards::parts() && {
  TokenStream validation;
  validation.tokens.assign(all.tokens.begin() + split, all.tokens.end());
  validation.document_starts = {0};
  const auto second = std::lower_bound(all.document_starts.begin(), all.document_starts.end(), split);
  for (auto start = second; start != all.document_starts.end(); ++start)
    if (*start > split) validation.document_starts.push_back(*start - split);
  all.document_starts.erase(second, all.document_starts.end());
  all.tokens.resize(std::size_t(split));
  return TokenDataset(std::move(all), std::move(validation));
}

TokenDataset TokenShards::whole() && { return TokenDataset({}, std::move(all)); }

bool holds_token_shards(const std::string& where) {
  std::error_code error;
  return fs::is_directory(where, error) && !shard_names(where).empty();
}

void check_no_token_shards(const fs::path& directory) {
  if (!shard_names(directory).empty())
    throw FileError(fmt::format("'{}' holds token shards already; remove them or name another directory", directory.string()));
}

std::int64_t write_token_shards(const fs::path& directory, const TextSource& text, const Tokenizer& tokenizer, std::int64_t tokens_per_shard) {
  check_no_token_shards(directory);
  const TokenShards encoding = encoded(text, tokenizer);
  const std::int64_t count = std::int64_t(encoding.all.tokens.size()), shards = (count + tokens_per_shard - 1) / tokens_per_shard;
  if (tokens_per_shard < 1 || shards > kMostShards)
    throw Error(fmt::format("[token shards] {} tokens in shards of {} are not 1 to {} shards", count, tokens_per_shard, kMostShards));
  make_directories(directory);
  replace_file(directory / "tokenizer.json", tokenizer.to_json() + "\n");
  Metadata metadata{{"format", kFormat}, {"version", kVersion}, {"name", text.name.empty() ? "text" : text.name},
                    {"text_bytes", std::to_string(text.text.size())}, {"vocabulary", std::to_string(tokenizer.size())},
                    {"tokenizer", sha256(tokenizer.to_json())}, {"shards", std::to_string(shards)},
                    {"tokens", std::to_string(count)}, {"training_tokens", std::to_string(encoding.split)}};
  const auto write = tokenizer.size() <= kNarrowVocabulary ? write_shard<std::uint16_t> : write_shard<std::int32_t>;
  for (std::int64_t i = 0; i < shards; ++i) {
    metadata["shard"] = std::to_string(i);
    const std::int64_t first = i * tokens_per_shard;
    write(directory / shard_name(i, shards), encoding.all, first, std::min(tokens_per_shard, count - first), metadata);
  }
  sync_directory(directory);
  return count;
}

TokenShards read_token_shards(const fs::path& directory, const TokenizerPointer& tokenizer) {
  const TokenizerPointer used = tokenizer ? tokenizer : load_tokenizer(directory / "tokenizer.json");
  TokenShards shards = ShardReader(directory, *used).read();
  shards.tokenizer = used;
  return shards;
}

}  // namespace hedgehog
