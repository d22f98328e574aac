#include "train/files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "train/file_writer.h"

namespace hedgehog {

std::string read_file(const std::filesystem::path& path, size_t limit) {
  const auto fail = [&](const std::string& reason) {
    throw FileError(fmt::format("cannot read '{}': {}", path.string(), reason));
  };
  struct Descriptor {
    int value;
    ~Descriptor() {
      if (value >= 0) ::close(value);
    }
  } file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.value < 0) fail(std::strerror(errno));
  struct stat status{};
  if (::fstat(file.value, &status) != 0) fail(std::strerror(errno));
  if (S_ISDIR(status.st_mode)) fail("it is a directory");
  if (!S_ISREG(status.st_mode)) fail("it is not a regular file");
  if (size_t(status.st_size) > limit)
    fail(fmt::format("it has {} bytes, more than the {} allowed", status.st_size, limit));

  std::string text(size_t(status.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(file.value, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(std::strerror(errno));
    if (count == 0) break;
    done += size_t(count);
  }
  text.resize(done);
  return text;
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  FileWriter file(path);
  file.write(text);
  file.finish();
}

void replace_file(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path temporary = path;
  temporary += fmt::format(".tmp-{}", ::getpid());
  try {
    write_file(temporary, text);
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
      throw WriteError(
          fmt::format("cannot rename '{}' to '{}': {}", temporary.string(), path.string(), std::strerror(errno)));
    }
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_directory(path.parent_path());
}

void make_directories(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw WriteError(fmt::format("cannot create directory '{}': {}", path.string(), error.message()));
}

void sync_directory(const std::filesystem::path& path) {
  const std::filesystem::path directory = path.empty() ? "." : path;
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    throw WriteError(fmt::format("cannot sync directory '{}': {}", directory.string(), std::strerror(errno)));
  }
  const bool failed = ::fsync(descriptor) != 0 && errno != EINVAL;
  const int error = errno;
  ::close(descriptor);
  if (failed) throw WriteError(fmt::format("cannot sync directory '{}': {}", directory.string(), std::strerror(error)));
}

}  // namespace hedgehog
