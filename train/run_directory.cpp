#include "train/run_directory.h"

#include <fmt/format.h>

#include "core/error.h"
#include "train/files.h"

namespace hedgehog {
namespace fs = std::filesystem;

void check_new_directory(const std::string& out) {
  std::error_code ignored;  // what cannot be looked at cannot be written either, and that says why
  if (fs::exists(out, ignored) && (!fs::is_directory(out, ignored) || !fs::is_empty(out, ignored)))
    throw UsageError(fmt::format("--out={} exists already and what is in it would be lost; name a new directory", out));
}

fs::path make_run_directory(const std::string& out, const std::string& name) {
  if (!out.empty()) {
    const fs::path path(out);
    std::error_code ignored;  // what cannot be looked at cannot be made either, and that says why
    if (fs::exists(path, ignored) && (!fs::is_directory(path, ignored) || !fs::is_empty(path, ignored)))
      throw UsageError(fmt::format("--out={} exists already; name a new directory, or go on with --resume={}", out, out));
    make_directories(path);
    return path;
  }
  for (int n = 1;; ++n) {
    const fs::path path = fs::path("runs") / fmt::format("{}-{}", name, n);
    make_directories(path.parent_path());
    std::error_code error;
    if (fs::create_directory(path, error)) return path;
    if (error) throw WriteError(fmt::format("[run] {} could not be made: {}", path.string(), error.message()));
  }
}

void mark_latest(const fs::path& run) {
  if (run.parent_path() != fs::path("runs")) return;
  const fs::path link = fs::path("runs") / "latest", fresh = fs::path("runs") / "latest.new";
  std::error_code ignored;  // a missing link costs convenience only
  fs::remove(fresh, ignored);
  fs::create_directory_symlink(run.filename(), fresh, ignored);
  fs::rename(fresh, link, ignored);
}

}  // namespace hedgehog
