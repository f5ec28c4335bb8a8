# Settings of attzoo's own build only; a user's project sees none of this.

# include/attzoo/attzoo.hpp follows the list of mechanisms.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS support/mechanisms.hpp)
execute_process(COMMAND "${CMAKE_COMMAND}" "-DROOT=${PROJECT_SOURCE_DIR}"
  -P "${CMAKE_CURRENT_LIST_DIR}/WriteUmbrella.cmake" COMMAND_ERROR_IS_FATAL ANY)

set(CMAKE_CXX_EXTENSIONS OFF)
add_compile_options(-Wall -Wextra)

find_program(ccache ccache)
if(ccache)
  # ccache refuses precompiled headers unless it may trust their time stamps.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime "${ccache}")
endif()

# A file that includes LibTorch takes 1 to 1.6 GB to compile: never more at once than fit.
cmake_host_system_information(RESULT memory QUERY TOTAL_PHYSICAL_MEMORY)  # MiB
math(EXPR jobs "${memory} / 2048")
if(jobs LESS 1)
  set(jobs 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS attzoo_compile=${jobs})
set(CMAKE_JOB_POOL_COMPILE attzoo_compile)

# A precompiled LibTorch, shared by the library and all programs. Position independent for the
# library's sake, and so are all that use it, or else the compiler would not take it.
option(ATTZOO_PCH "Precompile LibTorch for attzoo's own library, tests and programs" ON)
if(ATTZOO_PCH)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp" CONTENT "")
  add_library(attzoo_pch OBJECT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp")
  set_target_properties(attzoo_pch PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_definitions(attzoo_pch PRIVATE ATTZOO_COMPILED)
  target_link_libraries(attzoo_pch PRIVATE attzoo::attzoo)
  target_precompile_headers(attzoo_pch PRIVATE "${PROJECT_SOURCE_DIR}/support/precompiled.hpp")
endif()

function(attzoo_use_pch target)
  if(TARGET attzoo_pch)
    target_compile_options(${target} PRIVATE ${CMAKE_CXX_COMPILE_OPTIONS_PIC})
    target_precompile_headers(${target} REUSE_FROM attzoo_pch)
  endif()
endfunction()

# An executable on attzoo, compiled with the precompiled LibTorch.
function(attzoo_add_executable name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE attzoo::compiled)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  attzoo_use_pch(${name})
endfunction()

# For programs in which correctness counts and speed does not: half the time to compile. The
# library that they link, and the kernels in any file, are optimised all the same.
function(attzoo_compile_quickly target)
  target_compile_options(${target} PRIVATE
    $<$<AND:$<CXX_COMPILER_ID:GNU,Clang>,$<NOT:$<CONFIG:Debug>>>:-O1>)
endfunction()
