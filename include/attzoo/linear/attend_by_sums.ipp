#pragma once
// Definitions of attend_by_sums.hpp.

#include <attzoo/linear/attend_by_sums.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <limits>

namespace attzoo::core {

ATTZOO_API SumsCache::SumsCache(const CacheHead& head, int64_t heads, int64_t F, int64_t E)
    : TokenCache(head),
      latest_(
          [&] {
            const auto dtype =
                head.module_dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
            const auto options = torch::dtype(dtype).device(head.device);
            return std::vector<torch::Tensor>{torch::empty({head.batch, heads, 0, F}, options),
                                              torch::empty({head.batch, heads, 0, E}, options)};
          }(),
          2 * kTakenBack, {}) {
  state_ = state_after({}, latest_.rows(0), latest_.rows(1));
}

ATTZOO_API int64_t SumsCache::bytes() const {
  return static_cast<int64_t>(state_.kv.nbytes() + state_.k.nbytes()) + latest_.bytes();
}

ATTZOO_API bool SumsCache::has_room_for(const torch::Tensor& k) const {
  return latest_.length() + k.size(2) <= 2 * kTakenBack;
}

ATTZOO_API LinearSums SumsCache::sums(const torch::Tensor& q, const torch::Tensor& k,
                                      const torch::Tensor& v, const Past& past) {
  if (has_room_for(k)) {
    take(k, v, past);
    return linear_sums_after(state_, q, latest_.rows(0), latest_.rows(1));
  }
  auto sums = linear_sums_after(state_, q, torch::cat({latest_.rows(0), k}, 2),
                                torch::cat({latest_.rows(1), v}, 2));
  take(k, v, past);
  return sums;
}

ATTZOO_API void SumsCache::take(const torch::Tensor& k, const torch::Tensor& v, const Past& past) {
  padding_ = past.padding;
  if (has_room_for(k)) {
    latest_.append({k, v});
    return;
  }
  // The latest stay, the others go into the sums.
  const auto all_k = torch::cat({latest_.rows(0), k}, 2),
             all_v = torch::cat({latest_.rows(1), v}, 2);
  const int64_t old = all_k.size(2) - kTakenBack;
  state_ = state_after(state_, all_k.narrow(2, 0, old), all_v.narrow(2, 0, old));
  summed_ += old;
  latest_.truncate(0);
  latest_.append({all_k.narrow(2, old, kTakenBack), all_v.narrow(2, old, kTakenBack)});
}

ATTZOO_API void SumsCache::truncate(int64_t n) {
  TokenCache::truncate(n);
  if (n == 0) {
    summed_ = 0;
    state_ = {torch::zeros_like(state_.kv), torch::zeros_like(state_.k)};
  }
  latest_.truncate(n - summed_);
}

ATTZOO_API void SumsCache::reorder(const torch::Tensor& order) {
  TokenCache::reorder(order);
  state_ = {state_.kv.index_select(0, order), state_.k.index_select(0, order)};
  latest_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> SumsCache::clone() const {
  auto copy = std::make_shared<SumsCache>(*this);  // a state is never changed in place
  copy->latest_ = latest_.clone();
  return copy;
}

/// The numerators of the weights of some rows, before anything is left out.
using Numerators = std::function<torch::Tensor(int64_t begin, int64_t end)>;

/// What the Python library returns: features normalised first, causality ignored.
inline Numerators estimated_weights(const torch::Tensor& q, const torch::Tensor& k, double eps) {
  return [q = q.detach(), k = k.detach(), eps](int64_t begin, int64_t end) {
    const auto rows = q.slice(2, begin, end);
    return torch::matmul(over_normalizer(rows, rows.sum(-1, true), eps),
                         over_normalizer(k, k.sum(-1, true), eps).transpose(-2, -1));
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
            return over_normalizer(s, s.sum(-1, true), eps).to(dtype);
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
                    : cache ? cache->sums(q, k, v, *heads.past)
                            : linear_sums(q, k, v, options.causal);
  const auto output = over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), options.eps);
  if (cache) {  // the last document goes on; what was summed up has no weights
    const auto& run = heads.packing.run;
    if (packed) {
      leave_out(run == run.slice(1, run.size(1) - 1));
      cache->take(k, v, *heads.past);
    }
    return {output, {}, {}};
  }
  const Numerators used = [q, k, causal = options.causal](int64_t begin, int64_t end) {
    return linear_scores(q, k, causal, {}, begin, end);
  };
  const auto weights = options.python_weights ? estimated_weights(q, k, options.eps) : used;
  return {output, in_documents(weights, heads, options.eps), {}};
}

}  // namespace attzoo::core
