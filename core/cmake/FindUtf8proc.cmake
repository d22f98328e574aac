# Finds utf8proc.
#
#   Utf8proc::Utf8proc   target with the header folder and the library
#   Utf8proc_VERSION     as the header says

find_path(Utf8proc_INCLUDE_DIR utf8proc.h HINTS /opt/homebrew/include /usr/local/include)
find_library(Utf8proc_LIBRARY utf8proc HINTS /opt/homebrew/lib /usr/local/lib)
mark_as_advanced(Utf8proc_INCLUDE_DIR Utf8proc_LIBRARY)

if(Utf8proc_INCLUDE_DIR)
  file(STRINGS "${Utf8proc_INCLUDE_DIR}/utf8proc.h" Utf8proc_lines REGEX "^#define UTF8PROC_VERSION_M[A-Z]+OR ")
  string(REGEX REPLACE ".*MAJOR *([0-9]+).*MINOR *([0-9]+).*" "\\1.\\2" Utf8proc_VERSION "${Utf8proc_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Utf8proc REQUIRED_VARS Utf8proc_LIBRARY Utf8proc_INCLUDE_DIR VERSION_VAR Utf8proc_VERSION)

if(Utf8proc_FOUND AND NOT TARGET Utf8proc::Utf8proc)
  add_library(Utf8proc::Utf8proc UNKNOWN IMPORTED)
  set_target_properties(Utf8proc::Utf8proc PROPERTIES IMPORTED_LOCATION "${Utf8proc_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${Utf8proc_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS HH_UTF8PROC)
endif()
