#pragma once
#include <doctest/doctest.h>

#include <initializer_list>
#include <string>

#include "tests/program.h"
#include "tests/temporary_directory.h"

/// What the tests of the command line share.
namespace hedgehog::test {

/// A run of six steps of the smallest model.
inline const char* const kSmall =
    "--layers=1 --heads=2 --width=16 --context=16 --batch=2 --steps=6 --warmup=2 --evaluate_every=3 --save_every=2 --quiet ";

inline std::string some_text() {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the hedgehog number " + std::to_string(i * i) + " walks home. ";
  return text;
}

/// One line and nothing else, the right exit code, and what it has to name.
inline void check_refused(const ProgramResult& r, int code, std::initializer_list<const char*> parts) {
  CAPTURE(r.output);
  CHECK(r.code == code);
  CHECK(r.output.starts_with("hedgehog: "));
  CHECK(r.output.find('\n') + 1 == r.output.size());
  for (const char* part : parts) CHECK(contains(r.output, part));
}

}  // namespace hedgehog::test
