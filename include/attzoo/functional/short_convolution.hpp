#pragma once
/// \file
/// The short causal convolution that stands before many recurrences.

#include <attzoo/config.hpp>
#include <attzoo/core/documents.hpp>

#include <torch/types.h>

namespace attzoo {

/// Options of `short_convolution()`, for x [B, n, C] and a weight [C, K].
struct ShortConvolveOptions {
  torch::Tensor bias = {};  ///< [C]; default: none
  bool silu = true;         ///< silu(y) = y sigmoid(y) of the sums, as all of these models have it
  /// The inputs of the latest tokens before, the latest one last, [B, K - 1, C] in x's dtype.
  /// Default: zeros.
  torch::Tensor initial_state = {};
  /// A packed batch: what lies in another document counts as zeros. The first document of a row
  /// goes on from initial_state.
  Documents documents = {};
};

/// What short_convolution() returns.
struct ShortConvolutionResult {
  torch::Tensor output;  ///< [B, n, C], in x's dtype
  /// initial_state for the tokens that come next, [B, K - 1, C], in x's dtype: inputs of the last
  /// document, behind zeros where that is shorter.
  torch::Tensor state;
};

/// A causal convolution over the latest K tokens, in every channel by itself:
/// ```
/// output_t = silu(bias + sum over j < K of weight[:, K - 1 - j] * x_{t-j})
/// ```
/// Mamba has it with K = 4 (Gu and Dao, 2023, arXiv:2312.00752), and so have Mamba-2, Gated
/// DeltaNet and Kimi Delta Attention, before q, k and v of their recurrence(). The weight is
/// conv1d.weight [C, 1, K] of their checkpoints without its middle dimension.
///
/// \param x [B, n, C], any strides
/// \param weight [C, K], K >= 1; bias and weight may have another dtype than x, but float64 goes
///   with float64 alone
///
/// Differentiable any number of times with respect to x, weight, bias and initial_state. Sums are
/// float32 for half types. Throws c10::Error on wrong ranks, sizes, dtypes, layouts, devices and
/// documents before anything is computed. Example, a prompt and then a token:
/// ```
/// auto y = short_convolution(prompt, weight);
/// y = short_convolution(token, weight, {.initial_state = y.state});
/// ```
ATTZOO_API ShortConvolutionResult short_convolution(const torch::Tensor& x,
                                                    const torch::Tensor& weight,
                                                    const ShortConvolveOptions& options = {});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/checks.hpp>
#include <attzoo/core/recurrence/short_convolution.hpp>
#include <attzoo/functional/checks.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace attzoo {

namespace core {

/// Throws unless t is a floating tensor of these sizes on x's device that can be summed with x.
ATTZOO_API void check_convolution_part(const char* name, const torch::Tensor& t, const char* shape,
                                       torch::IntArrayRef sizes, const torch::Tensor& x) {
  constexpr const char* kName = "short_convolution";
  check_floating(t, kName, name);
  TORCH_CHECK_VALUE(t.device() == x.device(), kName, ": ", name, " must be on x's device ",
                    x.device(), ", got ", t.device());
  TORCH_CHECK_TYPE(compute_dtype(t) == compute_dtype(x), kName, ": ", name, " of dtype ",
                   t.scalar_type(), " does not go with x of dtype ", x.scalar_type(),
                   "; float64 goes with float64 alone");
  TORCH_CHECK_VALUE(t.sizes() == sizes, kName, ": ", name, " must have shape ", shape, " = ", sizes,
                    ", got ", t.sizes());
}

/// Checks all inputs; the documents' runs.
ATTZOO_API Packing check_short_convolution(const torch::Tensor& x, const torch::Tensor& weight,
                                           const ShortConvolveOptions& o) {
  constexpr const char *kName = "short_convolution", *kDocuments = "short_convolution: documents";
  check_floating(x, kName, "x");
  TORCH_CHECK_VALUE(x.dim() == 3, kName, ": x must have shape [B, n, C], got ", x.sizes());
  check_floating(weight, kName, "weight");
  const int64_t B = x.size(0), n = x.size(1), C = x.size(2);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) == C && weight.size(1) > 0, kName,
                    ": weight must have shape [C, K] with C=", C, " and K > 0, got ",
                    weight.sizes());
  const int64_t K = weight.size(1);
  check_convolution_part("weight", weight, "[C, K]", {C, K}, x);
  TORCH_CHECK_VALUE(
      n < kMostElements && K < kMostElements && product_at_most({B, n + K, C}, kMostElements),
      kName, ": n + K tokens have too many elements for 64-bit numbers, from x ", x.sizes(),
      ", weight ", weight.sizes());
  if (o.bias.defined()) check_convolution_part("bias", o.bias, "[C]", {C}, x);
  if (o.initial_state.defined()) {
    check_convolution_part("initial_state", o.initial_state, "[B, K - 1, C]", {B, K - 1, C}, x);
    TORCH_CHECK_TYPE(o.initial_state.scalar_type() == x.scalar_type(), kName,
                     ": initial_state must have x's dtype ", x.scalar_type(), ", got ",
                     o.initial_state.scalar_type());
  }
  if (!o.documents.defined()) return {};
  check_documents(o.documents, kDocuments);
  check_documents_fit(o.documents, {B, 1, n, n}, x.device(), kDocuments);
  return pack(o.documents, kDocuments);
}

}  // namespace core

ATTZOO_API ShortConvolutionResult short_convolution(const torch::Tensor& x,
                                                    const torch::Tensor& weight,
                                                    const ShortConvolveOptions& o) {
  const auto packing = core::check_short_convolution(x, weight, o);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const core::Convolution c{x, weight, o.bias, o.initial_state, packing.run, o.silu};
  return {core::convolve(c), core::state_behind(c)};
}

}  // namespace attzoo

#endif
