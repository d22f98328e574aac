#include "ops/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#include <unistd.h>

namespace hedgehog {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// The number a control file starts with, or -1 ("max", empty, absent).
double number_in(const std::string& path) {
  std::istringstream line(first_line(path));
  double value = -1;
  return line >> value ? value : -1;
}

/// Folders that can hold this process's limits for one controller, innermost first: its own cgroup and all parents.
/// A container usually mounts its own cgroup as the root, so the root is always among them.
std::vector<std::string> cgroup_folders(const std::string& controller) {
  std::vector<std::string> folders;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    // version 2 lists no controllers; version 1 lists those of one hierarchy, e.g. "cpu,cpuacct"
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    const bool unified = second == first + 1;
    bool listed = unified;
    for (std::string name; std::getline(controllers, name, ',');) listed = listed || name == controller;
    if (!listed) continue;
    std::string root = "/sys/fs/cgroup";
    if (!unified) root.append("/").append(controller);
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.rfind('/'))) {
      folders.push_back(root + path);
      if (path.rfind('/') == std::string::npos) break;
    }
    folders.push_back(root);
  }
  return folders;
}

double cgroup_cores() {
  double cores = INFINITY;
  for (const std::string& folder : cgroup_folders("cpu")) {
    double quota = -1, period = -1;
    std::istringstream unified(first_line(folder + "/cpu.max"));
    if (!(unified >> quota >> period)) {
      quota = number_in(folder + "/cpu.cfs_quota_us");
      period = number_in(folder + "/cpu.cfs_period_us");
    }
    if (quota > 0 && period > 0) cores = std::min(cores, quota / period);
  }
  return cores;
}

double cgroup_memory_left() {
  double left = INFINITY;
  for (const std::string& folder : cgroup_folders("memory")) {
    double limit = number_in(folder + "/memory.max"), used = number_in(folder + "/memory.current");
    if (limit < 0) {
      limit = number_in(folder + "/memory.limit_in_bytes");
      used = number_in(folder + "/memory.usage_in_bytes");
    }
    if (limit >= 0 && used >= 0) left = std::min(left, std::max(0.0, limit - used));
  }
  return left;
}

}  // namespace

int usable_cores() {
  int cores = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
#endif
  // a quota of 1.5 cores keeps two threads busy three quarters of the time, which beats one
  const double quota = std::ceil(cgroup_cores());
  return quota < cores ? std::max(1, static_cast<int>(quota)) : cores;
}

int configure_threads() {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  if (!wanted || !*wanted) set_thread_count(usable_cores());
  return thread_count();
}

int thread_count() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void set_thread_count([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(std::max(1, threads));
#endif
}

bool in_parallel_region() {
#ifdef _OPENMP
  return omp_in_parallel();
#else
  return false;
#endif
}

std::string cpu_model() {
#ifdef __APPLE__
  char name[256];
  std::size_t size = sizeof name;
  if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0) return name;
#endif
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::int64_t available_memory() {
  double bytes = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) bytes = std::strtod(line.c_str() + 13, nullptr) * 1024;
  }
#ifdef __APPLE__
  std::uint64_t total = 0;
  std::size_t size = sizeof total;
  if (sysctlbyname("hw.memsize", &total, &size, nullptr, 0) == 0) bytes = static_cast<double>(total);
#endif
  if (bytes > 0) bytes = std::min(bytes, cgroup_memory_left());
  return static_cast<std::int64_t>(bytes);
}

}  // namespace hedgehog
