# Writes the includes of include/attzoo/attzoo.hpp, one for each mechanism that
# support/mechanisms.hpp lists, and one for the version:
#
#   cmake -DROOT=<the source tree> [-DCHECK=ON] -P cmake/WriteUmbrella.cmake
#
# Fails where the list and the headers disagree. With CHECK nothing is written, and it fails, too,
# where the umbrella is not what would be written.

cmake_minimum_required(VERSION 3.25)
cmake_path(ABSOLUTE_PATH ROOT NORMALIZE)
set(umbrella "${ROOT}/include/attzoo/attzoo.hpp")

file(STRINGS "${ROOT}/support/mechanisms.hpp" entries REGEX "^ *visit\\(\"[a-z0-9_]+\",")
list(TRANSFORM entries REPLACE "^ *visit\\(\"([a-z0-9_]+)\".*" "\\1" OUTPUT_VARIABLE listed)
file(GLOB headers RELATIVE "${ROOT}/include/attzoo" "${ROOT}/include/attzoo/*.hpp")
list(TRANSFORM headers REPLACE "\\.hpp$" "")
list(REMOVE_ITEM headers attzoo config version)

set(missing ${headers})
list(REMOVE_ITEM missing ${listed})
set(unknown ${listed})
list(REMOVE_ITEM unknown ${headers})
if(missing)
  message(FATAL_ERROR "support/mechanisms.hpp does not list ${missing}")
elseif(unknown)
  message(FATAL_ERROR "support/mechanisms.hpp lists what has no header: ${unknown}")
endif()

list(APPEND listed version)
list(SORT listed)
list(TRANSFORM listed REPLACE "(.+)" "#include <attzoo/\\1.hpp>\n" OUTPUT_VARIABLE includes)
string(JOIN "" includes ${includes})
file(READ "${umbrella}" before)
string(REGEX REPLACE "(#include <attzoo/[a-z0-9_]+\\.hpp>\n)+" "${includes}" after "${before}")
if(before STREQUAL after)
  return()
elseif(CHECK)
  message(FATAL_ERROR "include/attzoo/attzoo.hpp is not what support/mechanisms.hpp makes it; "
    "configure the top-level build, or run cmake -DROOT=. -P cmake/WriteUmbrella.cmake")
endif()
file(WRITE "${umbrella}" "${after}")
message(STATUS "attzoo: include/attzoo/attzoo.hpp written anew from support/mechanisms.hpp")
