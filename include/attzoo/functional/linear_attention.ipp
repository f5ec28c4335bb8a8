#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/linear_attention.hpp>

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
