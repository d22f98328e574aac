#include "train/text_source.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <iterator>

#include "core/error.h"
#include "train/config.h"
#include "train/files.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr std::string_view kSeparator = "<|endoftext|>";
constexpr size_t kSniffedBytes = size_t{1} << 16;
constexpr size_t kNamedSkips = 5;

constexpr std::array<std::string_view, 24> kTextExtensions = {
    ".txt",  ".text", ".md",  ".markdown", ".rst", ".tex",  ".org", ".adoc", ".csv", ".tsv", ".json", ".jsonl",
    ".html", ".htm",  ".xml", ".yaml",     ".yml", ".toml", ".py",  ".c",    ".h",   ".cpp", ".srt",  ".log"};

/// Why the bytes are not text, or empty: NUL bytes, or more than 5 % that belong to no UTF-8 character.
std::string binary_reason(std::string_view bytes) {
  if (const size_t nul = bytes.find('\0'); nul != std::string_view::npos)
    return fmt::format("a NUL byte at offset {}", nul);
  const size_t invalid = invalid_utf8_bytes(bytes);
  if (invalid * 20 > bytes.size()) {
    return fmt::format("{:.0f} % of its bytes are not UTF-8", 100.0 * double(invalid) / double(bytes.size()));
  }
  return "";
}

/// Appends one file's text: its documents, without the separator lines.
void append_documents(TextSource& source, std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  bool at_start = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    std::string_view line = text.substr(begin, end - begin);
    begin = end;
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
    if (line == kSeparator) {
      at_start = true;
      continue;
    }
    if (at_start) source.document_starts.push_back(source.text.size());
    at_start = false;
    source.text += text.substr(size_t(line.data() - text.data()), size_t(text.data() + end - line.data()));
  }
}

[[noreturn]] void refuse(const std::string& where, const std::string& reason) {
  throw FileError(fmt::format("cannot train on '{}': {}", where, reason));
}

void check_text(const std::string& where, std::string_view text) {
  if (text.empty()) refuse(where, "it is empty");
  if (const std::string reason = binary_reason(text); !reason.empty()) refuse(where, "it is not text (" + reason + ")");
}

void read_one(TextSource& source, const std::string& where, const std::string& text) {
  check_text(where, text);
  append_documents(source, text);
  if (source.text.empty()) refuse(where, "it holds separators and no text");
}

bool has_text_extension(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  return std::find(kTextExtensions.begin(), kTextExtensions.end(), extension) != kTextExtensions.end();
}

/// Regular files below a directory in order of path; hidden files and folders are left out.
std::vector<std::filesystem::path> files_below(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  std::filesystem::recursive_directory_iterator walk(directory, error), end;
  for (; !error && walk != end; walk.increment(error)) {
    std::error_code ignored;
    if (walk->path().filename().string().starts_with('.')) {
      walk.disable_recursion_pending();
    } else if (walk->is_regular_file(ignored)) {
      files.push_back(walk->path());
    }
  }
  if (error) refuse(directory.string(), error.message());
  std::sort(files.begin(), files.end());
  return files;
}

std::string beginning_of(const std::filesystem::path& file) {
  std::string text(kSniffedBytes, '\0');
  std::ifstream stream(file, std::ios::binary);
  stream.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(stream.gcount()));
  return text;
}

void read_directory(TextSource& source, const std::filesystem::path& directory) {
  const std::vector<std::filesystem::path> files = files_below(directory);
  size_t skipped = 0;
  size_t used = 0;
  for (const std::filesystem::path& file : files) {
    // a film or an archive is not read whole to find out that it is not text
    std::string text = has_text_extension(file) ? "" : beginning_of(file);
    std::string reason = binary_reason(text);
    if (reason.empty()) text = read_file(file);
    if (reason.empty()) reason = text.empty() ? "empty" : binary_reason(text);
    if (reason.empty()) {
      append_documents(source, text);
      ++used;
    } else if (++skipped <= kNamedSkips) {
      source.notes.push_back(fmt::format("skipped '{}': {}", file.string(), reason));
    }
  }
  if (skipped > kNamedSkips)
    source.notes.push_back(fmt::format("skipped {} more files that are not text", skipped - kNamedSkips));
  if (source.text.empty())
    refuse(directory.string(), fmt::format("the directory holds no text ({} files looked at)", files.size()));
  source.notes.push_back(fmt::format("read {} of {} files, {} bytes", used, files.size(), source.text.size()));
}

/// A short name for a run's directory: letters, digits, - and _.
std::string short_name(const std::filesystem::path& path) {
  std::string name =
      std::filesystem::is_directory(path) ? (path / "").parent_path().filename().string() : path.stem().string();
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_') c = '-';
  }
  return name.empty() || name.find_first_not_of('-') == std::string::npos ? "text" : name;
}

}  // namespace

TextSource read_text(const std::string& where, std::istream& input) {
  TextSource source;
  source.where = where == "-" ? "standard input" : fmt::format("'{}'", where);
  if (where == "-") {
    source.name = "stdin";
    const std::string text{std::istreambuf_iterator<char>(input), std::istreambuf_iterator<char>()};
    read_one(source, "standard input", text);
    return source;
  }
  std::error_code error;
  if (std::filesystem::is_directory(where, error)) {
    source.name = short_name(where);
    read_directory(source, where);
    return source;
  }
  if (std::filesystem::exists(where, error)) {
    source.name = short_name(where);
    read_one(source, where, read_file(where));
    return source;
  }
  std::vector<std::string> names;
  for (const KnownText& known : known_texts()) {
    names.push_back(known.name);
    if (known.name != where) continue;
    source.name = known.name;
    const std::filesystem::path file = fetch_known_text(known, cache_directory(), source.notes);
    read_one(source, file.string(), read_file(file));
    return source;
  }
  const std::string nearest = nearest_name(where, names);
  throw FileError(fmt::format("--data: there is no file, directory or known text '{}'{}", valid_utf8(where),
                              nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest)));
}

TextSource read_text(const std::string& where) { return read_text(where, std::cin); }

}  // namespace hedgehog
