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

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/checks.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <utility>
#include <vector>

namespace attzoo::core {

ATTZOO_API void check_features(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v) {
  check_qkv("linear_attention", q, k, v);
  for (const auto* t : {&k, &v}) {
    TORCH_CHECK_VALUE(t->sizes().slice(0, 2) == q.sizes().slice(0, 2),
                      "linear_attention: k and v must have q's batch size and heads, q is ",
                      q.sizes(), ", got ", t->sizes());
  }
}

/// Throws unless the state is one of such tensors.
ATTZOO_API void check_state(const LinearState& state, const torch::Tensor& q,
                            const torch::Tensor& v) {
  constexpr const char* kName = "linear_attention";
  TORCH_CHECK_VALUE(state.kv.defined() == state.k.defined(), kName,
                    ": a state has both its sums or none");
  if (!state.kv.defined()) return;
  const std::vector<int64_t> sizes{q.size(0), q.size(1), q.size(3), v.size(3)};
  TORCH_CHECK_VALUE(state.kv.sizes() == torch::IntArrayRef(sizes) &&
                        state.k.sizes() == torch::IntArrayRef(sizes).slice(0, 3),
                    kName, ": the state must have sums [B, H, F, E]=", sizes,
                    " and [B, H, F], got ", state.kv.sizes(), " and ", state.k.sizes());
  for (const auto& t : {state.kv, state.k}) {
    check_floating(t, kName, "state");
    TORCH_CHECK_TYPE(t.scalar_type() == compute_dtype(q), kName, ": the state must be ",
                     compute_dtype(q), ", got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == q.device(), kName, ": the state must be on q's device ",
                      q.device(), ", got ", t.device());
  }
}

/// Checks the options against tensors that are checked; the runs of the documents.
ATTZOO_API Packing check_linear_options(const torch::Tensor& q, const torch::Tensor& k,
                                        const LinearAttentionOptions& options) {
  constexpr const char *kName = "linear_attention", *kDocuments = "linear_attention: documents";
  const Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
  TORCH_CHECK_VALUE(options.eps >= 0 && std::isfinite(options.eps), kName,
                    ": eps must be finite and >= 0, got ", options.eps);
  const auto& padding = options.key_padding_mask;
  if (padding.defined()) check_key_padding(padding, n, q.device(), kName);
  TORCH_CHECK_VALUE(
      !options.state || (options.causal && n.L == n.S && !options.documents.defined()), kName,
      ": a state goes on from call to call, which needs causal, L = S and no "
      "documents");
  if (!options.documents.defined()) return {};
  check_documents(options.documents, kDocuments);
  check_documents_fit(options.documents, n, q.device(), kDocuments);
  TORCH_CHECK_VALUE(n.L == n.S, kDocuments, " need as many queries as keys, got L=", n.L,
                    " S=", n.S);
  return pack(options.documents, kDocuments);
}

ATTZOO_API AttentionResult attend_by_features(const LinearFeatures& x, bool causal, double eps,
                                              const Packing& packing, torch::ScalarType dtype,
                                              const Unchanged& unchanged) {
  const auto sums = linear_sums(x.q, x.k, x.v, causal, packing);
  LazyWeights weights(
      {x.q.size(0), x.q.size(1), x.q.size(2), x.k.size(2)},
      [q = x.q, k = x.k, causal, eps, run = packing.run, dtype, unchanged](int64_t begin,
                                                                           int64_t end) {
        unchanged.check("LazyWeights");
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        const auto s = linear_scores(q, k, causal, run, begin, end);
        return over_normalizer(s, s.sum(-1, true), eps).to(dtype);
      });
  return {over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), eps), std::move(weights), {}};
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API AttentionResult linear_attention(const torch::Tensor& q, const torch::Tensor& k,
                                            const torch::Tensor& v,
                                            const LinearAttentionOptions& options) {
  core::check_features(q, k, v);
  if (options.state) core::check_state(*options.state, q, v);
  const auto packing = core::check_linear_options(q, k, options);
  // Autocast would round the sums to the half type again.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto dtype = q.scalar_type(), wide = core::compute_dtype(q);
  core::LinearFeatures x{q.to(wide), k.to(wide), v.to(wide)};
  if (options.key_padding_mask.defined()) core::leave_out(options.key_padding_mask, x.k, x.v);
  if (options.state) {
    const auto sums = core::go_on(*options.state, x.q, x.k, x.v);
    return {
        core::over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), options.eps).to(dtype),
        {},
        {}};
  }
  auto result = core::attend_by_features(x, options.causal, options.eps, packing, dtype,
                                         core::Unchanged({q, k}));
  result.output = result.output.to(dtype);
  return result;
}

}  // namespace attzoo

#endif
