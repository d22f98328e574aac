#pragma once
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace hedgehog {

/// Parses a file that is not trusted: an object, no name twice in an object, nesting bounded.
///
/// file           for messages
/// what           what the file should be, e.g. "tokenizer"
/// maximum_depth  levels of objects and lists, the outermost included
///
/// Throws: FileError naming the file, and the byte or the name.
nlohmann::json parse_strict_json(const std::filesystem::path& file, const std::string& content, const char* what, int maximum_depth);

}  // namespace hedgehog
