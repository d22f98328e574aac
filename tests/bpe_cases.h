#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

namespace hedgehog::test {

/// A linear congruential generator: the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) { below(2); }
  size_t below(size_t count) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return size_t(state_ >> 33) % count;
  }

 private:
  uint64_t state_;
};

/// Words of a made-up language, some far more frequent than others.
inline std::string some_words(uint64_t seed, int words) {
  Random random(seed);
  std::string text;
  for (int i = 0; i < words; ++i) {
    const size_t rank = random.below(1 + random.below(3000));
    for (size_t rest = rank + 7; rest > 0; rest /= 11) text += "aeioust"[rest % 7], text += "lmnprstdkgh"[rest % 11];
    text += i % 13 == 12 ? ".\n" : " ";
  }
  return text;
}

/// ../shared/data seen from the repository, or from a worktree deeper down; a path that is not there if there is none.
inline std::filesystem::path shared_data() {
  for (std::filesystem::path folder = HH_SOURCE_DIR; folder.has_relative_path(); folder = folder.parent_path())
    if (std::filesystem::exists(folder.parent_path() / "shared/data")) return folder.parent_path() / "shared/data";
  return "shared/data";
}

}  // namespace hedgehog::test
