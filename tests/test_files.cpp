#include <doctest/doctest.h>

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "train/file_writer.h"
#include "tests/temporary_directory.h"
#include "train/atomic_directory.h"
#include "train/files.h"
#include "train/interrupt.h"

using namespace hedgehog;

namespace {

namespace fs = std::filesystem;

/// Saves a directory of two files that both hold `text`.
void save(const fs::path& target, const std::string& text) {
  save_directory(target, [&](const fs::path& directory) {
    write_file(directory / "first", text);
    write_file(directory / "second", text);
  });
}

/// What both files hold; "torn" if they differ.
std::string loaded(const fs::path& target) {
  const fs::path good = recover(target);
  const std::string first = bytes_of(good / "first");
  return first == bytes_of(good / "second") ? first : "torn";
}

size_t entries(const fs::path& directory) {
  return size_t(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

/// While it lives, files of this process may not grow beyond `bytes`: writes fail as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    former_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &former_);
    const rlimit limit{bytes, former_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &former_);
    ::signal(SIGXFSZ, former_handler_);
  }

 private:
  rlimit former_{};
  sighandler_t former_handler_ = SIG_DFL;
};

}  // namespace

TEST_CASE("files: written and read back, with the limits and errors named") {
  TemporaryDirectory directory;
  const fs::path path = directory / "a";
  const std::string text(3'000'000, 'x');
  write_file(path, text);
  CHECK(read_file(path) == text);
  CHECK(
      contains(message_of<FileError>([&] { read_file(path, 10); }), "it has 3000000 bytes, more than the 10 allowed"));
  CHECK(contains(message_of<FileError>([&] { read_file(directory.path()); }), "it is a directory"));
  CHECK(contains(message_of<FileError>([&] { read_file(directory / "b"); }), "No such file"));
  CHECK(contains(message_of<WriteError>([&] { write_file(directory.path(), ""); }), "Is a directory"));
  replace_file(path, "new");
  CHECK(read_file(path) == "new");
  CHECK(entries(directory.path()) == 1);
  CHECK(contains(message_of<WriteError>([&] { make_directories(path / "x"); }), "cannot create directory"));
  CHECK(contains(message_of<WriteError>([&] { make_directories(path); }), "cannot create directory"));
}

TEST_CASE("files: a write that fails leaves the old file and no temporary one") {
  TemporaryDirectory directory;
  const fs::path path = directory / "a";
  write_file(path, "old");
  {
    FileSizeLimit limit(1000);
    CHECK(contains(message_of<WriteError>([&] { replace_file(path, std::string(5000, 'x')); }), "File too large"));
  }
  CHECK(read_file(path) == "old");
  CHECK(entries(directory.path()) == 1);
}

TEST_CASE("atomic directory: made, replaced, and nothing left over") {
  TemporaryDirectory directory;
  const fs::path target = directory / "runs/x/last";
  save(target, "one");
  CHECK(loaded(target) == "one");
  save(target.string() + "/", "two");
  CHECK(loaded(target) == "two");
  CHECK(entries(target.parent_path()) == 1);
  CHECK(recover(directory / "absent") == directory / "absent");
  const fs::path file = directory.file("file", "mine");
  CHECK(contains(message_of<WriteError>([&] { save(file, "x"); }), "a file has that name"));
  CHECK(bytes_of(file) == "mine");
}

TEST_CASE("atomic directory: a failed save keeps the old one and removes the temporary one") {
  TemporaryDirectory directory;
  const fs::path target = directory / "last";
  save(target, "good");
  {
    FileSizeLimit limit(1000);
    CHECK(contains(message_of<WriteError>([&] { save(target, std::string(5000, 'x')); }), "File too large"));
  }
  CHECK_THROWS_AS(save_directory(target, [](const fs::path&) { throw ShapeError("stop"); }), ShapeError);
  CHECK(loaded(target) == "good");
  CHECK(entries(directory.path()) == 1);
}

TEST_CASE("atomic directory: a full disk") {
  TemporaryDirectory directory;
  if (::mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=256k") != 0) {
    MESSAGE("skipped: mounting a small file system needs root");
    return;
  }
  struct Unmount {
    const fs::path& path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } unmount{directory.path()};
  const fs::path target = directory / "last";
  save(target, "good");
  CHECK(contains(message_of<WriteError>([&] { save(target, std::string(200'000, 'x')); }), "No space left on device"));
  CHECK(loaded(target) == "good");
  CHECK(entries(directory.path()) == 1);
  save(target, "better");
  CHECK(loaded(target) == "better");
}

TEST_CASE("atomic directory: what a dead save left is resolved") {
  TemporaryDirectory directory;
  const fs::path target = directory / "last";
  // died between its two renames: the old one under .old, the new one still temporary
  directory.file("last.old/first", "old");
  directory.file("last.old/second", "old");
  directory.file("last.tmp-999999999/first", "new");
  CHECK(recover(target) == directory / "last.old");
  CHECK(loaded(target) == "old");
  save(target, "newer");
  CHECK(loaded(target) == "newer");
  CHECK(entries(directory.path()) == 1);
  // died while removing .old, with the new one in place
  directory.file("last.old/first", "half removed");
  CHECK(loaded(target) == "newer");
  save(target, "newest");
  CHECK(entries(directory.path()) == 1);
  // a temporary directory of a process that lives is its own
  directory.file("last.tmp-1/first", "x");
  directory.file("last.tmp-name/first", "x");
  save(target, "again");
  CHECK(entries(directory.path()) == 3);
}

TEST_CASE("atomic directory: kill -9 at any moment leaves a whole one") {
  TemporaryDirectory directory;
  const fs::path target = directory / "last";
  save(target, "0");
  int last = 0;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (int i = last + 1;; ++i) save(target, std::to_string(i));
    }
    ::usleep(useconds_t(500 + 700 * round));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const std::string found = loaded(target);
    CAPTURE(found);
    REQUIRE(found != "torn");
    REQUIRE_FALSE(found.empty());
    CHECK(std::stoi(found) >= last);
    last = std::stoi(found);
  }
  save(target, "end");
  CHECK(entries(directory.path()) == 1);
}

TEST_CASE("interrupt: the first signal raises the flag, the second ends the process with 130") {
  {
    InterruptGuard guard;
    CHECK_FALSE(guard.interrupted());
    ::raise(SIGINT);
    CHECK(guard.interrupted());
  }
  {
    InterruptGuard guard;
    CHECK_FALSE(guard.interrupted());
    ::raise(SIGTERM);
    CHECK(guard.interrupted());
  }
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    InterruptGuard guard;
    ::raise(SIGINT);
    ::raise(SIGINT);
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
}
