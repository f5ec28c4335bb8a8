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

# LibTorch precompiled, for optimised code and for such as is not: the library and the programs that
# measure something are optimised, tests and examples compile in half the time without. (What they
# link is optimised, and the kernels in any file.) Most of those need all of attzoo, too. Position
# independent for the library's sake, and so are all that use them, or else the compiler would not
# take them.
option(ATTZOO_PCH "Precompile LibTorch for attzoo's own library, tests and programs" ON)
set(unoptimised $<$<CXX_COMPILER_ID:GNU,Clang>:-O0>)

# attzoo_precompile(<name> [<header>...]): LibTorch and these.
function(attzoo_precompile name)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp" CONTENT "")
  add_library(${name} OBJECT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp")
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_definitions(${name} PRIVATE ATTZOO_COMPILED)
  target_link_libraries(${name} PRIVATE attzoo::attzoo)
  target_precompile_headers(${name} PRIVATE "${PROJECT_SOURCE_DIR}/support/precompiled.hpp" ${ARGN})
endfunction()
if(ATTZOO_PCH)
  attzoo_precompile(attzoo_pch)
  attzoo_precompile(attzoo_pch_unoptimised <attzoo/attzoo.hpp>)
  target_compile_options(attzoo_pch_unoptimised PRIVATE ${unoptimised})
endif()

function(attzoo_use_pch target pch)
  if(ATTZOO_PCH)
    target_compile_options(${target} PRIVATE ${CMAKE_CXX_COMPILE_OPTIONS_PIC})
    target_precompile_headers(${target} REUSE_FROM ${pch})
  endif()
endfunction()

# An executable on attzoo: attzoo_add_executable(<name> [UNOPTIMISED] <source>...).
function(attzoo_add_executable name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "UNOPTIMISED" "" "")
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE attzoo::compiled)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  if(arg_UNOPTIMISED)
    target_compile_options(${name} PRIVATE ${unoptimised})
    attzoo_use_pch(${name} attzoo_pch_unoptimised)
  else()
    attzoo_use_pch(${name} attzoo_pch)
  endif()
endfunction()
