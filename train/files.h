#pragma once
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace hedgehog {

/// The whole file as bytes.
///
/// path   a regular file
/// limit  bytes; a longer file is refused before it is read
///
/// Throws: FileError (missing, a directory, unreadable, over the limit).
std::string read_file(const std::filesystem::path& path, size_t limit = size_t{1} << 40);

/// Makes or overwrites a file with the text, checked and synced. Throws WriteError.
void write_file(const std::filesystem::path& path, std::string_view text);

/// Like write_file, but under a temporary name that is renamed into place: a reader sees the old text or the new one,
/// and a failed write leaves the old one. Throws WriteError.
void replace_file(const std::filesystem::path& path, std::string_view text);

/// Creates a directory and its parents. Throws WriteError.
void make_directories(const std::filesystem::path& path);

/// Syncs a directory, so that names made or renamed in it survive a power cut. Throws WriteError.
void sync_directory(const std::filesystem::path& path);

}  // namespace hedgehog
