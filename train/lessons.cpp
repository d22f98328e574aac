#include "train/lessons.h"

#include <fmt/format.h>

#include <filesystem>

#include "core/error.h"
#include "core/nearest_name.h"
#include "generated_lessons.h"
#include "train/files.h"
#include "train/utf8.h"

namespace hedgehog {

const std::vector<Lesson>& lessons() {
  static const std::vector<Lesson> all = [] {
    std::vector<Lesson> found;
    for (const auto& [name, text] : kLessonTexts) {
      // "# Title" is the first line
      const std::string whole = text;
      found.push_back({name, whole.substr(2, whole.find('\n') - 2), whole});
    }
    return found;
  }();
  return all;
}

std::string lesson_text(const std::string& name) {
  constexpr std::size_t kLongest = std::size_t(1) << 20;
  std::vector<std::string> names;
  for (const Lesson& lesson : lessons()) {
    if (lesson.name == name) return lesson.text;
    names.push_back(lesson.name);
  }
  std::error_code ignored;
  if (std::filesystem::exists(name, ignored)) return read_file(name, kLongest);
  const std::string nearest = nearest_name(name, names);
  throw UsageError(fmt::format("no lesson and no file is called '{}'; {}", valid_utf8(name),
                               nearest.empty() ? "step list shows the lessons" : "did you mean '" + nearest + "'?"));
}

}  // namespace hedgehog
