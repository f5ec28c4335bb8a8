#pragma once
// Definitions of attend_by_sums.hpp.

#include <attzoo/module/attend_by_sums.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <limits>

namespace attzoo::core {

inline torch::Tensor zero_sums(const CacheHead& head, int64_t heads, int64_t F, int64_t E) {
  const auto dtype = head.module_dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  return torch::zeros({head.batch, heads, F, E}, torch::dtype(dtype).device(head.device));
}

ATTZOO_API SumsCache::SumsCache(const CacheHead& head, int64_t heads, int64_t F, int64_t E)
    : TokenCache(head),
      sum_kv_(zero_sums(head, heads, F, E)),
      sum_k_(zero_sums(head, heads, F, 1)),
      latest_({zero_sums(head, heads, 0, F), zero_sums(head, heads, 0, E)}, 2 * kTakenBack, {}) {}

ATTZOO_API int64_t SumsCache::bytes() const {
  return static_cast<int64_t>(sum_kv_.nbytes() + sum_k_.nbytes()) + latest_.bytes();
}

ATTZOO_API LinearSums SumsCache::sums(const torch::Tensor& q, const torch::Tensor& k,
                                      const torch::Tensor& v) const {
  const auto near = linear_sums(q, torch::cat({latest_.rows(0), k}, 2),
                                torch::cat({latest_.rows(1), v}, 2), /*causal=*/true);
  return {near.values + torch::matmul(q, sum_kv_),
          near.normalizer + torch::matmul(q, sum_k_).squeeze(-1)};
}

ATTZOO_API void SumsCache::take(const torch::Tensor& k, const torch::Tensor& v, const Past& past) {
  padding_ = past.padding;
  if (latest_.length() + k.size(2) <= 2 * kTakenBack) {
    latest_.append({k, v});
    return;
  }
  // The latest stay, the others go into the sums.
  const auto all_k = torch::cat({latest_.rows(0), k}, 2),
             all_v = torch::cat({latest_.rows(1), v}, 2);
  const int64_t old = all_k.size(2) - kTakenBack;
  const auto old_k = all_k.narrow(2, 0, old);
  sum_kv_ += torch::matmul(old_k.transpose(-2, -1), all_v.narrow(2, 0, old));
  sum_k_ += old_k.sum(2).unsqueeze(-1);
  summed_ += old;
  latest_.truncate(0);
  latest_.append({all_k.narrow(2, old, kTakenBack), all_v.narrow(2, old, kTakenBack)});
}

ATTZOO_API void SumsCache::truncate(int64_t n) {
  TokenCache::truncate(n);
  if (n == 0) {
    sum_kv_.zero_();
    sum_k_.zero_();
    summed_ = 0;
  }
  latest_.truncate(n - summed_);
}

ATTZOO_API void SumsCache::reorder(const torch::Tensor& order) {
  TokenCache::reorder(order);
  sum_kv_ = sum_kv_.index_select(0, order);
  sum_k_ = sum_k_.index_select(0, order);
  latest_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> SumsCache::clone() const {
  auto copy = std::make_shared<SumsCache>(*this);
  copy->sum_kv_ = sum_kv_.clone();
  copy->sum_k_ = sum_k_.clone();
  copy->latest_ = latest_.clone();
  return copy;
}

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
  const auto leave_out = [&](const torch::Tensor& real) {  // [1 or B, S]
    const auto rows = real.unsqueeze(1).unsqueeze(-1);
    k = torch::where(rows, k, torch::zeros({}, k.options()));
    v = torch::where(rows, v, torch::zeros({}, v.options()));
  };
  if (inputs.key_padding_mask.defined()) leave_out(inputs.key_padding_mask);
  auto* cache =
      heads.past ? &static_cast<SumsCache&>(inputs.cache.state()) : nullptr;  // NOLINT: linear's
  const bool packed = heads.packing.defined() && q.numel() > 0;
  const auto sums = packed  ? packed_linear_sums(q, k, v, options.causal, heads.packing)
                    : cache ? cache->sums(q, k, v)
                            : linear_sums(q, k, v, options.causal);
  const auto output = divide(sums.values, sums.normalizer.unsqueeze(-1), options.eps);
  if (cache) {  // the last document goes on; what was summed up has no weights
    const auto& run = heads.packing.run;
    if (packed) leave_out(run == run.slice(1, run.size(1) - 1));
    cache->take(k, v, *heads.past);
    return {output, {}, {}};
  }
  const auto weights = options.python_weights ? estimated_weights(q, k, options.eps)
                                              : used_weights(q, k, options.causal);
  return {output, in_documents(weights, heads, options.eps), {}};
}

}  // namespace attzoo::core
