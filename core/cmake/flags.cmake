# Compiler flags of every target of ours, and the compiler cache. Nothing here reaches a consumer.

# not -ffast-math: NaN and infinity are tested for, and sums keep their written order
set(hedgehog_release_flags -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(HEDGEHOG_SANITIZE_FLAG "")
if(HEDGEHOG_SANITIZE)
  list(JOIN HEDGEHOG_SANITIZE "," sanitizers)
  set(HEDGEHOG_SANITIZE_FLAG "-fsanitize=${sanitizers}")
endif()

function(hedgehog_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<CONFIG:Release>:${hedgehog_release_flags}>)
  if(HEDGEHOG_NATIVE)
    target_compile_options(${target} PRIVATE -march=native)
  endif()
  if(NOT TARGET OpenMP::OpenMP_CXX)
    target_compile_options(${target} PRIVATE -Wno-unknown-pragmas)
  endif()
  if(HEDGEHOG_SANITIZE)
    target_compile_options(${target} PRIVATE ${HEDGEHOG_SANITIZE_FLAG} -fno-omit-frame-pointer
      -fno-sanitize-recover=all -O1 -g1)
    target_link_options(${target} PRIVATE ${HEDGEHOG_SANITIZE_FLAG})
  endif()
  set_target_properties(${target} PROPERTIES CXX_STANDARD 20 CXX_EXTENSIONS OFF)
endfunction()

find_program(HEDGEHOG_CCACHE ccache)
mark_as_advanced(HEDGEHOG_CCACHE)
if(HEDGEHOG_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # without these ccache refuses every file that uses a precompiled header
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${HEDGEHOG_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${HEDGEHOG_CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endif()
