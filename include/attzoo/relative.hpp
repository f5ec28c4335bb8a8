#pragma once
/// \file
/// Self-attention with a learned bias for each distance, as in T5.
///
/// Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
/// Transformer", 2019, arXiv:1910.10683, section 2.1:
/// ```
/// y_i = softmax_j(q_i . k_j + b[bucket(j - i), h]) v_j
/// ```
/// without a division by sqrt(d_head), unless `scaled`. Near distances have a bucket each, farther
/// ones share them logarithmically, and all from max_distance on are in the last one; with
/// `bidirectional`, half of the buckets are for later tokens.
///
/// Distances are those within one sequence: with a context there is no bias, as in T5's decoder.
/// Only the first layer of T5 has a table, whose bias all others use, too:
/// ```
/// RelativeSelfAttention first(o), second({.., .has_relative_bias = false});
/// auto y = second(x, {.score = first->bias()}).output;
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 d_model) time, O(L d_model) memory: a bias is looked up where it is used.

#include <attzoo/module/self_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <torch/nn/init.h>

#include <cmath>

namespace attzoo {

/// Options of RelativeSelfAttention.
struct RelativeSelfAttentionOptions {
  int64_t d_model = 0;         ///< features of the output; > 0
  int64_t num_heads = 0;       ///< divides d_model unless there is a head_dim
  int64_t num_buckets = 32;    ///< of distances; >= 4
  int64_t max_distance = 128;  ///< from here on all share a bucket; > the exact buckets
  std::optional<bool> bidirectional = std::nullopt;  ///< buckets for later tokens; default !causal
  bool has_relative_bias = true;                     ///< false: no table, no bias of its own
  bool scaled = false;                               ///< q . k is divided by sqrt(d_head)
  std::optional<int64_t> input_dim = std::nullopt;   ///< features of x; default d_model
  /// Features of a context, which every call gives where they are others than x's; default
  /// input_dim.
  std::optional<int64_t> context_dim = std::nullopt;
  double dropout = 0.0;                            ///< of the weights, while training
  bool bias = false;                               ///< of the four projections
  double temperature = 1.0;                        ///< divides q . k; > 0
  bool causal = false;                             ///< nobody attends to later tokens
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
};

/// The module; RelativeSelfAttention holds it.
class RelativeSelfAttentionImpl
    : public SelfAttention<RelativeSelfAttentionImpl, RelativeSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "RelativeSelfAttention";

  /// With the default of every other option.
  RelativeSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : RelativeSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit RelativeSelfAttentionImpl(const RelativeSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, and the table: normal, of deviation 1 / sqrt(d_model).
  void reset() override {
    SelfAttention::reset();
    if (!options.has_relative_bias) return;
    relative_attention_bias = register_parameter(
        "relative_attention_bias", torch::empty({options.num_buckets, options.num_heads}));
    torch::nn::init::normal_(relative_attention_bias, 0,
                             1 / std::sqrt(static_cast<double>(d_model())));
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    if (!options.has_relative_bias || core::crosses(inputs)) return finish(attend(heads, inputs));
    return finish(attend(heads, inputs, full(), bias()));
  }

  /// What forward() adds to the scores, for layers without a table. Throws c10::ValueError for one.
  core::RelativeBiasScore bias() const {
    TORCH_CHECK_VALUE(options.has_relative_bias, kName,
                      ": bias() needs a table, but has_relative_bias is false");
    return attzoo::relative_bias(relative_attention_bias,
                                 {.bidirectional = options.bidirectional.value_or(!options.causal),
                                  .max_distance = options.max_distance});
  }

  torch::Tensor relative_attention_bias;  ///< [num_buckets, num_heads]; undefined without a table

 protected:
  void check_own_options() const override {
    constexpr int64_t kMost = int64_t{1} << 24;
    const auto& o = options;
    TORCH_CHECK_VALUE(o.num_buckets >= 4 && o.num_buckets <= kMost, kName,
                      ": num_buckets must be >= 4 and at most 2^24, got ", o.num_buckets);
    const int64_t exact = o.num_buckets / (o.bidirectional.value_or(!o.causal) ? 4 : 2);
    TORCH_CHECK_VALUE(o.max_distance > exact, kName, ": max_distance must be > ", exact,
                      ", the number of exact buckets, got ", o.max_distance);
  }
};

/// Example: `RelativeSelfAttention attn({.d_model = 512, .num_heads = 8, .head_dim = 64});`
using RelativeSelfAttention = Holder<RelativeSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(RelativeSelfAttentionImpl)
