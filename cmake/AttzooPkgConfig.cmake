# Installs attzoo.pc and, beside the library, attzoo-compiled.pc, for projects without CMake (Linux).
#
# LibTorch has no .pc file, so attzoo.pc has its flags: those of attzoo::torch, and for its folder the
# variable torchdir, which `pkg-config --define-variable` sets anew.

# A property of attzoo::torch as flags, each behind a space and `before`.
function(attzoo_torch_flags property before out)
  get_target_property(values attzoo_torch ${property})
  set(flags "")
  foreach(value IN LISTS values)
    string(REGEX REPLACE "^\\$<\\$<COMPILE_LANGUAGE:CXX>:(.*)>$" "\\1" value "${value}")
    string(REGEX REPLACE "^LINKER:" "-Wl," value "${value}")
    if(value)
      string(APPEND flags " ${before}${value}")
    endif()
  endforeach()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

function(attzoo_install_pkg_config)
  if(NOT ATTZOO_TORCH_ROOT OR NOT UNIX OR APPLE)
    return()
  endif()
  attzoo_torch_flags(INTERFACE_COMPILE_DEFINITIONS -D definitions)
  attzoo_torch_flags(INTERFACE_COMPILE_OPTIONS "" compile_flags)
  attzoo_torch_flags(INTERFACE_LINK_OPTIONS "" link_flags)
  string(PREPEND compile_flags "${definitions}")

  set(folder "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
  file(RELATIVE_PATH up "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
  string(REGEX REPLACE "/$" "" up "${up}")
  cmake_path(APPEND includedir "\${prefix}" "${CMAKE_INSTALL_INCLUDEDIR}")
  cmake_path(APPEND libdir "\${prefix}" "${CMAKE_INSTALL_LIBDIR}")
  foreach(name attzoo attzoo-compiled)
    configure_file("${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in"
      "${PROJECT_BINARY_DIR}/${name}.pc" @ONLY)
  endforeach()
  install(FILES "${PROJECT_BINARY_DIR}/attzoo.pc" DESTINATION "${folder}")
  if(ATTZOO_INSTALL_COMPILED)  # as the library, only if that was built
    cmake_path(ABSOLUTE_PATH folder BASE_DIRECTORY "\${CMAKE_INSTALL_PREFIX}")
    install(CODE "if(EXISTS \"$<TARGET_FILE:attzoo_compiled>\")
      file(INSTALL \"${PROJECT_BINARY_DIR}/attzoo-compiled.pc\" DESTINATION \"${folder}\")
    endif()")
  endif()
endfunction()

attzoo_install_pkg_config()
