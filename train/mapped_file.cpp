#include "train/mapped_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace hedgehog {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const auto fail = [&](const char* reason) { throw FileError(fmt::format("cannot read '{}': {}", path_.string(), reason)); };
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(std::strerror(errno));
  struct stat status{};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    fail(S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file");
  }
  size_ = size_t(status.st_size);
  void* mapping = size_ == 0 ? nullptr : ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (mapping == MAP_FAILED) fail(std::strerror(error));
  bytes_ = static_cast<const std::byte*>(mapping);
}

MappedFile::~MappedFile() {
  if (bytes_ != nullptr) ::munmap(const_cast<std::byte*>(bytes_), size_);
}

void MappedFile::forget() const {
  if (bytes_ != nullptr) ::madvise(const_cast<std::byte*>(bytes_), size_, MADV_DONTNEED);
}

}  // namespace hedgehog
