#include "train/atomic_directory.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "train/files.h"

namespace hedgehog {

namespace {

namespace fs = std::filesystem;

fs::path with_suffix(const fs::path& path, const std::string& suffix) {
  fs::path result = path;
  result += suffix;
  return result;
}

/// Without a slash at its end, so that a suffix makes a sibling.
fs::path plain(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

[[noreturn]] void fail_rename(const fs::path& from, const fs::path& to) {
  throw WriteError(fmt::format("cannot rename '{}' to '{}': {}", from.string(), to.string(), std::strerror(errno)));
}

void rename_directory(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_rename(from, to);
}

/// Swaps two names in one step; false where the system or the file system cannot.
bool exchange(const fs::path& left, const fs::path& right) {
#if defined(__linux__) && defined(RENAME_EXCHANGE)
  if (::renameat2(AT_FDCWD, left.c_str(), AT_FDCWD, right.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) fail_rename(left, right);
  return false;
#elif defined(__APPLE__)
  if (::renamex_np(left.c_str(), right.c_str(), RENAME_SWAP) == 0) return true;
  if (errno != EINVAL && errno != ENOTSUP) fail_rename(left, right);
  return false;
#else
  (void)left, (void)right;
  return false;
#endif
}

/// Syncs every file and directory below, innermost first as far as it matters: files before the directory that names
/// them.
void sync_tree(const fs::path& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.is_symlink()) continue;
    if (entry.is_directory()) {
      sync_tree(entry.path());
      continue;
    }
    const int descriptor = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    const bool failed = descriptor < 0 || ::fsync(descriptor) != 0;
    const int error = errno;
    if (descriptor >= 0) ::close(descriptor);
    if (failed) throw WriteError(fmt::format("cannot sync '{}': {}", entry.path().string(), std::strerror(error)));
  }
  sync_directory(directory);
}

/// Removes NAME.tmp-<pid> of processes that are gone, and our own from an earlier save.
void remove_leftovers(const fs::path& target) {
  const std::string prefix = target.filename().string() + ".tmp-";
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent_of(target), ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    pid_t pid = 0;
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), pid);
    if (error != std::errc() || stop != name.data() + name.size() || pid <= 0) continue;
    const bool dead = ::kill(pid, 0) != 0 && errno == ESRCH;
    if (dead || pid == ::getpid()) fs::remove_all(entry.path(), ignored);
  }
}

/// Puts the filled temporary directory in the target's place.
void move_into_place(const fs::path& temporary, const fs::path& target) {
  const fs::path old = with_suffix(target, ".old");
  std::error_code ignored;
  if (!fs::exists(target, ignored)) {
    rename_directory(temporary, target);
  } else if (!exchange(temporary, target)) {
    fs::remove_all(old, ignored);
    rename_directory(target, old);
    if (::rename(temporary.c_str(), target.c_str()) != 0) {
      const int error = errno;
      ::rename(old.c_str(), target.c_str());
      errno = error;
      fail_rename(temporary, target);
    }
  }
  sync_directory(parent_of(target));
  // after an exchange the temporary name holds the former directory
  fs::remove_all(temporary, ignored);
  fs::remove_all(old, ignored);
}

}  // namespace

void save_directory(const fs::path& name, const std::function<void(const fs::path& temporary)>& fill) {
  const fs::path target = plain(name);
  make_directories(parent_of(target));
  std::error_code ignored;
  // a save that died between its renames left the good one under the old name
  if (const fs::path good = recover(target); good != target) rename_directory(good, target);
  remove_leftovers(target);
  if (fs::exists(target, ignored) && !fs::is_directory(target, ignored)) {
    throw WriteError(fmt::format("cannot save to '{}': a file has that name", target.string()));
  }

  const fs::path temporary = with_suffix(target, fmt::format(".tmp-{}", ::getpid()));
  try {
    make_directories(temporary);
    fill(temporary);
    sync_tree(temporary);
    move_into_place(temporary, target);
  } catch (const fs::filesystem_error& error) {
    fs::remove_all(temporary, ignored);
    throw WriteError(fmt::format("cannot save to '{}': {}", target.string(), error.code().message()));
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
}

fs::path recover(const fs::path& name) {
  const fs::path target = plain(name);
  const fs::path old = with_suffix(target, ".old");
  std::error_code ignored;
  if (!fs::exists(target, ignored) && fs::is_directory(old, ignored)) return old;
  return target;
}

}  // namespace hedgehog
