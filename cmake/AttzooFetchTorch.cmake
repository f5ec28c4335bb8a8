# Installs LibTorch with pip into a private folder of this checkout that survives `rm -rf build`.
#
# Without a GPU the slim form is installed: torch itself and the two libraries that its CPU part
# links to, 1.2 GB instead of 5.4. With one, everything, so that CUDA works at run time.

set(ATTZOO_TORCH_VERSION "2.15.0" CACHE STRING
  "The torch that attzoo's own build installs where none is found")

# The NVIDIA wheels that libtorch_cpu.so of a torch wheel links to, as pip requirements.
function(attzoo_slim_requirements version out)
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(${out} "" PARENT_SCOPE)  # these wheels are CPU-only already
  elseif(version VERSION_EQUAL "2.15.0")
    set(${out} "nvidia-cuda-runtime==13.2.*" "nvidia-cuda-cupti==13.2.*" PARENT_SCOPE)
  else()
    set(${out} "unknown" PARENT_SCOPE)
  endif()
endfunction()

function(attzoo_fetch_torch out)
  set(home "${CMAKE_SOURCE_DIR}/.libtorch")
  file(MAKE_DIRECTORY "${home}")
  file(LOCK "${home}/lock" GUARD FUNCTION)

  set(form full)
  attzoo_slim_requirements("${ATTZOO_TORCH_VERSION}" requirements)
  if(NOT EXISTS "/dev/nvidia0" AND NOT requirements STREQUAL "unknown")
    set(form slim)
  endif()
  set(folder "${home}/${ATTZOO_TORCH_VERSION}-${form}")
  if(NOT EXISTS "${folder}/.complete")
    find_package(Python3 COMPONENTS Interpreter QUIET)
    if(NOT Python3_EXECUTABLE)
      message(WARNING "attzoo: no Python 3, so LibTorch cannot be installed by pip")
      return()
    endif()
    message(STATUS "attzoo: installing torch ${ATTZOO_TORCH_VERSION} (${form}) into ${folder} ...")
    set(dependencies "")
    if(form STREQUAL "slim")
      set(dependencies --no-deps)
    else()
      set(requirements "")
    endif()
    file(REMOVE_RECURSE "${folder}")
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -m pip install --quiet --disable-pip-version-check
        --root-user-action=ignore --no-compile ${dependencies} --target "${folder}"
        "torch==${ATTZOO_TORCH_VERSION}" ${requirements}
      RESULT_VARIABLE failed ERROR_VARIABLE error)
    if(failed)
      file(REMOVE_RECURSE "${folder}")
      message(FATAL_ERROR "attzoo: pip could not install torch ${ATTZOO_TORCH_VERSION}:\n${error}"
        "Give a LibTorch instead: cmake -DCMAKE_PREFIX_PATH=<the libtorch folder> ...")
    endif()
    file(TOUCH "${folder}/.complete")
  endif()
  set(${out} "${folder}/torch" PARENT_SCOPE)
endfunction()
