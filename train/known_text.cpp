#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "core/error.h"
#include "train/files.h"
#include "train/text_source.h"

extern char** environ;

namespace hedgehog {

namespace {

/// Runs a program found on the PATH, without a shell; its exit code, or 127 where it could not be started.
int run_program(std::vector<std::string> arguments) {
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  pid_t child = 0;
  if (::posix_spawnp(&child, pointers[0], nullptr, nullptr, pointers.data(), environ) != 0) return 127;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return 127;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

}  // namespace

const std::vector<KnownText>& known_texts() {
  static const std::vector<KnownText> texts = {
      {"shakespeare", "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
       "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
  };
  return texts;
}

std::filesystem::path cache_directory() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  // the base directory specification says that a relative path is to be ignored
  if (variable("XDG_CACHE_HOME").is_absolute()) return variable("XDG_CACHE_HOME") / "hedgehog";
  if (!variable("HOME").empty()) return variable("HOME") / ".cache" / "hedgehog";
  return std::filesystem::temp_directory_path() / "hedgehog";
}

std::filesystem::path fetch_known_text(const KnownText& known, const std::filesystem::path& cache,
                                       std::vector<std::string>& notes) {
  const std::filesystem::path file = cache / (known.name + ".txt");
  std::error_code error;
  if (std::filesystem::exists(file, error)) {
    if (sha256(read_file(file)) == known.sha256) return file;
    notes.push_back(fmt::format("'{}' is damaged and is downloaded again", file.string()));
  }
  make_directories(cache);
  const std::filesystem::path temporary = cache / fmt::format("{}.tmp-{}", known.name, ::getpid());
  // the speed limit gives up after a minute without a byte
  const int code = run_program({"curl", "--fail", "--location", "--silent", "--connect-timeout", "20", "--speed-limit", "1",
                                "--speed-time", "60", "--output", temporary.string(), known.url});
  if (code != 0) {
    std::filesystem::remove(temporary, error);
    throw FileError(
        code == 127
            ? fmt::format("cannot download '{}': curl is not installed; fetch {} yourself and give it as --data=FILE",
                          known.name, known.url)
            : fmt::format("cannot download '{}' from {}: curl failed with code {}; without a network, give a file of "
                          "your own as --data=FILE",
                          known.name, known.url, code));
  }
  const std::string text = read_file(temporary);
  const std::string found = sha256(text);
  if (found != known.sha256) {
    std::filesystem::remove(temporary, error);
    throw FileError(fmt::format("the download of '{}' from {} has SHA-256 {}, expected {}; run again, or fetch the text "
                                "yourself and give it as --data=FILE",
                                known.name, known.url, found, known.sha256));
  }
  std::filesystem::rename(temporary, file, error);
  if (error) throw WriteError(fmt::format("cannot write '{}': {}", file.string(), error.message()));
  notes.push_back(fmt::format("downloaded {} ({} bytes) to {}", known.url, text.size(), file.string()));
  return file;
}

}  // namespace hedgehog
