#pragma once
/// \file
/// Linear attention of a module's heads: features, sums, and the weights that they amount to.

#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <functional>

namespace attzoo::core {

/// How a LinearSelfAttention attends.
struct SumOptions {
  const char* name;  // in errors
  bool causal;
  double eps;           // added to the normaliser
  bool python_weights;  // the Python library's estimate of the weights
};

/// The sums over all tokens but the latest ones, whose features are kept so that they can be taken
/// back: O(1) memory.
class SumsCache final : public TokenCache {
 public:
  /// Of `heads` heads with features F and values E; in float32 at least.
  SumsCache(const CacheHead& head, int64_t heads, int64_t F, int64_t E);

  int64_t length() const override { return summed_ + latest_.length(); }
  int64_t bytes() const override;
  int64_t earliest() const override { return std::max<int64_t>(1, summed_); }
  /// Appends the new tokens, whose features are k and v, and says what the queries q [B, H, L, F]
  /// collect of them and of all before.
  LinearSums sums(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                  const Past& past);
  /// Appends them alone.
  void take(const torch::Tensor& k, const torch::Tensor& v, const Past& past);
  void truncate(int64_t n) override;
  void reorder(const torch::Tensor& order) override;
  std::shared_ptr<CacheState> clone() const override;

 private:
  bool has_room_for(const torch::Tensor& k) const;

  int64_t summed_ = 0;  // tokens that are in the state alone
  LinearState state_;
  RowBuffer latest_;  // features of keys, and values
};

/// Output [B, H, L, dh], in float32 at least, and weights [B, H, L, S]; no lse. `phi` maps q and k,
/// in float32 at least, to features. Throws c10::ValueError if it changes shape or dtype.
ATTZOO_API AttentionResult attend_by_sums(
    const Heads& heads, const AttentionInputs& inputs,
    const std::function<torch::Tensor(const torch::Tensor&)>& phi, const SumOptions& options);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <c10/core/impl/LocalDispatchKeySet.h>

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

/// The weights that the Python library returns: features normalised first, causality ignored.
inline LazyWeights estimated_weights(const LinearFeatures& x, const Packing& packing, double eps,
                                     torch::ScalarType dtype) {
  return {{x.q.size(0), x.q.size(1), x.q.size(2), x.k.size(2)},
          [q = x.q.detach(), k = x.k.detach(), run = packing.run, eps, dtype](int64_t begin,
                                                                              int64_t end) {
            const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
            const auto normed = [eps](const torch::Tensor& t) {
              return over_normalizer(t, t.sum(-1, true), eps);
            };
            auto s = torch::matmul(normed(q.slice(2, begin, end)), normed(k).transpose(-2, -1));
            if (run.defined()) {
              const auto other = run.slice(1, begin, end).unsqueeze(2) != run.unsqueeze(1);
              s = s.masked_fill(other.unsqueeze(1), 0.0);
            }
            return normed(s).to(dtype);
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
  const auto dtype = heads.q.scalar_type(), wide = compute_dtype(heads.q);
  LinearFeatures x{features(heads.q.to(wide)), features(heads.k.to(wide)), heads.v.to(wide)};
  if (inputs.key_padding_mask.defined()) leave_out(inputs.key_padding_mask, x.k, x.v);
  if (heads.past) {  // what was summed up has no weights
    auto& cache = static_cast<SumsCache&>(inputs.cache.state());  // NOLINT: linear's
    const auto& run = heads.packing.run;
    const bool packed = run.defined() && x.q.numel() > 0;
    const auto sums = packed ? linear_sums(x.q, x.k, x.v, options.causal, heads.packing)
                             : cache.sums(x.q, x.k, x.v, *heads.past);
    if (packed) {  // the last document goes on
      leave_out(run == run.slice(1, run.size(1) - 1), x.k, x.v);
      cache.take(x.k, x.v, *heads.past);
    }
    return {over_normalizer(sums.values, sums.normalizer.unsqueeze(-1), options.eps), {}, {}};
  }
  auto result = attend_by_features(x, options.causal, options.eps, heads.packing, dtype);
  if (options.python_weights) {
    result.weights = estimated_weights(x, heads.packing, options.eps, dtype);
  }
  return result;
}

}  // namespace attzoo::core

#endif
