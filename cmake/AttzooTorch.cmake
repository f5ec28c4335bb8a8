# Finds LibTorch and makes the target attzoo::torch.
#
# Order: an existing target `torch`; the folders that the user names (ATTZOO_TORCH, Torch_DIR,
# Torch_ROOT, CMAKE_PREFIX_PATH, CONDA_PREFIX); the torch of the active Python; and, only where
# ATTZOO_FETCH_TORCH is set by attzoo's own top-level build, a private copy that pip installs.
#
# find_package(Torch) is the last resort on purpose: with a CUDA LibTorch it wants the CUDA toolkit,
# asks for the dialect CUDA20, and puts a toolkit's NCCL before the one that LibTorch brings.

include_guard(GLOBAL)

# The root (the folder that holds lib/ and include/) of the first TorchConfig.cmake among `ARGN`.
function(attzoo_torch_root_among out)
  find_file(config TorchConfig.cmake NO_CACHE NO_DEFAULT_PATH PATHS ${ARGN}
    PATH_SUFFIXES "" Torch share/cmake/Torch torch/share/cmake/Torch)
  if(config)
    cmake_path(SET root NORMALIZE "${config}/../../../..")
    string(REGEX REPLACE "/$" "" root "${root}")
    set(${out} "${root}" PARENT_SCOPE)
  endif()
endfunction()

function(attzoo_torch_root_of_python out)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_EXECUTABLE)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c
        "import importlib.util as u; s = u.find_spec('torch'); print(list(s.submodule_search_locations)[0] if s else '')"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(found AND EXISTS "${found}/share/cmake/Torch/TorchConfig.cmake")
      set(${out} "${found}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

function(attzoo_find_torch_root out)
  set(named ${ATTZOO_TORCH} ${Torch_DIR} ${Torch_ROOT} ${CMAKE_PREFIX_PATH})
  foreach(variable ATTZOO_TORCH Torch_DIR Torch_ROOT CMAKE_PREFIX_PATH CONDA_PREFIX)
    if(DEFINED ENV{${variable}})
      file(TO_CMAKE_PATH "$ENV{${variable}}" paths)
      list(APPEND named ${paths})
    endif()
  endforeach()
  if(named)
    attzoo_torch_root_among(root ${named})
  endif()
  if(NOT root)
    attzoo_torch_root_of_python(root)
  endif()
  if(NOT root AND ATTZOO_FETCH_TORCH)
    include("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/AttzooFetchTorch.cmake")
    attzoo_fetch_torch(root)
  endif()
  set(${out} "${root}" PARENT_SCOPE)
endfunction()

# at::parallel_for in our headers runs serially in a program compiled without OpenMP.
function(attzoo_add_openmp)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    return()
  endif()
  if(UNIX AND NOT APPLE)
    # As flags, not as the path of a library: LibTorch brings the one that is loaded.
    separate_arguments(flags NATIVE_COMMAND "${OpenMP_CXX_FLAGS}")
    target_compile_options(attzoo_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${flags}>)
    target_link_options(attzoo_torch INTERFACE ${flags})
  else()
    target_link_libraries(attzoo_torch INTERFACE OpenMP::OpenMP_CXX)
  endif()
endfunction()

# A target of our own on the libraries in `root`, without the detours of find_package(Torch).
function(attzoo_thin_torch_target root)
  set(prefix ${CMAKE_SHARED_LIBRARY_PREFIX})
  set(suffix ${CMAKE_SHARED_LIBRARY_SUFFIX})
  if(WIN32)
    set(prefix "")
    set(suffix ".lib")
  endif()
  add_library(attzoo_torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(attzoo_torch SYSTEM INTERFACE
    "${root}/include" "${root}/include/torch/csrc/api/include")
  target_compile_features(attzoo_torch INTERFACE cxx_std_20)
  if(EXISTS "${root}/share/cmake/Torch/TorchConfig.cmake")
    file(STRINGS "${root}/share/cmake/Torch/TorchConfig.cmake" old_abi
      REGEX "_GLIBCXX_USE_CXX11_ABI=0")
    if(old_abi)
      target_compile_definitions(attzoo_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=0)
    endif()
  endif()
  if(UNIX AND NOT APPLE)
    # LibTorch's own rpath finds what it needs; the linker need not look for it.
    target_link_options(attzoo_torch INTERFACE "LINKER:--no-as-needed"
      "LINKER:--allow-shlib-undefined")
  endif()
  target_link_libraries(attzoo_torch INTERFACE
    "${root}/lib/${prefix}torch_cpu${suffix}" "${root}/lib/${prefix}c10${suffix}")
  attzoo_add_openmp()
  set(ATTZOO_TORCH_ROOT "${root}" CACHE INTERNAL "The LibTorch that attzoo was configured with")
endfunction()

function(attzoo_provide_torch)
  if(TARGET attzoo::torch)
    return()
  endif()
  unset(ATTZOO_TORCH_ROOT CACHE)
  if(TARGET torch)
    add_library(attzoo_torch INTERFACE IMPORTED GLOBAL)
    target_link_libraries(attzoo_torch INTERFACE torch ${TORCH_LIBRARIES})
    if(UNIX AND NOT APPLE)
      target_link_options(attzoo_torch INTERFACE "LINKER:--allow-shlib-undefined")
    endif()
    attzoo_add_openmp()
    message(STATUS "attzoo: LibTorch is the existing target torch")
  else()
    attzoo_find_torch_root(root)
    if(NOT root)
      message(FATAL_ERROR
        "attzoo: LibTorch was not found. Download it from https://pytorch.org/get-started/locally "
        "or run `pip install torch` in the active Python environment,\n"
        "then configure again, with -DCMAKE_PREFIX_PATH=<the libtorch folder> if it is not Python's.")
    endif()
    if(EXISTS "${root}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}"
       OR EXISTS "${root}/lib/torch_cpu.lib")
      attzoo_thin_torch_target("${root}")
    else()  # a static or repackaged LibTorch: only its own config knows what to link
      find_package(Torch REQUIRED PATHS "${root}")
      add_library(attzoo_torch INTERFACE IMPORTED GLOBAL)
      target_link_libraries(attzoo_torch INTERFACE ${TORCH_LIBRARIES})
    endif()
    message(STATUS "attzoo: LibTorch in ${root}")
  endif()
  add_library(attzoo::torch ALIAS attzoo_torch)
endfunction()

attzoo_provide_torch()
