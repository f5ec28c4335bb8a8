# The house is as docs/design.md says: layers include downwards alone, headers are short, and a
# mechanism is one header with one test, one page and its line in the list.
#
#   cmake -DROOT=<the source tree> -P tests/layout_test.cmake

cmake_minimum_required(VERSION 3.25)

# ---- layers ---------------------------------------------------------------------------------------

# What each layer may include of attzoo: folders, "mechanism" for the headers beside them and their
# own folders. Within a layer the order of the files decides: there are no cycles, of whatever
# length. config.hpp, which includes nothing, is everybody's.
set(all_of_core core core/modifier core/attention core/recurrence core/layers)
set(attzoo.hpp_includes mechanism module functional io version.hpp)
set(mechanism_includes module functional ${all_of_core})
set(module_includes module functional ${all_of_core})
set(functional_includes functional ${all_of_core})
set(io_includes io core)
set(core/cpu_includes ${all_of_core} core/cpu kernel kernel/attention kernel/decode kernel/modifier
  kernel/recurrence)
set(core/cuda_includes ${all_of_core} core/cuda core/cuda/text kernel kernel/modifier)
set(core/cuda/text_includes core/cuda/text)
set(core/layers_includes core core/layers kernel kernel/decode)
set(core/recurrence_includes core core/recurrence kernel)
set(core/attention_includes core core/modifier core/attention kernel kernel/modifier)
set(core/modifier_includes core core/modifier kernel kernel/modifier)
set(core_includes core kernel kernel/isa)
set(kernel/decode_includes kernel kernel/isa kernel/modifier kernel/attention kernel/decode)
set(kernel/attention_includes kernel kernel/isa kernel/modifier kernel/attention)
set(kernel/recurrence_includes kernel kernel/isa kernel/recurrence)
set(kernel/modifier_includes kernel kernel/isa kernel/modifier)
set(kernel/isa_includes kernel kernel/isa)
set(kernel_includes kernel)
# Files that know more than their layer: who chooses a backend, modifiers of any type, which carry a
# form for the CPU, what shows the source for CUDA, what makes modules of a checkpoint's config.json, what gives them adapters, and
# the list of all that is compiled for each instruction set.
set(core/attention/dispatch_knows core/cpu core/cuda)
set(core/recurrence/recur_knows core/cpu)
set(core/recurrence/short_convolution_knows core/cpu)
set(functional/chosen_keys_knows core/cpu)
set(functional/sorted_blocks_knows core/cpu)
set(functional/cuda_source_knows core/cuda)
set(functional/cuda_jit_knows core/cuda)
set(io/model_config_knows mechanism module functional)
set(io/adapter_knows module core/layers)
set(kernel/bodies_knows kernel/isa kernel/modifier kernel/attention kernel/decode kernel/recurrence)
set(kernel/bodies.inc_knows ${kernel/bodies_knows})

function(layer_of path layer)  # path: relative to include/attzoo
  string(REGEX REPLACE "/[^/]*$" "" found "${path}")  # its folder; a file beside the folders itself
  if(NOT found MATCHES "^(config|version)\\.hpp$" AND NOT DEFINED ${found}_includes)
    set(found mechanism)
  endif()
  set(${layer} ${found} PARENT_SCOPE)
endfunction()

# A mechanism's name, of its header and of what lies in its folder.
function(mechanism_of path name)
  string(REGEX REPLACE "[./].*" "" found "${path}")
  set(${name} ${found} PARENT_SCOPE)
endfunction()

# A header and its definitions are one unit: core/x.hpp and core/x.ipp are core/x. (x.inc is another.)
function(unit_of path unit)
  string(REGEX REPLACE "\\.[hi]pp$" "" found "${path}")
  set(${unit} ${found} PARENT_SCOPE)
endfunction()

# Appends to `result` what the includes of a file do that its layer may not, and to `units` the units
# that it includes. Texts, not files, so that the check can itself be checked.
function(check_includes path text result units)
  set(all ${${result}})
  set(included ${${units}})
  layer_of("${path}" layer)
  unit_of("${path}" unit)
  set(allowed ${${layer}_includes} ${${unit}_knows})
  # Macros, too, name what is included (in kernel/, once for each instruction set).
  string(REGEX MATCHALL "#[ \t]*(include|define ATTZOO_[A-Z_]+ <)[^\n]*" lines "${text}")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "<([^>]+)>")
      if(NOT layer MATCHES "^kernel" OR NOT line MATCHES "include ATTZOO_[A-Z_]+$")
        list(APPEND all "${path}: '${line}' is not of the form <...>")
      endif()
      continue()
    endif()
    set(target "${CMAKE_MATCH_1}")
    if(target STREQUAL "torch/torch.h")
      list(APPEND all "${path} includes all of LibTorch")
    elseif(layer MATCHES "^kernel" AND target MATCHES "/" AND NOT target MATCHES "^(attzoo|sys)/")
      list(APPEND all "${path} knows <${target}>, more than the standard library")
    elseif(target MATCHES "^attzoo/(.+)$" AND NOT target STREQUAL "attzoo/config.hpp")
      set(target "${CMAKE_MATCH_1}")
      layer_of("${target}" below)
      unit_of("${target}" other)
      if(layer STREQUAL mechanism AND below STREQUAL mechanism)
        mechanism_of("${path}" mine)
        mechanism_of("${target}" its)
        set(is_allowed FALSE)
        if(mine STREQUAL its)
          set(is_allowed TRUE)
        endif()
      elseif(below IN_LIST allowed)
        set(is_allowed TRUE)
      else()
        set(is_allowed FALSE)
      endif()
      if(other STREQUAL unit)
        continue()
      elseif(NOT is_allowed)
        list(APPEND all "${path} (${layer}) may not include ${target} (${below})")
      endif()
      list(APPEND included ${other})
    endif()
  endforeach()
  set(${result} ${all} PARENT_SCOPE)
  set(${units} ${included} PARENT_SCOPE)
endfunction()

# The units that include each other in a circle, or stand on one that does; `<prefix><unit>` are the
# units that a unit includes.
function(find_cycles prefix result)
  set(left "${ARGN}")
  set(before none)
  while(NOT "${left}" STREQUAL "${before}")
    set(before "${left}")
    foreach(unit IN LISTS before)
      set(waiting ${${prefix}${unit}})
      set(free TRUE)
      foreach(other IN LISTS waiting)
        if(other IN_LIST left)
          set(free FALSE)
        endif()
      endforeach()
      if(free)
        list(REMOVE_ITEM left ${unit})
      endif()
    endforeach()
  endwhile()
  set(${result} "${left}" PARENT_SCOPE)
endfunction()

# Every planted include must be found, and no other.
function(expect_complaint path include)
  set(found "")
  check_includes(${path} "#pragma once\n\n#  include <cmath>\n#include ${include}\n// text\n"
    found ignored)
  list(LENGTH found count)
  if(NOT count EQUAL 1)
    message(SEND_ERROR "the check of layers lets ${path} include ${include}: '${found}'")
  endif()
endfunction()
function(expect_none path include)
  set(found "")
  check_includes(${path} "#include ${include}\n" found ignored)
  if(found)
    message(SEND_ERROR "the check of layers is too strict: ${found}")
  endif()
endfunction()
expect_complaint(functional/x.ipp "<attzoo/module/self_attention.hpp>")
expect_complaint(functional/x.hpp "<attzoo/multi_head.hpp>")
expect_complaint(functional/x.hpp "<attzoo/core/cpu/fused.hpp>")
expect_complaint(functional/x.hpp "<attzoo/kernel/compiler.hpp>")
expect_complaint(module/x.hpp "<attzoo/io/json.hpp>")
expect_complaint(module/x.hpp "<attzoo/attzoo.hpp>")
expect_complaint(module/x.hpp "<attzoo/lsh/buckets.hpp>")
expect_complaint(local.hpp "<attzoo/multi_head.hpp>")
expect_complaint(local.hpp "<attzoo/lsh/buckets.hpp>")
expect_complaint(lsh/x.hpp "<attzoo/block/x.hpp>")
expect_complaint(local.hpp "<attzoo/kernel/modifier/lane.hpp>")
expect_complaint(io/x.ipp "<attzoo/functional/rope.hpp>")
expect_complaint(local.hpp "<attzoo/io/model_config.hpp>")
expect_complaint(core/x.hpp "<attzoo/functional/rope.hpp>")
expect_complaint(core/x.hpp "<attzoo/core/modifier/grid.hpp>")
expect_complaint(core/x.hpp "<attzoo/core/cpu/runtime.hpp>")
expect_complaint(core/modifier/x.hpp "<attzoo/core/attention/reference.hpp>")
expect_complaint(core/recurrence/x.hpp "<attzoo/core/modifier/any_mask.hpp>")
expect_complaint(core/attention/x.hpp "<attzoo/core/cuda/fused.hpp>")
expect_complaint(core/cuda/x.hpp "<attzoo/core/cpu/fused.hpp>")
expect_complaint(core/cuda/x.hpp "<attzoo/kernel/attention/problem.hpp>")
expect_complaint(core/x.ipp ATTZOO_BODY)
expect_complaint(core/x.hpp "<torch/torch.h>")
expect_complaint(core/x.hpp "\"checks.hpp\"")
expect_complaint(kernel/isa/x.inc "<attzoo/core/checks.hpp>")
expect_complaint(kernel/modifier/x.hpp "<attzoo/kernel/attention/problem.hpp>")
expect_complaint(kernel/recurrence/x.hpp "<attzoo/kernel/attention/problem.hpp>")
expect_complaint(kernel/x.hpp "<ATen/core/Tensor.h>")
expect_complaint(kernel/decode/x.hpp "<c10/util/Half.h>")
expect_complaint(version.hpp "<attzoo/core/checks.hpp>")
expect_complaint(config.hpp "<attzoo/version.hpp>")
expect_complaint(local.hpp "<attzoo/version.hpp>")
expect_none(kernel/x.hpp "<sys/syscall.h>")
expect_none(kernel/isa/x.inc "<attzoo/kernel/math.hpp>")
expect_none(kernel/isa/x.inc ATTZOO_BODY)
expect_none(kernel/bodies.inc "<attzoo/kernel/recurrence/forward.inc>")
expect_none(core/attention/dispatch.ipp "<attzoo/core/cpu/fused.hpp>")
expect_none(functional/x.hpp "<attzoo/core/attention/dispatch.hpp>")
expect_none(functional/x.hpp "<attzoo/config.hpp>")
expect_none(local.hpp "<attzoo/module/self_attention.hpp>")
expect_none(io/model_config.hpp "<attzoo/grouped.hpp>")
expect_none(io/adapter.hpp "<attzoo/module/lora.hpp>")
expect_complaint(io/adapter.hpp "<attzoo/grouped.hpp>")
expect_none(local.hpp "<attzoo/local.ipp>")
expect_none(local.hpp "<attzoo/local/x.hpp>")
expect_none(local/x.ipp "<attzoo/local/y.hpp>")
set(planted_a b c)
set(planted_b c)
set(planted_c d)
set(planted_d b)
find_cycles(planted_ found a b c d)
if(NOT "${found}" STREQUAL "a;b;c;d")
  message(SEND_ERROR "the check of cycles misses one: '${found}'")
endif()
set(planted_d "")
find_cycles(planted_ found a b c d)
if(found)
  message(SEND_ERROR "the check of cycles is too strict: '${found}'")
endif()

# ---- all files of include/attzoo -------------------------------------------------------------------

set(include ${ROOT}/include/attzoo)
set(longest 400)  # lines of a file
file(GLOB_RECURSE files RELATIVE ${include} ${include}/*)
set(complaints "")
set(units "")
foreach(path IN LISTS files)
  layer_of(${path} layer)
  mechanism_of(${path} name)
  if(NOT path MATCHES "^([a-z0-9_]+/)*[a-z0-9_]+\\.(hpp|ipp|inc)$" OR
      layer STREQUAL mechanism AND NOT EXISTS ${include}/${name}.hpp)
    list(APPEND complaints "${path} has no place in include/attzoo")
    continue()
  endif()
  file(READ ${include}/${path} text)
  unit_of(${path} unit)
  list(APPEND units ${unit})
  check_includes(${path} "${text}" complaints on_${unit})
  string(REGEX MATCHALL "\n" lines "${text}")
  list(LENGTH lines count)
  if(count GREATER longest)
    list(APPEND complaints "${path} has ${count} lines, more than ${longest}")
  endif()
endforeach()
list(REMOVE_DUPLICATES units)
find_cycles(on_ circular ${units})
if(circular)
  list(APPEND complaints "there is a cycle among the includes of ${circular}")
endif()
foreach(complaint IN LISTS complaints)
  message(SEND_ERROR "${complaint}")
endforeach()

# ---- mechanisms -----------------------------------------------------------------------------------

file(STRINGS ${include}/attzoo.hpp umbrella REGEX "^#include <attzoo/")
list(TRANSFORM umbrella REPLACE ".*<attzoo/([^>]+)>.*" "\\1")
file(GLOB mechanisms RELATIVE ${include} ${include}/*.hpp)
list(REMOVE_ITEM mechanisms attzoo.hpp config.hpp version.hpp)
list(TRANSFORM mechanisms REPLACE "\\.hpp$" "")
foreach(name IN LISTS mechanisms)
  foreach(needed tests/${name}_test.cpp docs/mechanisms/${name}.md)
    if(NOT EXISTS ${ROOT}/${needed})
      message(SEND_ERROR "${needed} is missing")
    endif()
  endforeach()
  if(NOT ${name}.hpp IN_LIST umbrella)
    message(SEND_ERROR "include/attzoo/attzoo.hpp does not include ${name}.hpp")
  endif()
endforeach()
file(GLOB pages RELATIVE ${ROOT}/docs/mechanisms ${ROOT}/docs/mechanisms/*.md)
foreach(page IN LISTS pages)
  string(REGEX REPLACE "\\.md$" "" name ${page})
  if(NOT name IN_LIST mechanisms)
    message(SEND_ERROR "docs/mechanisms/${page} has no header")
  endif()
endforeach()

# The umbrella has no line but those of the one list of mechanisms.
if(EXISTS ${ROOT}/cmake/WriteUmbrella.cmake)
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${ROOT} -DCHECK=ON
    -P ${ROOT}/cmake/WriteUmbrella.cmake RESULT_VARIABLE failed ERROR_VARIABLE why)
  if(failed)
    message(SEND_ERROR "${why}")
  endif()
endif()

# ---- version --------------------------------------------------------------------------------------

include(${ROOT}/cmake/AttzooVersion.cmake)
file(READ ${ROOT}/packaging/vcpkg/attzoo/vcpkg.json port)
string(JSON port_version GET "${port}" version-semver)
if(NOT port_version STREQUAL attzoo_version)
  message(SEND_ERROR "vcpkg.json states version ${port_version}, version.hpp ${attzoo_version}")
endif()
file(STRINGS ${ROOT}/CITATION.cff cited REGEX "^version: ")
if(NOT cited STREQUAL "version: ${attzoo_version}")
  message(SEND_ERROR "CITATION.cff does not cite version ${attzoo_version}: '${cited}'")
endif()

# ---- tests ----------------------------------------------------------------------------------------

# A header of functional/, io/ and module/ has the test file of its name, but for these, which say
# where they are tested.
set(tested_elsewhere
  functional/apply_linear=core/layers
  functional/callables=core/callables
  functional/checks=bad_inputs
  functional/debug=functional/linear_attention
  functional/each_document=linformer
  functional/masks=functional/modifiers
  functional/nystrom_attention=nystrom
  functional/performer_attention=performer
  functional/native_sparse=native_sparse
  functional/result=functional/attention
  functional/scores=functional/modifiers
  functional/sdpa=functional/attention
  io/file=io/safetensors
  io/state_dict=io/safetensors
  module/any_attention=module/stack
  module/blend=longformer
  module/block_parts=module/transformer
  module/call=bad_inputs_modules
  module/callable_module=module/own_mechanism
  module/checks=bad_inputs_modules
  module/gate=gated
  module/heads=module/cache
  module/holder=module/own_mechanism
  module/inputs=bad_inputs_modules
  module/misspelt=module/own_mechanism
  module/module_ref=module/lora
  module/projections=module/own_mechanism
  module/row_buffer=module/cache
  module/self_attention=module/own_mechanism
  module/softmax=module/own_mechanism
  module/token_blocks=big_bird
  module/token_cache=module/cache
  module/wrapper=combined)
file(GLOB headers RELATIVE ${include}
  ${include}/functional/*.hpp ${include}/io/*.hpp ${include}/module/*.hpp)
list(TRANSFORM headers REPLACE "\\.hpp$" "")
foreach(entry IN LISTS tested_elsewhere)
  string(REGEX MATCH "^(.+)=(.+)$" entry ${entry})
  set(header ${CMAKE_MATCH_1})
  set(elsewhere_${header} ${CMAKE_MATCH_2})
  if(NOT header IN_LIST headers OR EXISTS ${ROOT}/tests/${header}_test.cpp)
    message(SEND_ERROR "tests/layout_test.cmake: ${header} needs no entry in tested_elsewhere")
  endif()
endforeach()
foreach(header IN LISTS headers)
  set(test ${header})
  if(DEFINED elsewhere_${header})
    set(test ${elsewhere_${header}})
  endif()
  if(NOT EXISTS ${ROOT}/tests/${test}_test.cpp)
    message(SEND_ERROR "tests/${test}_test.cpp is missing")
  endif()
endforeach()
