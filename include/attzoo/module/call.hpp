#pragma once
/// \file
/// One call of a mechanism: what is asked of its inputs, and where its tokens stand.

#include <attzoo/config.hpp>
#include <attzoo/module/heads.hpp>
#include <attzoo/module/inputs.hpp>

#include <optional>

namespace torch::nn {
class Module;
}

namespace attzoo::core {

/// What a mechanism is to its callers, whatever it computes.
struct Callee {
  const char* name;   // in errors
  int64_t input_dim;  // features of x and of a context
  int64_t heads;      // of a mask
  TakenInputs takes;
  Identity identity = {};  // of which caches are
};

/// What a module says of one call.
struct CallMode {
  bool causal;
  double dropout;                   // 0 unless it is training
  const torch::nn::Module& module;  // itself
};

/// Checks all inputs of a call, and says where its tokens stand. x and a context must fit a layer
/// with this weight. Throws c10::ValueError for a wrong shape, size or device and for inputs that
/// have no meaning here, c10::TypeError for a wrong dtype or layout.
ATTZOO_API CallPlaces check_call(const Callee& callee, const torch::Tensor& weight,
                                 const torch::Tensor& x, const AttentionInputs& inputs,
                                 const CallMode& mode);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/call.ipp>
#endif
