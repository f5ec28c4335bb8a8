# Sets attzoo_version to the version that include/attzoo/version.hpp states.

cmake_path(SET header NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../include/attzoo/version.hpp")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${header}")
set(attzoo_version "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS "${header}" line REGEX "^#define ATTZOO_VERSION_${part} [0-9]+$")
  string(REGEX REPLACE ".* " "" line "${line}")
  list(APPEND attzoo_version ${line})
endforeach()
list(JOIN attzoo_version "." attzoo_version)
