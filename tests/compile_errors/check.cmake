# cmake -DCOMPILER=... -DFLAGS=... -DSOURCE=cases.cpp -DCASE=n -P check.cmake
# Case 0 must compile; any other must not, and the first line with an error must have the words that
# the source gives for it.

cmake_minimum_required(VERSION 3.25)
separate_arguments(FLAGS NATIVE_COMMAND "${FLAGS}")
execute_process(COMMAND ${COMPILER} -fsyntax-only -DCASE=${CASE} ${FLAGS} ${SOURCE}
  RESULT_VARIABLE failed ERROR_VARIABLE errors OUTPUT_VARIABLE output)
if(CASE EQUAL 0)
  if(failed)
    message(FATAL_ERROR "case 0 must compile:\n${errors}")
  endif()
  return()
endif()
file(STRINGS ${SOURCE} wanted REGEX "// CASE ${CASE}: ")
string(REGEX REPLACE ".*// CASE ${CASE}: " "" wanted "${wanted}")
string(REPLACE ";" "," errors "${errors}")
string(REGEX MATCH "[^\n]*error: [^\n]*" first "${errors}")
if(NOT failed)
  message(FATAL_ERROR "case ${CASE} compiles")
elseif(NOT first MATCHES "${wanted}")
  message(FATAL_ERROR "case ${CASE}: expected '${wanted}' in the first error, got:\n${first}")
endif()
message(STATUS "case ${CASE}: ${first}")
