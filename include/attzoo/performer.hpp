#pragma once
/// \file
/// Performer self-attention (FAVOR+): softmax attention estimated by random features, in linear
/// time.
///
/// Choromanski et al., "Rethinking Attention with Performers", 2020, arXiv:2009.14794. With F
/// random projections P of orthogonal blocks and u = x / d_head^(1/4), per head:
/// ```
/// phi(x) = F^(-1/2) (exp(P u - |u|^2 / 2 - max) + eps),  or  relu(P u) + eps
/// y_i    = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j (phi(q_i) . phi(k_j))
/// ```
/// over all j, or over j <= i if causal; then `max` is the largest projection of a key so far, so
/// that nothing is seen of later ones. See performer_attention().
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]; lse is undefined.
/// Cost: O(L F d_model) time, O((L + F) d_model) memory on the CPU, O(L (F H + d_model)) if causal.
/// Features and sums are float32 for half types. A general mask has no meaning and is an error.

#include <attzoo/module/self_attention.hpp>
#include <attzoo/performer/favor_cache.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>

namespace attzoo {

/// Options of PerformerSelfAttention.
struct PerformerSelfAttentionOptions {
  int64_t d_model = 0;    ///< features of the output; > 0
  int64_t num_heads = 0;  ///< divides d_model
  /// Random features of each head, F > 0; default d_head ln d_head.
  std::optional<int64_t> num_features = std::nullopt;
  bool relu_kernel = false;   ///< features relu(P x), which do not estimate a softmax
  bool equal_norms = false;   ///< projections of length sqrt(d_head), not of Gaussian rows
  uint64_t feature_seed = 0;  ///< of the projections
  /// Added to every feature, >= 0; default 1e-4, with relu_kernel 1e-3.
  std::optional<double> feature_eps = std::nullopt;
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the attended vectors, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; PerformerSelfAttention holds it.
class PerformerSelfAttentionImpl
    : public core::Mechanism<PerformerSelfAttentionImpl, PerformerSelfAttentionOptions,
                             core::SoftmaxAttention> {
  using Base = core::Mechanism<PerformerSelfAttentionImpl, PerformerSelfAttentionOptions,
                               core::SoftmaxAttention>;

 public:
  static constexpr const char* kName = "PerformerSelfAttention";
  static constexpr TakenInputs kTakes{.mask = false};

  /// With the default of every other option.
  PerformerSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : PerformerSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit PerformerSelfAttentionImpl(const PerformerSelfAttentionOptions& o) : Base(o) {
    if (!options.num_features) {
      const double d = static_cast<double>(d_head());
      options.num_features = std::max<int64_t>(1, static_cast<int64_t>(d * std::log(d)));
    }
    say_size("num_features", *options.num_features);
    reset();
  }

  /// Makes and registers the parameters, and the projections, a buffer.
  void reset() override {
    Base::reset();
    projection_matrix = register_buffer("projection_matrix", draw(options.feature_seed));
  }

  /// Draws other projections, in place: by a seed, or by torch's generator.
  void redraw_features(std::optional<uint64_t> seed = std::nullopt) {
    const torch::NoGradGuard no_grad;
    projection_matrix.copy_(draw(seed));
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], no lse; S is L, or the
  /// context's length. Throws what project() does; and c10::ValueError for a mask of pairs.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!core::says_pairs(inputs), kName,
                      ": mask, pattern and score are about pairs, which linear attention does not "
                      "have; pass tokens to leave out as key_padding_mask [B, S], or causal, or "
                      "documents");
    const auto heads = project(x, inputs);
    // Autocast would round the sums to the half type again.
    auto result = [&] {
      const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      return attend(heads, inputs);
    }();
    result.output =
        torch::dropout(result.output, options.dropout, is_training()).to(heads.q.scalar_type());
    return finish(std::move(result));
  }

  /// A cache of sums, in float32 at least; see MakesCache and Cache. Its calls return no weights,
  /// and go on with the projections of now, whatever is drawn meanwhile.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = new_cache_head(batch, capacity, how, /*unending=*/true,
                                     /*has_keys=*/false);
    const auto wide = head.module_dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
    auto own = favor(wide);
    own.projection = own.projection.clone();
    return Cache(
        std::make_shared<core::FavorCache>(head, std::move(own), options.num_heads, d_head()));
  }
  /// A context's keys and values, projected once; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    check_options();
    return new_context_cache(*this, context, key_padding_mask);
  }

  torch::Tensor projection_matrix;  ///< P [F, d_head], a buffer

 protected:
  void check_own_options() const override {
    if (options.num_features) check_positive("num_features", *options.num_features);
    const auto& eps = options.feature_eps;
    TORCH_CHECK_VALUE(!eps || (*eps >= 0 && std::isfinite(*eps)), kName,
                      ": feature_eps must be >= 0 and finite, got ", eps.value_or(0));
  }

 private:
  torch::Tensor draw(std::optional<uint64_t> seed) const {
    check_layer("projection_matrix", d_head(), *options.num_features);
    return orthogonal_features(*options.num_features, d_head(),
                               {.equal_norms = options.equal_norms, .seed = seed});
  }
  core::Favor favor(torch::ScalarType dtype) const {
    return {projection_matrix.to(dtype), options.relu_kernel, scale(),
            options.feature_eps.value_or(options.relu_kernel ? 1e-3 : 1e-4)};
  }
  Heads project(const torch::Tensor& x, const AttentionInputs& inputs) {
    check_options();
    return core::Projections::project(x, inputs, mode(inputs));
  }
  AttentionResult attend(const Heads& heads, const AttentionInputs& inputs) const;
};

/// Example: `PerformerSelfAttention attn({.d_model = 256, .num_heads = 4, .num_features = 256});`
using PerformerSelfAttention = Holder<PerformerSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(PerformerSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>

namespace attzoo {

ATTZOO_API AttentionResult PerformerSelfAttentionImpl::attend(const Heads& heads,
                                                              const AttentionInputs& inputs) const {
  const auto dtype = heads.q.scalar_type(), wide = core::compute_dtype(heads.q);
  auto* cache = heads.past ? dynamic_cast<core::FavorCache*>(&inputs.cache.state()) : nullptr;
  const auto f = cache ? cache->favor() : favor(wide);
  const auto q = heads.q.to(wide);
  auto k = heads.k.to(wide), v = heads.v.to(wide);
  auto real = core::key_padding_of(inputs);
  const auto whole = [&] {
    return core::favor_attention(f, q, k, v, is_causal(inputs), /*max_of_all_keys=*/false, real,
                                 heads.packing, dtype);
  };
  if (!cache) return whole();
  AttentionResult result;  // what was summed up has no weights
  const auto& run = heads.packing.run;
  const bool packed = run.defined() && q.numel() > 0;
  if (packed) {
    result.output = whole().output;
    const auto last = run == run.slice(1, run.size(1) - 1);  // it goes on
    real = real.defined() ? last.logical_and(real) : last.expand({q.size(0), -1});
  }
  torch::Tensor rows;
  if (real.defined()) {
    core::leave_out(real, k, v);
    rows = real.unsqueeze(1).unsqueeze(-1);
  }
  const auto keys = core::favor_keys(f, k, rows);
  const auto v1 = core::values_and_ones(v, rows);
  if (packed) {
    cache->take(keys, v1, *heads.past);
    return result;
  }
  const auto features = core::favor_queries(f, q);
  result.output = core::favor_output(cache->go_on(features, keys, v1, *heads.past), features);
  return result;
}

}  // namespace attzoo

#endif
