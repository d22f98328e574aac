# Finds PCRE2's library for 8-bit code units.
#
#   PCRE2::PCRE2    target with the header folder and the library
#   PCRE2_VERSION   as the header says

find_path(PCRE2_INCLUDE_DIR pcre2.h HINTS /opt/homebrew/include /usr/local/include)
find_library(PCRE2_LIBRARY pcre2-8 HINTS /opt/homebrew/lib /usr/local/lib)
mark_as_advanced(PCRE2_INCLUDE_DIR PCRE2_LIBRARY)

if(PCRE2_INCLUDE_DIR)
  file(STRINGS "${PCRE2_INCLUDE_DIR}/pcre2.h" PCRE2_lines REGEX "^#define PCRE2_M[A-Z]+OR ")
  string(REGEX REPLACE ".*MAJOR *([0-9]+).*MINOR *([0-9]+).*" "\\1.\\2" PCRE2_VERSION "${PCRE2_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PCRE2 REQUIRED_VARS PCRE2_LIBRARY PCRE2_INCLUDE_DIR VERSION_VAR PCRE2_VERSION)

if(PCRE2_FOUND AND NOT TARGET PCRE2::PCRE2)
  add_library(PCRE2::PCRE2 UNKNOWN IMPORTED)
  set_target_properties(PCRE2::PCRE2 PROPERTIES IMPORTED_LOCATION "${PCRE2_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${PCRE2_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS HH_PCRE2)
endif()
