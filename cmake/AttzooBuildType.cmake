# The kernels are compiled within the user's program. GCC optimises them in any build type
# (kernel/compiler.hpp); Clang only as far as the program's flags say.

include_guard(GLOBAL)

function(attzoo_check_build_type)
  get_property(several GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(several OR "${CMAKE_CXX_FLAGS} $ENV{CXXFLAGS}" MATCHES "-O[1-9sfgz]|/O[12]")
    return()
  endif()
  if(NOT CMAKE_BUILD_TYPE)
    message(STATUS "attzoo: no CMAKE_BUILD_TYPE is set, so this project is compiled without "
      "optimisation; configure with -DCMAKE_BUILD_TYPE=Release")
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND NOT CMAKE_CXX_FLAGS MATCHES "-O0")
      target_compile_options(attzoo_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-O2>)
    endif()
  elseif(CMAKE_BUILD_TYPE STREQUAL "Debug" AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(STATUS "attzoo: Clang compiles the attention kernels without optimisation in Debug, "
      "many times slower; RelWithDebInfo has debug information, too")
  endif()
endfunction()

attzoo_check_build_type()
