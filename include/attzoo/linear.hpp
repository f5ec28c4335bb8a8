#pragma once
/// \file
/// Linear attention: the softmax kernel is replaced by a product of features, and the sums over
/// keys are shared by all queries.
///
/// Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
/// Attention", 2020, arXiv:2006.16236. With a feature map phi, per head:
/// ```
/// y_i = phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j) + eps)
/// ```
/// over all j, or over j <= i if causal: a prefix sum, computed chunk by chunk.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, L, L], with several heads
/// [B, H, L, L]; lse is undefined, there is no softmax.
/// Cost: O(L feature_dim d_model / H) time, O(L (feature_dim + d_model)) memory, causal or not.
/// Features, sums and normaliser are float32 for half types: sums of thousands pass 65504. A query
/// whose normaliser is 0 (nothing to attend to, and eps 0) has output 0 and weights 0.
/// Departs from the Python library: `weights` are those that make the output, S / (sum S + eps);
/// `python_weights` gives its estimate. A general mask has no meaning and is an error.

#include <ATen/ops/elu.h>
#include <attzoo/linear/attend_by_sums.hpp>
#include <attzoo/module/self_attention.hpp>

#include <cmath>

namespace attzoo {

/// phi(z) = elu(z) + 1, the paper's.
struct EluPlusOne {
  /// Any shape and floating dtype, kept.
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::elu(z) + 1; }
};
/// phi(z) = max(z, 0).
struct ReluMap {
  /// Any shape and floating dtype, kept.
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::relu(z); }
};
/// phi(z) = exp(z).
struct ExpMap {
  /// Any shape and floating dtype, kept.
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::exp(z); }
};

/// Options of LinearSelfAttention.
struct LinearSelfAttentionOptions {
  int64_t d_model = 0;                                ///< features of the output; > 0
  int64_t num_heads = 1;                              ///< divides d_model and feature_dim
  std::optional<int64_t> feature_dim = std::nullopt;  ///< width of q and k; default d_model
  double eps = 1e-6;                                  ///< added to the normaliser; >= 0
  std::optional<int64_t> input_dim = std::nullopt;    ///< features of x; default d_model
  double dropout = 0.0;                               ///< of the attended vectors, while training
  bool bias = false;                                  ///< of the four projections
  Rope rope = false;            ///< rotary positions, before the map; even features per head
  bool causal = false;          ///< nobody attends to later tokens
  bool python_weights = false;  ///< the Python library's estimate of the weights
};

/// The module; LinearSelfAttention holds it.
/// FeatureMap: any default constructible callable Tensor -> Tensor of the same shape and dtype,
/// with values >= 0 for the normaliser's sake. It sees float32 where the module has a half type.
template <class FeatureMap = EluPlusOne>
class LinearSelfAttentionImpl
    : public core::Mechanism<LinearSelfAttentionImpl<FeatureMap>, LinearSelfAttentionOptions,
                             core::Projections> {
  using Base =
      core::Mechanism<LinearSelfAttentionImpl, LinearSelfAttentionOptions, core::Projections>;

 public:
  static constexpr const char* kName = "LinearSelfAttention";
  static constexpr TakenInputs kTakes{.mask = false};
  using Base::options;

  /// With the default of every other option.
  explicit LinearSelfAttentionImpl(int64_t d_model)
      : LinearSelfAttentionImpl(LinearSelfAttentionOptions{.d_model = d_model}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LinearSelfAttentionImpl(const LinearSelfAttentionOptions& o) : Base(o) {
    options.feature_dim = o.feature_dim.value_or(o.d_model);
    Base::reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, L, S], with several heads
  /// [B, H, L, S], no lse; S is L, or the context's length. Throws what project() does; and
  /// c10::ValueError for a mask of pairs, and where the feature map changes shape or dtype.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!core::says_pairs(inputs), kName,
                      ": mask, pattern and score are about pairs, which linear attention does not "
                      "have; pass tokens to leave out as key_padding_mask [B, S], or causal, or "
                      "documents");
    const auto heads = this->project(x, inputs);
    const auto dtype = heads.q.scalar_type();
    auto result = core::attend_by_sums(heads, inputs, FeatureMap(),
                                       {.name = kName,
                                        .causal = this->is_causal(inputs),
                                        .eps = options.eps,
                                        .python_weights = options.python_weights});
    result.output = torch::dropout(result.output, options.dropout, this->is_training()).to(dtype);
    if (options.num_heads == 1 && result.weights.defined()) {
      result.weights = result.weights.without_heads();
    }
    return this->finish(std::move(result));
  }

  /// A cache of sums, in float32 at least; see MakesCache and Cache. Its calls return no weights.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = this->new_cache_head(batch, capacity, how, /*unending=*/true,
                                           /*has_keys=*/false);
    return Cache(
        std::make_shared<core::SumsCache>(head, options.num_heads, this->d_qk(), this->d_head()));
  }

 protected:
  void check_own_options() const override {
    TORCH_CHECK_VALUE(options.eps >= 0 && std::isfinite(options.eps), kName,
                      ": eps must be >= 0, got ", options.eps);
  }
};

/// Example: `LinearSelfAttention attn({.d_model = 256, .num_heads = 8, .causal = true});`
using LinearSelfAttention = Holder<LinearSelfAttentionImpl<>>;

/// The same with another feature map: `LinearSelfAttentionWith<ReluMap> attn({.d_model = 256});`
template <class FeatureMap>
using LinearSelfAttentionWith = Holder<LinearSelfAttentionImpl<FeatureMap>>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(LinearSelfAttentionImpl<>)
