#pragma once
#include <array>
#include <cstdio>
#include <string>
#include <sys/wait.h>

namespace hedgehog::test {

struct ProgramResult {
  int code = 0;        // exit code, or 128 + signal
  std::string output;  // stdout and stderr together
};

/// Runs a shell command; an own process, so that exit codes and signals are the real ones.
inline ProgramResult run_shell(const std::string& command) {
  ProgramResult result;
  std::FILE* pipe = ::popen((command + " 2>&1 < /dev/null").c_str(), "r");
  if (!pipe) return {-1, "popen failed"};
  std::array<char, 4096> buffer;
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) result.output.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

/// The program under test with these arguments, run in `folder`, on the CPU wherever there is a GPU: texts and digits are then the
/// same on every machine.
inline ProgramResult run_program(const std::string& arguments, const std::string& folder = ".", const std::string& before = "") {
  return run_shell("cd '" + folder + "' && export CUDA_VISIBLE_DEVICES= && " + before + " '" HH_BINARY_DIR "/bin/hedgehog' " + arguments);
}

}  // namespace hedgehog::test
