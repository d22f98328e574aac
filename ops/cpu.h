#pragma once
#include <cstdint>
#include <string>

namespace hedgehog {

/// Cores this process may use: the smaller of its affinity mask and its cgroup's (v1 or v2) CPU quota, at least 1.
int usable_cores();

/// Sets the number of OpenMP threads to usable_cores(), unless OMP_NUM_THREADS is set. Returns the number in force.
int configure_threads();

/// Threads that the next parallel loop of the calling thread would use.
int thread_count();

/// Sets the number of OpenMP threads of later parallel loops; 1 without OpenMP.
void set_thread_count(int threads);

/// Whether the caller is inside a parallel loop of more than one thread.
bool in_parallel_region();

/// Marketing name of the processor, e.g. "AMD EPYC 9354"; "unknown processor" where it cannot be read.
std::string cpu_model();

/// Bytes that can still be allocated without swapping: free memory of the machine, or what the memory limits of the
/// process's cgroups leave of it, whichever is less. 0 if unknown.
std::int64_t available_memory();

}  // namespace hedgehog
