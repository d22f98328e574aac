#include <doctest/doctest.h>

#include "cuda/refusal.h"

using hedgehog::cuda::Opening;
using hedgehog::cuda::refusal;

TEST_CASE("device: what can be wrong with a GPU is said in a sentence, the first thing first") {
  Opening o;
  CHECK(refusal(o) == "there is no NVIDIA driver on this machine; install it, or leave out --device=cuda to compute on the CPU");
  o.driver = 12020, o.runtime = 13000;
  const std::string old = "the NVIDIA driver supports CUDA 12.2, but this program was built with CUDA 13.0; update the driver, or build with an older toolkit";
  CHECK(refusal(o) == old);
  o.driver = 13010;
  CHECK(refusal(o) == "the driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or leave out --device=cuda to compute on the CPU");
  o.driver_error = "system not yet initialized";
  CHECK(refusal(o) == "the driver gives an error: system not yet initialized; check nvidia-smi");
  o.driver_error.clear();
  o.gpus = 1;
  CHECK(refusal(o) == "the GPU does not answer; check nvidia-smi");
  o.name = "Tesla T4", o.major = 7, o.minor = 5;
  CHECK(refusal(o) == "Tesla T4 has compute capability 7.5, but 8.0 (Ampere) or newer is needed");
  o.name = "A100", o.major = 8, o.minor = 0;
  CHECK(refusal(o).empty());
  o.start = Opening::Start::busy;
  CHECK(refusal(o) == "A100 is in exclusive use by another process; wait for it, or compute on the CPU");
  o.start = Opening::Start::no_memory;
  CHECK(refusal(o) == "A100 has no memory left for this process; stop the other programs on it");
  o.start = Opening::Start::no_code;
  CHECK(refusal(o) == "this program holds no code for A100, compute capability 8.0; build it with -DCMAKE_CUDA_ARCHITECTURES=native");
  o.start = Opening::Start::failed, o.start_error = "unknown error";
  CHECK(refusal(o) == "A100 cannot be used: unknown error");
  o.start = Opening::Start::good, o.driver_too_old = true;
  CHECK(refusal(o).find("update the driver") != std::string::npos);
}
