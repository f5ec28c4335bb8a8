#pragma once
/// \file
/// Linear attention on features of one's own making.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/functional/result.hpp>

#include <torch/types.h>

namespace attzoo {

/// Options of `linear_attention()`.
struct LinearAttentionOptions {
  /// Nobody attends to later keys; the last query stands at the last key.
  bool causal = false;
  /// Added to the normaliser; finite and >= 0.
  double eps = 1e-6;
  /// bool [B, S], true = real token; keys that are not real are left out, whatever they hold.
  torch::Tensor key_padding_mask = {};
  /// A packed batch, L = S: nobody attends beyond the own document, whose tokens lie together.
  Documents documents = {};
  /// To go on from call to call: in, the tokens before these (none if default constructed); out,
  /// the same with these, L = S. Needs `causal`; no documents. Differentiable; such a call has no
  /// weights.
  LinearState* state = nullptr;
};

/// Attention whose weights are products of features instead of a softmax
/// (Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
/// Attention", 2020, arXiv:2006.16236). With q and k the features phi(q) and phi(k) of that paper:
/// ```
/// output_i = sum over j of (q_i . k_j) v_j / (sum over j of (q_i . k_j) + eps)
/// ```
/// over the keys j that query i attends to. A query whose divisor is 0 has output 0 and weights 0.
///
/// \param q features [B, H, L, F], any strides; >= 0 for the normaliser, but not checked
/// \param k features [B, H, S, F]
/// \param v values [B, H, S, E]
/// \return output [B, H, L, E], weights [B, H, L, S] on demand, both in q's dtype; no lse
///
/// Sums are float32 for half types, under autocast too: those of thousands of keys pass 65504.
/// O((L + S) F E) time, O((L + S) (F + E)) memory, causal or not; differentiable any number of
/// times. By definition, L x S, while an EagerReferenceGuard lives.
/// Throws c10::Error on wrong ranks, sizes, dtypes, layouts, devices and options, before anything
/// is computed; and when weights are read, if q or k were changed in place since. Example:
/// `auto o = linear_attention(torch::elu(q) + 1, torch::elu(k) + 1, v, {.causal = true});`
ATTZOO_API AttentionResult linear_attention(const torch::Tensor& q, const torch::Tensor& k,
                                            const torch::Tensor& v,
                                            const LinearAttentionOptions& options = {});

namespace core {

/// Features q [B, H, L, F] and k [B, H, S, F], values v [B, H, S, E], all of the dtype of the sums.
struct LinearFeatures {
  torch::Tensor q, k, v;
};

/// linear_attention() of inputs that are checked: output in the dtype of the sums, weights in
/// `dtype`, which are not read once `unchanged` says that what they are made of was changed.
ATTZOO_API AttentionResult attend_by_features(const LinearFeatures& x, bool causal, double eps,
                                              const Packing& packing, torch::ScalarType dtype,
                                              const Unchanged& unchanged = {});

}  // namespace core

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/linear_attention.ipp>
#endif
