#include <string>

/// Stands in for the CUDA backend in a build without it.
namespace hedgehog {
class Device;

bool built_with_cuda();
bool built_with_cuda() { return false; }

namespace detail {

Device* make_cuda_device(std::string& why_not);
Device* make_cuda_device(std::string& why_not) {
  why_not = "this build has no CUDA; install the CUDA toolkit and build again, or leave out --device=cuda to compute on the CPU";
  return nullptr;
}

}  // namespace detail
}  // namespace hedgehog
