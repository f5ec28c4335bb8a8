#pragma once
/// \file
/// Linear attention: the softmax kernel is replaced by a product of features, and the sums over
/// keys are shared by all queries.
///
/// Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
/// Attention", 2020, arXiv:2006.16236. With a feature map phi, per head:
///
///     y_i = phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j) + eps)
///
/// over all j, or over j <= i if causal: a prefix sum, computed chunk by chunk.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, L, L], with several heads
/// [B, H, L, L]; lse is undefined, there is no softmax.
/// Cost: O(L feature_dim d_model / H) time, O(L (feature_dim + d_model)) memory, causal or not.
/// Departs from the Python library: `weights` are those that make the output, S / (sum S + eps);
/// `python_weights` gives its estimate. A general mask has no meaning and is an error.

#include <attzoo/core/linear_attention.hpp>
#include <attzoo/core/module.hpp>

#include <ATen/ops/elu.h>

namespace attzoo {

/// phi(z) = elu(z) + 1, the paper's.
struct EluPlusOne {
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::elu(z) + 1; }
};
/// phi(z) = max(z, 0).
struct ReluMap {
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::relu(z); }
};
/// phi(z) = exp(z).
struct ExpMap {
  torch::Tensor operator()(const torch::Tensor& z) const { return torch::exp(z); }
};

struct LinearSelfAttentionOptions {
  int64_t d_model = 0;                                ///< features of the output; > 0
  std::optional<int64_t> input_dim = std::nullopt;    ///< features of x; default d_model
  double dropout = 0.1;                               ///< of the attended vectors, while training
  bool bias = false;                                  ///< of the four projections
  std::optional<int64_t> feature_dim = std::nullopt;  ///< width of q and k; default d_model
  double eps = 1e-6;                                  ///< added to the normaliser; >= 0
  bool rope = false;            ///< rotary positions, before the map; even features per head
  bool causal = false;          ///< nobody attends to later tokens
  int64_t num_heads = 1;        ///< divides d_model and feature_dim
  bool python_weights = false;  ///< the Python library's estimate of the weights
};

/// FeatureMap: any default constructible callable Tensor -> Tensor of the same shape, with values
/// >= 0 for the normaliser's sake.
template <class FeatureMap = EluPlusOne>
class LinearSelfAttentionImpl : public core::SelfAttentionBase<LinearSelfAttentionImpl<FeatureMap>,
                                                               LinearSelfAttentionOptions> {
  using Base = core::SelfAttentionBase<LinearSelfAttentionImpl, LinearSelfAttentionOptions>;

 public:
  static constexpr const char* kName = "LinearSelfAttention";
  using Base::options;

  explicit LinearSelfAttentionImpl(int64_t d_model)
      : LinearSelfAttentionImpl(LinearSelfAttentionOptions{.d_model = d_model}) {}
  explicit LinearSelfAttentionImpl(const LinearSelfAttentionOptions& o)
      : Base(o, {"num_heads", o.num_heads}) {
    TORCH_CHECK_VALUE(options.eps >= 0 && std::isfinite(options.eps), kName,
                      ": eps must be >= 0, got ", options.eps);
    Base::reset();
  }

  /// Takes key_padding_mask, causal and context; a general mask is an error.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!inputs.mask.defined(), kName,
                      ": a mask of pairs has no meaning in linear attention; pass tokens to leave "
                      "out as key_padding_mask [B, S], or causal");
    auto [q, k, v] = this->project(x, inputs);
    q = FeatureMap()(q);
    k = FeatureMap()(k);
    if (inputs.key_padding_mask.defined()) {
      const auto real = inputs.key_padding_mask.unsqueeze(1).unsqueeze(-1);  // [B, 1, S, 1]
      k = torch::where(real, k, torch::zeros({}, k.options()));
      v = torch::where(real, v, torch::zeros({}, v.options()));
    }
    const bool causal = this->is_causal(inputs);
    const auto sums = core::linear_sums(q, k, v, causal);
    auto output = sums.values / (sums.normalizer + options.eps).unsqueeze(-1);
    output = torch::dropout(output, options.dropout, this->is_training());
    auto weights = options.python_weights ? estimated_weights(q, k) : used_weights(q, k, causal);
    if (options.num_heads == 1) weights = weights.without_heads();
    return this->finish({output, std::move(weights), {}});
  }

  void extra_repr(std::ostream& stream) const {
    stream << ", feature_dim=" << *options.feature_dim << ", num_heads=" << options.num_heads
           << ", eps=" << options.eps;
  }

 private:
  /// S / (sum S + eps), S = phi(q) phi(k)^T over the allowed keys.
  LazyWeights used_weights(const torch::Tensor& q, const torch::Tensor& k, bool causal) const {
    return {{q.size(0), q.size(1), q.size(2), k.size(2)},
            [q, k, causal, eps = options.eps](int64_t begin, int64_t end) {
              auto s = torch::matmul(q.slice(2, begin, end), k.transpose(-2, -1));
              if (causal) s = s.tril(begin + k.size(2) - q.size(2));
              return s / (s.sum(-1, true) + eps);
            }};
  }

  /// What the Python library returns: features normalised first, causality ignored.
  LazyWeights estimated_weights(const torch::Tensor& q, const torch::Tensor& k) const {
    return {{q.size(0), q.size(1), q.size(2), k.size(2)},
            [q = q.detach(), k = k.detach(), eps = options.eps](int64_t begin, int64_t end) {
              const auto rows = q.slice(2, begin, end);
              const auto a = torch::matmul(rows / (rows.sum(-1, true) + eps),
                                           (k / (k.sum(-1, true) + eps)).transpose(-2, -1));
              return a / (a.sum(-1, true) + eps);
            }};
  }
};

/// Example: `LinearSelfAttention attn({.d_model = 256, .causal = true, .num_heads = 8});`
using LinearSelfAttention = Holder<LinearSelfAttentionImpl<>>;

/// The same with another feature map: `LinearSelfAttentionWith<ReluMap> attn({.d_model = 256});`
template <class FeatureMap>
using LinearSelfAttentionWith = Holder<LinearSelfAttentionImpl<FeatureMap>>;

}  // namespace attzoo
