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
/// dtype. Under autocast any two of the dtypes that it casts go together. `option` is the last
/// size's name in errors.
ATTZOO_API void check_tokens(const torch::Tensor& tokens, std::string_view who,
                             std::string_view argument, int64_t input_dim,
                             const torch::Tensor& weight, std::string_view option = "input_dim");

/// Throws c10::ValueError where a call with a cache would need gradients, which do not flow through
/// it: grad mode is on, and x or a parameter of the module asks for one.
ATTZOO_API void check_no_gradients(std::string_view who, const torch::nn::Module& module,
                                   const torch::Tensor& x);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/nn/module.h>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API void check_layer(std::string_view who, std::string_view layer, int64_t from, int64_t to,
                            const std::string& sizes) {
  constexpr int64_t kMost = int64_t{1} << 36;
  TORCH_CHECK_VALUE(from <= kMost / to, who, ": ", layer, " must have at most 2^36 weights, got [",
                    to, ", ", from, "] with", sizes);
}

ATTZOO_API bool dtypes_fit(const torch::Tensor& t, const torch::Tensor& weight) {
  if (t.scalar_type() == weight.scalar_type()) return true;
  // Autocast is on where the key of the tensor's device is not excluded, and casts all but float64.
  const auto is_cast = [](const torch::Tensor& of) {
    const auto autocast = of.key_set() & c10::autocast_dispatch_keyset;
    return !(autocast - c10::impl::tls_local_dispatch_key_set().excluded_).empty() &&
           of.scalar_type() != torch::kFloat64;
  };
  return is_cast(t) && is_cast(weight);
}

ATTZOO_API void check_tokens(const torch::Tensor& tokens, std::string_view who,
                             std::string_view argument, int64_t input_dim,
                             const torch::Tensor& weight, std::string_view option) {
  check_floating(tokens, who, argument);
  TORCH_CHECK_VALUE(tokens.dim() == 3 && tokens.size(2) == input_dim, who, ": ", argument,
                    " must have shape [batch, seq, ", option, "=", input_dim, "], got ",
                    tokens.sizes());
  TORCH_CHECK_VALUE(tokens.device() == weight.device(), who, ": ", argument,
                    " must be on the module's device ", weight.device(), ", got ", tokens.device());
  TORCH_CHECK_TYPE(dtypes_fit(tokens, weight), who, ": ", argument,
                   " must have the module's dtype ", weight.scalar_type(), ", got ",
                   tokens.scalar_type());
}

ATTZOO_API void check_no_gradients(std::string_view who, const torch::nn::Module& module,
                                   const torch::Tensor& x) {
  if (!torch::GradMode::is_enabled()) return;
  const auto parameters = module.parameters();
  const bool learns =
      x.requires_grad() || std::any_of(parameters.begin(), parameters.end(),
                                       [](const torch::Tensor& p) { return p.requires_grad(); });
  TORCH_CHECK_VALUE(!learns, who,
                    ": gradients do not flow through a cache; hold a torch::NoGradGuard while it "
                    "is used");
}

}  // namespace attzoo::core

#endif
