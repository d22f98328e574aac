# tests/*.cpp in one doctest program, tests/test_*.sh one CTest each (argument: the build folder), examples/*.cpp one program and CTest each.

file(GLOB test_sources CONFIGURE_DEPENDS tests/*.cpp)
if(doctest_FOUND AND test_sources)
  add_executable(hedgehog_tests ${test_sources})
  hedgehog_flags(hedgehog_tests)
  set_target_properties(hedgehog_tests PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  target_link_libraries(hedgehog_tests PRIVATE hedgehog_train doctest::doctest)
  # absolute paths, so that the program finds the fixtures, the program under test and the examples from any folder
  target_compile_definitions(hedgehog_tests PRIVATE
    HH_SOURCE_DIR="${PROJECT_SOURCE_DIR}" HH_BINARY_DIR="${PROJECT_BINARY_DIR}")
  target_precompile_headers(hedgehog_tests PRIVATE <algorithm> <cmath> <functional> <map> <memory> <string>
    <vector> <doctest/doctest.h> <fmt/format.h> <nlohmann/json.hpp>)
  # main.cpp asks doctest for its implementation, which the precompiled header has already left out
  set_source_files_properties(tests/main.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
  if(TARGET hedgehog_program)
    add_dependencies(hedgehog_tests hedgehog_program)
  endif()
  add_test(NAME hedgehog_tests COMMAND hedgehog_tests)
endif()

file(GLOB example_sources CONFIGURE_DEPENDS examples/*.cpp)
foreach(source IN LISTS example_sources)
  cmake_path(GET source STEM name)
  add_executable(example_${name} ${source})
  hedgehog_flags(example_${name})
  set_target_properties(example_${name} PROPERTIES OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin/examples)
  target_link_libraries(example_${name} PRIVATE hedgehog)
  add_test(NAME example_${name} COMMAND example_${name})
endforeach()

file(GLOB scripts CONFIGURE_DEPENDS tests/test_*.sh)
foreach(script IN LISTS scripts)
  cmake_path(GET script STEM name)
  add_test(NAME ${name} COMMAND bash ${script} ${PROJECT_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900)
endforeach()

add_test(NAME consumer COMMAND ${CMAKE_COMMAND} -DBUILD=${PROJECT_BINARY_DIR}
  -DSOURCE=${PROJECT_SOURCE_DIR}/tests/consumer -DCOMPILER=${CMAKE_CXX_COMPILER} -DTYPE=${CMAKE_BUILD_TYPE}
  "-DSANITIZE=${HEDGEHOG_SANITIZE_FLAG}" -P ${PROJECT_SOURCE_DIR}/tests/consumer/run.cmake)
