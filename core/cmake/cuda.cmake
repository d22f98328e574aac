# The CUDA backend: cuda/*.cu, one file per ops/ family. There is none yet, so AUTO means off.
#
# What will be needed here, and why: CMAKE_CUDA_ARCHITECTURES has to be set before the language is enabled (default
# "80;90a"; wgmma needs 90a, so 90 and a Hopper "native" are raised to it); CMake 3.25 does not know C++20 for nvcc 13,
# so -std=c++20 is given as a plain option of the language; libcuda is never linked, its entry points are looked up.

set(HEDGEHOG_CUDA_STATE "off: not in this version")
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu)
if(NOT HEDGEHOG_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HEDGEHOG_CUDA must be AUTO, ON or OFF, but is '${HEDGEHOG_CUDA}'.")
endif()
if(HEDGEHOG_CUDA STREQUAL "ON" AND NOT cuda_sources)
  message(FATAL_ERROR "HEDGEHOG_CUDA=ON, but this version has no CUDA backend (cuda/ holds no sources); "
    "configure with -DHEDGEHOG_CUDA=OFF to build for the CPU.")
endif()
