#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

namespace hedgehog {

/// Text to train on, as read from where `--data=` says.
///
/// text             all documents, one after another (bytes, mostly UTF-8)
/// document_starts  byte offsets at which documents begin, ascending, the first 0; one a file, and one more after each
///                  line that is exactly <|endoftext|> (the line itself is taken out)
/// notes            sentences for the user: what was skipped and why, what was downloaded
/// name             short name for the run's directory, e.g. "input" or "shakespeare"
/// where            what was asked for, for messages
struct TextSource {
  std::string text;
  std::vector<size_t> document_starts;
  std::vector<std::string> notes;
  std::string name;
  std::string where = "the text";
};

/// A text known by name, downloaded once into the cache and checked.
struct KnownText {
  std::string name;
  std::string url;
  std::string sha256;  ///< lower-case hexadecimal
};

/// The texts that `--data=NAME` knows.
const std::vector<KnownText>& known_texts();

/// Reads text from a known name, a file, a directory (recursive, sorted by path; text by extension or by content;
/// binaries skipped with a note) or "-" (standard input). A path that exists wins over a known name.
///
/// where   value of --data
/// input   what "-" reads
///
/// Throws: FileError, one sentence: missing, empty, binary (NUL bytes, or more than 5 % invalid UTF-8), a directory
///         without text, a failed or wrong download.
TextSource read_text(const std::string& where, std::istream& input);
/// The same with std::cin.
TextSource read_text(const std::string& where);

/// The file of a known text, downloaded by curl into `cache` if it is not there yet, checksum verified either way.
///
/// cache   directory, by default cache_directory()
/// notes   gets a sentence if something was downloaded
///
/// Throws: FileError if curl is missing or fails, or the checksum differs (the file is then removed).
std::filesystem::path fetch_known_text(const KnownText& known, const std::filesystem::path& cache,
                                       std::vector<std::string>& notes);

/// $XDG_CACHE_HOME/hedgehog, or ~/.cache/hedgehog.
std::filesystem::path cache_directory();

/// SHA-256 of the bytes, lower-case hexadecimal. Source: FIPS 180-4.
std::string sha256(std::string_view bytes);

}  // namespace hedgehog
