# The CUDA backend: cuda/*.cu, one file per ops/ family, compiled into the library; cuda/ is not touched without a toolkit.
#
# HEDGEHOG_CUDA  AUTO: on where a CUDA compiler is found; ON: required; OFF
# CMAKE_CUDA_ARCHITECTURES  default "80;90a": Ampere's code runs on everything newer; Hopper gets machine code of its own

set(HEDGEHOG_CUDA_STATE "off: HEDGEHOG_CUDA=OFF")
set(HEDGEHOG_CUDA_FOUND FALSE)
if(NOT HEDGEHOG_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HEDGEHOG_CUDA must be AUTO, ON or OFF, but is '${HEDGEHOG_CUDA}'.")
endif()

if(NOT HEDGEHOG_CUDA STREQUAL "OFF")
  set(HEDGEHOG_CUDA_STATE "off: no CUDA compiler (nvcc)")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    # the toolkit's own folder is often not in PATH
    find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin /opt/cuda/bin)
  endif()
  # has to be set before the language is enabled
  if(NOT CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80;90a")
  endif()
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native")
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capability ERROR_QUIET)
    string(REGEX MATCH "[0-9]+\\.[0-9]+" capability "${capability}")
    string(REPLACE "." "" CMAKE_CUDA_ARCHITECTURES "${capability}")
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES "80;90a")
    endif()
  endif()
  # a plain 90 lacks Hopper's own instructions
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^90(-real)?$" "90a\\1")
  set(CMAKE_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}" CACHE STRING "GPU architectures to compile for" FORCE)
  if(NOT CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
    message(STATUS "CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES} without 90a: no machine code for Hopper GPUs")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit 12.4)
    if(CUDAToolkit_FOUND)
      set(HEDGEHOG_CUDA_FOUND TRUE)
      list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
      set(HEDGEHOG_CUDA_STATE "${CUDAToolkit_VERSION} for sm ${architectures}")
    else()
      set(HEDGEHOG_CUDA_STATE "off: the toolkit is older than 12.4")
    endif()
  endif()
endif()
if(HEDGEHOG_CUDA STREQUAL "ON" AND NOT HEDGEHOG_CUDA_FOUND)
  string(REGEX REPLACE "^off: " "" reason "${HEDGEHOG_CUDA_STATE}")
  message(FATAL_ERROR "HEDGEHOG_CUDA=ON, but: ${reason}. Install the CUDA toolkit 12.4 or newer, or configure with -DHEDGEHOG_CUDA=OFF.")
endif()

# Adds the backend's objects to a target, or the stub that says why there is none.
function(hedgehog_add_cuda target)
  if(NOT HEDGEHOG_CUDA_FOUND)
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/core/cmake/no_cuda.cpp)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu ${PROJECT_SOURCE_DIR}/cuda/*.cpp)
  add_library(hedgehog_cuda OBJECT ${sources})
  target_include_directories(hedgehog_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(hedgehog_cuda PRIVATE fmt::fmt)
  set_target_properties(hedgehog_cuda PROPERTIES CXX_STANDARD 20 CXX_EXTENSIONS OFF)
  # CMake 3.25 knows no C++20 for nvcc 13; the second lets device code call our constexpr functions
  target_compile_options(hedgehog_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr --extended-lambda -lineinfo>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<CONFIG:Release>>:-O3>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:hedgehog_cuda>)
  # never libcuda: a program that needs it does not start where there is no driver
  target_link_libraries(${target} PRIVATE CUDA::cudart_static CUDA::cublasLt)
endfunction()
