#include "train/file_writer.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace hedgehog {

namespace {
constexpr size_t kBufferBytes = size_t{1} << 20;
}

FileWriter::FileWriter(const std::filesystem::path& path)
    : path_(path), buffer_(std::make_unique_for_overwrite<std::byte[]>(kBufferBytes)) {
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("create");
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), kBufferBytes - used_);
    std::memcpy(buffer_.get() + used_, bytes.data(), count);
    used_ += count;
    bytes = bytes.subspan(count);
    if (used_ == kBufferBytes) flush();
  }
}

void FileWriter::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void FileWriter::flush() {
  size_t written = 0;
  while (written < used_) {
    const ssize_t count = ::write(descriptor_, buffer_.get() + written, used_ - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("write");
    written += size_t(count);
  }
  used_ = 0;
}

void FileWriter::finish() {
  if (descriptor_ < 0) return;
  flush();
  // special files (/dev/null, pipes) refuse fsync with EINVAL and have nothing to sync
  if (::fsync(descriptor_) != 0 && errno != EINVAL) fail("sync");
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0) fail("close");
}

void FileWriter::fail(std::string_view action) const {
  throw WriteError(fmt::format("cannot {} '{}': {}", action, path_.string(), std::strerror(errno)));
}

}  // namespace hedgehog
