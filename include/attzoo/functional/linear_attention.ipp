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
  const auto dtype = q.scalar_type();
  const auto wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto real_keys = [&](const torch::Tensor& t) {
    const auto& real = options.key_padding_mask;
    if (!real.defined()) return t;
    return torch::where(real.unsqueeze(1).unsqueeze(-1), t, torch::zeros({}, t.options()));
  };
  const auto wide_q = q.to(wide), wide_k = real_keys(k.to(wide)), wide_v = real_keys(v.to(wide));
  const bool causal = options.causal;
  if (options.state) {
    const auto sums = core::linear_sums_after(*options.state, wide_q, wide_k, wide_v);
    *options.state = core::state_after(*options.state, wide_k, wide_v);
    return {
        core::over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), options.eps).to(dtype),
        {},
        {}};
  }
  const auto sums = packing.defined()
                        ? core::packed_linear_sums(wide_q, wide_k, wide_v, causal, packing)
                        : core::linear_sums(wide_q, wide_k, wide_v, causal);

  LazyWeights weights(
      {q.size(0), q.size(1), q.size(2), k.size(2)},
      [wide_q, wide_k, causal, dtype, run = packing.run, eps = options.eps,
       unchanged = core::Unchanged({q, k})](int64_t begin, int64_t end) {
        unchanged.check("LazyWeights");
        const c10::impl::ExcludeDispatchKeyGuard none_here_either(c10::autocast_dispatch_keyset);
        const auto s = core::linear_scores(wide_q, wide_k, causal, run, begin, end);
        return core::over_normalizer(s, s.sum(-1, true), eps).to(dtype);
      });
  return {core::over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), options.eps).to(dtype),
          std::move(weights),
          {}};
}

}  // namespace attzoo
