# NVRTC for the tests, which needs no GPU: 50 MB of PyPI, once. Without a network they skip.
cmake_minimum_required(VERSION 3.25)
if(EXISTS ${FOLDER}/nvidia/cu13/lib/libnvrtc.so.13)
  return()
endif()
execute_process(COMMAND ${PYTHON} -m pip --disable-pip-version-check download --quiet --no-deps
  --only-binary :all: --dest ${FOLDER} nvidia-cuda-nvrtc==13.2.86 RESULT_VARIABLE failed)
file(GLOB wheel ${FOLDER}/*.whl)
if(failed OR NOT wheel)
  message(STATUS "NVRTC could not be downloaded: the tests of CUDA kernels skip")
  return()
endif()
file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${FOLDER})
file(REMOVE ${wheel})
