#include "train/unicode.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "core/error.h"
#include "train/utf8.h"

#ifdef HH_UTF8PROC
#include <utf8proc.h>
#endif

namespace hedgehog {

#ifdef HH_UTF8PROC

void need_unicode() {}

std::string composed(std::string_view text) {
  std::string result;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    bool ascii = true;
    while (end < text.size()) {
      const Utf8Step step = utf8_step(text, end);
      if (step.kind != Utf8Step::Kind::kCharacter) break;
      ascii = ascii && step.bytes == 1;
      end += step.bytes;
    }
    const std::string_view run = text.substr(begin, end - begin);
    if (ascii) {
      result += run;
    } else {
      utf8proc_uint8_t* bytes = nullptr;
      const auto count = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(run.data()), utf8proc_ssize_t(run.size()), &bytes,
                                      utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(bytes, &std::free);
      if (count < 0) throw Error(std::string("[tokenizer] the text has no normal form: ") + utf8proc_errmsg(count));
      result.append(reinterpret_cast<const char*>(bytes), size_t(count));
    }
    begin = end;
    while (begin < text.size() && utf8_step(text, begin).kind != Utf8Step::Kind::kCharacter) result += text[begin++];
  }
  return result;
}

std::u32string decomposed(const std::u32string& points) {
  std::u32string result;
  utf8proc_int32_t parts[32];
  for (const char32_t point : points) {
    int last = 0;
    const auto count = utf8proc_decompose_char(utf8proc_int32_t(point), parts, 32, UTF8PROC_DECOMPOSE, &last);
    for (utf8proc_ssize_t i = 0; i < std::min<utf8proc_ssize_t>(count, 32); ++i) result += char32_t(parts[i]);
  }
  // marks in a row stand by their combining class
  const auto combining = [](char32_t point) { return utf8proc_get_property(utf8proc_int32_t(point))->combining_class; };
  for (size_t i = 0; i < result.size();) {
    size_t end = i;
    while (end < result.size() && combining(result[end]) != 0) ++end;
    std::stable_sort(result.begin() + std::ptrdiff_t(i), result.begin() + std::ptrdiff_t(end),
                     [&](char32_t a, char32_t b) { return combining(a) < combining(b); });
    i = end + 1;
  }
  return result;
}

bool is_other(char32_t point) {
  const auto category = utf8proc_category(utf8proc_int32_t(point));
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

bool is_punctuation(char32_t point) {
  if (point < 0x80) return point > ' ' && point < 0x7f && !(point >= '0' && point <= '9') && !((point | 32) >= 'a' && (point | 32) <= 'z');
  const auto category = utf8proc_category(utf8proc_int32_t(point));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_nonspacing_mark(char32_t point) { return utf8proc_category(utf8proc_int32_t(point)) == UTF8PROC_CATEGORY_MN; }

void append_lower(std::u32string& points, char32_t point) {
  // the one code point whose lower case is two
  if (point == 0x130) {
    points += U"i\u0307";
    return;
  }
  points += char32_t(utf8proc_tolower(utf8proc_int32_t(point)));
}

#else

void need_unicode() {
  throw Error("it needs utf8proc, which this program was built without; install libutf8proc-dev (brew: utf8proc) and build again");
}

std::string composed(std::string_view) { return need_unicode(), ""; }
std::u32string decomposed(const std::u32string&) { return need_unicode(), U""; }
bool is_other(char32_t) { return need_unicode(), false; }
bool is_punctuation(char32_t) { return need_unicode(), false; }
bool is_nonspacing_mark(char32_t) { return need_unicode(), false; }
void append_lower(std::u32string&, char32_t) { need_unicode(); }

#endif

}  // namespace hedgehog
