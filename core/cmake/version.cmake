# Writes OUTPUT with the version and the commit of SOURCE; untouched when nothing changed.
# cmake -DSOURCE=... -DVERSION=... -DOUTPUT=... -P version.cmake

cmake_minimum_required(VERSION 3.25)
set(commit "")
find_program(GIT git)
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE} describe --always --dirty --abbrev=10 --exclude=*
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set(text "${VERSION}")
if(commit)
  string(APPEND text "+${commit}")
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#pragma once
/// Version and git commit of the sources, e.g. 0.1.0+3f2a91c04b-dirty.
#define HH_VERSION \"@text@\"
" @ONLY)
