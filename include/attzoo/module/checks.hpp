#pragma once
/// \file
/// What modules ask of their options and of the tokens that they get.

#include <attzoo/config.hpp>
#include <attzoo/functional/checks.hpp>

namespace torch::nn {
class Module;
}

namespace attzoo::core {

/// Throws c10::ValueError where a layer would have more weights than any machine holds; `sizes`
/// says which options asked for it, as " d_model=4". The check comes before any memory is asked
/// for.
ATTZOO_API void check_layer(std::string_view who, std::string_view layer, int64_t from, int64_t to,
                            const std::string& sizes);

/// Whether a layer with this weight reads t's dtype: it is the weight's, or autocast is on and
/// casts both.
ATTZOO_API bool dtypes_fit(const torch::Tensor& t, const torch::Tensor& weight);

/// Throws unless a layer with this weight can read the tokens: c10::ValueError unless they are a
/// dense tensor [batch, seq, input_dim] on the weight's device, c10::TypeError unless they have its
/// dtype. Under autocast any two of the dtypes that it casts go together.
ATTZOO_API void check_tokens(const torch::Tensor& tokens, std::string_view who,
                             std::string_view argument, int64_t input_dim,
                             const torch::Tensor& weight);

/// Throws c10::ValueError where a call with a cache would need gradients, which do not flow through
/// it: grad mode is on, and x or a parameter of the module asks for one.
ATTZOO_API void check_no_gradients(std::string_view who, const torch::nn::Module& module,
                                   const torch::Tensor& x);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/checks.ipp>
#endif
