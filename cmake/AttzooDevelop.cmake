# Settings of attzoo's own build only; a user's project sees none of this.

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

# A precompiled LibTorch, shared by the programs that say REUSE_FROM attzoo_pch.
option(ATTZOO_PCH "Precompile LibTorch for attzoo's own tests and programs" ON)
if(ATTZOO_PCH)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp" CONTENT "")
  add_library(attzoo_pch OBJECT "${CMAKE_BINARY_DIR}/attzoo_pch.cpp")
  target_link_libraries(attzoo_pch PRIVATE attzoo::attzoo)
  target_precompile_headers(attzoo_pch PRIVATE <torch/torch.h>)
endif()

# An executable on attzoo, compiled with the precompiled LibTorch.
function(attzoo_add_executable name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE attzoo::attzoo)
  if(TARGET attzoo_pch)
    target_precompile_headers(${name} REUSE_FROM attzoo_pch)
  endif()
endfunction()
