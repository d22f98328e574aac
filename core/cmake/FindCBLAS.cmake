# Finds a CBLAS: OpenBLAS first, then any other. Installed beside the package file, so that consumers find the same.
#
#   CBLAS::CBLAS        target with the header folder and the library
#   CBLAS_DESCRIPTION   the library file, for the table of the configure run

find_path(CBLAS_INCLUDE_DIR cblas.h
  HINTS /opt/homebrew/opt/openblas/include /usr/local/opt/openblas/include
  PATH_SUFFIXES openblas openblas-pthread)
find_library(CBLAS_LIBRARY NAMES openblas openblasp blis cblas mkl_rt blas
  NAMES_PER_DIR HINTS /opt/homebrew/opt/openblas/lib /usr/local/opt/openblas/lib)
mark_as_advanced(CBLAS_INCLUDE_DIR CBLAS_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CBLAS REQUIRED_VARS CBLAS_LIBRARY CBLAS_INCLUDE_DIR)

if(CBLAS_FOUND)
  cmake_path(GET CBLAS_LIBRARY FILENAME CBLAS_DESCRIPTION)
  if(NOT TARGET CBLAS::CBLAS)
    add_library(CBLAS::CBLAS UNKNOWN IMPORTED)
    set_target_properties(CBLAS::CBLAS PROPERTIES IMPORTED_LOCATION "${CBLAS_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${CBLAS_INCLUDE_DIR}")
  endif()
endif()
