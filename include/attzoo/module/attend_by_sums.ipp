#pragma once
// Definitions of attend_by_sums.hpp.

#include <attzoo/core/linear_attention.hpp>
#include <attzoo/module/attend_by_sums.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <limits>

namespace attzoo::core {

/// t / (normalizer + eps), 0 where that would divide by 0; gradients stay finite.
inline torch::Tensor divide(const torch::Tensor& t, const torch::Tensor& normalizer, double eps) {
  const auto divisor = normalizer + eps;
  return t / divisor.masked_fill(divisor == 0, std::numeric_limits<double>::infinity());
}

/// The numerators of the weights of some rows, before anything is left out.
using Numerators = std::function<torch::Tensor(int64_t begin, int64_t end)>;

/// S = phi(q) phi(k)^T over the allowed keys.
inline Numerators used_weights(const torch::Tensor& q, const torch::Tensor& k, bool causal) {
  return [q, k, causal](int64_t begin, int64_t end) {
    const auto s = torch::matmul(q.slice(2, begin, end), k.transpose(-2, -1));
    return causal ? s.tril(begin + k.size(2) - q.size(2)) : s;
  };
}

/// What the Python library returns: features normalised first, causality ignored.
inline Numerators estimated_weights(const torch::Tensor& q, const torch::Tensor& k, double eps) {
  return [q = q.detach(), k = k.detach(), eps](int64_t begin, int64_t end) {
    const auto rows = q.slice(2, begin, end);
    return torch::matmul(divide(rows, rows.sum(-1, true), eps),
                         divide(k, k.sum(-1, true), eps).transpose(-2, -1));
  };
}

/// Numerators over their sum, within documents: S / (sum S + eps).
inline LazyWeights in_documents(const Numerators& numerators, const Heads& heads, double eps) {
  const auto& q = heads.q;
  return {{q.size(0), q.size(1), q.size(2), heads.k.size(2)},
          [numerators, run = heads.packing.run, eps, dtype = q.scalar_type()](int64_t begin,
                                                                              int64_t end) {
            const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
            auto s = numerators(begin, end);
            if (run.defined()) {
              const auto other = run.slice(1, begin, end).unsqueeze(2) != run.unsqueeze(1);
              s = s.masked_fill(other.unsqueeze(1), 0.0);
            }
            return divide(s, s.sum(-1, true), eps).to(dtype);
          }};
}

ATTZOO_API AttentionResult attend_by_sums(
    const Heads& heads, const AttentionInputs& inputs,
    const std::function<torch::Tensor(const torch::Tensor&)>& phi, const SumOptions& options) {
  // Autocast would round the sums to the half type again.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto features = [&](const torch::Tensor& z) {
    const auto f = phi(z);
    TORCH_CHECK_VALUE(f.sizes() == z.sizes() && f.scalar_type() == z.scalar_type(), options.name,
                      ": a FeatureMap must keep shape and dtype, ", z.sizes(), " ", z.scalar_type(),
                      ", got ", f.sizes(), " ", f.scalar_type());
    return f;
  };
  const auto dtype = compute_dtype(heads.q);
  const auto q = features(heads.q.to(dtype));
  auto k = features(heads.k.to(dtype)), v = heads.v.to(dtype);
  if (inputs.key_padding_mask.defined()) {
    const auto real = inputs.key_padding_mask.unsqueeze(1).unsqueeze(-1);  // [B, 1, S, 1]
    k = torch::where(real, k, torch::zeros({}, k.options()));
    v = torch::where(real, v, torch::zeros({}, v.options()));
  }
  const bool packed = heads.packing.defined() && q.numel() > 0;
  const auto sums = packed ? packed_linear_sums(q, k, v, options.causal, heads.packing)
                           : linear_sums(q, k, v, options.causal);
  const auto weights = options.python_weights ? estimated_weights(q, k, options.eps)
                                              : used_weights(q, k, options.causal);
  return {divide(sums.values, sums.normalizer.unsqueeze(-1), options.eps),
          in_documents(weights, heads, options.eps),
          {}};
}

}  // namespace attzoo::core
