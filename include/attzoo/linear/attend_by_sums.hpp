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

#ifndef ATTZOO_COMPILED
#include <attzoo/linear/attend_by_sums.ipp>
#endif
