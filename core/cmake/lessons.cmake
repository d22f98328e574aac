# examples/lessons/NN-NAME.md become part of the program, in the order of their numbers

file(GLOB lesson_files CONFIGURE_DEPENDS examples/lessons/*.md)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${lesson_files})
set(lesson_texts "")
foreach(file IN LISTS lesson_files)
  cmake_path(GET file STEM name)
  string(REGEX REPLACE "^[0-9]+-" "" name "${name}")
  file(READ ${file} text)
  string(APPEND lesson_texts "    {\"${name}\", R\"lesson(${text})lesson\"},\n")
endforeach()
configure_file(${PROJECT_SOURCE_DIR}/core/cmake/lessons.h.in ${PROJECT_BINARY_DIR}/generated/generated_lessons.h @ONLY)
