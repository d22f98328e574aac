#pragma once
#include <string>
#include <vector>

namespace hedgehog {

/// A text with commands of the stepper between its paragraphs: lines that begin with "> ". The first one opens its program.
struct Lesson {
  std::string name, title, text;
};
/// The lessons of examples/lessons, in order; they are part of the program.
const std::vector<Lesson>& lessons();
/// The text of a lesson by name, or of a file. Throws UsageError naming the nearest if there is neither, FileError if it cannot be read.
std::string lesson_text(const std::string& name_or_file);

}  // namespace hedgehog
