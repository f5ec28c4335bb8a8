#pragma once
/// \file
/// Multi-head latent attention (MLA): the keys and values of all heads are made of one short vector
/// for each token, and that is all that a cache keeps.
///
/// DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
/// Model", 2024, arXiv:2405.04434, section 2.1. With a latent c_j and one rotary key r_j for all
/// heads:
/// ```
/// [c_j, r_j] = x_j W_kv_a,  c_j <- RMSNorm(c_j),  r_j <- RoPE(r_j)
/// [q_h, s_h] = RMSNorm(x_i W_q_a) W_q_b  or  x_i W_q,  s_h <- RoPE(s_h)     for each head h
/// [k_h, v_h] = c_j W_kv_b
/// head_h     = softmax_j((q_h . k_h + s_h . r_j) / sqrt(head_dim + rope_dim)) v_h
/// ```
/// That is the full form. Since q_h . (W_uk c_j) = (W_uk^T q_h) . c_j, a query may as well meet the
/// latent itself: the absorbed form, multi-query attention with keys [c_j, r_j] and values c_j,
/// which are the same memory, and W_uv behind the sum. Both give the same but for rounding. Few
/// queries over many keys take the absorbed form, as in decoding, prompts the full one; see
/// `absorb`.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 H (head_dim + rope_dim + value_head_dim)) time, O(L H head_dim) memory; a token of a
/// cache is kv_rank + rope_dim numbers, which a step reads once for all heads.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/self_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

namespace attzoo {

/// Options of MultiHeadLatentAttention. The sizes' defaults are the paper's proportions.
struct MultiHeadLatentAttentionOptions {
  int64_t d_model = 0;    ///< features of the output; > 0
  int64_t num_heads = 0;  ///< divides d_model unless there is a head_dim
  /// Features of a head's queries and keys that do not turn; default d_model / num_heads.
  std::optional<int64_t> head_dim = std::nullopt;
  /// Those that turn, whose key is that of all heads; even with rope; default half of head_dim,
  /// made even.
  std::optional<int64_t> rope_dim = std::nullopt;
  std::optional<int64_t> value_head_dim = std::nullopt;  ///< of a head's values; default head_dim
  std::optional<int64_t> kv_rank = std::nullopt;  ///< features of the latent; default 4 head_dim
  std::optional<int64_t> q_rank = std::nullopt;  ///< of the queries' latent; default: there is none
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of w_q_a, w_kv_a and w_o, as DeepSeek's
  double temperature = 1.0;  ///< divides the scores; > 0; for YaRN see yarn_magnitude()
  Rope rope = true;          ///< rotary positions of the rope_dim features; false: Kimi Linear's
  bool causal = false;       ///< nobody attends to later tokens
  double norm_eps = 1e-6;    ///< of the norms of both latents; >= 0
  /// Whether calls take the absorbed form; default where it takes fewer multiplications.
  std::optional<bool> absorb = std::nullopt;
};

/// The module; MultiHeadLatentAttention holds it.
class MultiHeadLatentAttentionImpl
    : public SelfAttention<MultiHeadLatentAttentionImpl, MultiHeadLatentAttentionOptions> {
 public:
  static constexpr const char* kName = "MultiHeadLatentAttention";

  /// With the default of every other option.
  MultiHeadLatentAttentionImpl(int64_t d_model, int64_t num_heads)
      : MultiHeadLatentAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit MultiHeadLatentAttentionImpl(const MultiHeadLatentAttentionOptions& o)
      : SelfAttention(settle(o), settings_of(settle(o))) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    SelfAttention::reset();
    const auto& o = options;
    const int64_t H = o.num_heads, dq = H * (*o.head_dim + *o.rope_dim);
    if (o.q_rank) {
      w_q_a = make_projection("w_q_a", input_dim(), *o.q_rank);
      norm_q_a = make_norm("norm_q_a", *o.q_rank);
      w_q_b = make_projection("w_q_b", *o.q_rank, dq, /*bias=*/false);
    } else {
      w_q = make_projection("w_q", input_dim(), dq, /*bias=*/false);
    }
    w_kv_a = make_projection("w_kv_a", input_dim(), *o.kv_rank + *o.rope_dim);
    norm_kv_a = make_norm("norm_kv_a", *o.kv_rank);
    w_kv_b = make_projection("w_kv_b", *o.kv_rank, H * (*o.head_dim + *o.value_head_dim),
                             /*bias=*/false);
    w_o = make_projection("w_o", H * *o.value_head_dim, d_model());
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does, and c10::ValueError for `absorb` while
  /// w_kv_b has a bias, or LoRA with dropout, which is of latents.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto heads = project_latent(x, inputs);
    if (!absorbs(heads.q.size(2), heads.k.size(2))) {
      expand(heads);
      return finish(attend(heads, inputs));
    }
    const auto weight = up_weight();
    const auto dtype = heads.past ? inputs.cache.state().head().dtype : heads.k.scalar_type();
    absorb(heads, weight.narrow(1, 0, *options.head_dim), dtype);
    auto result = attend(heads, inputs);
    const auto values = weight.narrow(1, *options.head_dim, *options.value_head_dim);
    const auto latents = result.output.narrow(3, 0, *options.kv_rank);
    result.output = by_heads(latents, values.transpose(1, 2));
    return finish(std::move(result));
  }

  /// The latent and the rotary key of each token: kv_rank + rope_dim numbers; see MakesCache and
  /// Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    check_options();
    return new_kv_cache(batch, capacity, how, Keeps(),
                        {.heads = 1, .d_k = *options.kv_rank + *options.rope_dim, .d_v = 0});
  }
  /// Those of a context; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    check_options();
    return new_context_cache(*this, context, key_padding_mask, [this](const torch::Tensor& t) {
      auto [c, r] = latent(core::linear(t, w_kv_a));
      if (rope_plan()) rotate_context(r, *rope_plan());
      return std::pair(torch::cat({c, r}, 3), c.narrow(3, 0, 0));
    });
  }

  /// The ways down to the latents and up to the heads. Without a q_rank w_q has the queries, else
  /// w_q_a, norm_q_a and w_q_b; w_k, w_v, norm_q and norm_k are empty.
  torch::nn::Linear w_q_a{nullptr}, w_q_b{nullptr}, w_kv_a{nullptr}, w_kv_b{nullptr};
  RMSNorm norm_q_a{nullptr}, norm_kv_a{nullptr};

 protected:
  void check_own_options() const override {
    TORCH_CHECK_VALUE(options.norm_eps >= 0 && std::isfinite(options.norm_eps), kName,
                      ": norm_eps must be >= 0 and finite, got ", options.norm_eps);
  }

 private:
  /// With the defaults filled in. Sizes that the base refuses stay as they are.
  static Options settle(Options o) {
    constexpr int64_t kMost = int64_t{1} << 36;  // as check_layer, so that products stay in range
    TORCH_CHECK_VALUE(o.d_model <= kMost && o.num_heads <= kMost, kName,
                      ": d_model and num_heads must be at most 2^36, got d_model=", o.d_model,
                      " num_heads=", o.num_heads);
    if (o.d_model <= 0 || o.num_heads <= 0) return o;
    const auto fill = [&o](const char* name, std::optional<int64_t>& size, int64_t otherwise) {
      TORCH_CHECK_VALUE(!size || (*size > 0 && *size <= kMost / o.num_heads), kName, ": ", name,
                        " must be > 0, at most 2^36 in all heads, got ", *size);
      if (!size) size = otherwise;
    };
    TORCH_CHECK_VALUE(o.head_dim || o.d_model % o.num_heads == 0, kName,
                      ": num_heads must divide d_model where there is no head_dim, got num_heads=",
                      o.num_heads, " d_model=", o.d_model);
    fill("head_dim", o.head_dim, o.d_model / o.num_heads);
    fill("rope_dim", o.rope_dim, (*o.head_dim + 3) / 4 * 2);
    fill("value_head_dim", o.value_head_dim, *o.head_dim);
    fill("kv_rank", o.kv_rank, 4 * *o.head_dim);
    if (o.q_rank) fill("q_rank", o.q_rank, 0);
    return o;
  }
  static SelfAttentionSettings settings_of(const Options& o) {
    const int64_t nope = o.head_dim.value_or(1), rope = o.rope_dim.value_or(1);
    return {.heads = {"num_heads", o.num_heads},
            .temperature = o.temperature,
            .rope = o.rope,
            .feature_dim = o.num_heads * rope,
            .head_dim = o.value_head_dim.value_or(1),
            .score_dim = nope + rope,
            .own_layers = true};
  }
  RMSNorm make_norm(const char* name, int64_t features) {
    return register_module(name, RMSNorm({.features = features, .eps = options.norm_eps}));
  }

  /// t in t's dtype; under autocast it is another than the weight's.
  static torch::Tensor normed(RMSNorm norm, const torch::Tensor& t) {
    return norm(t.to(norm->weight.scalar_type())).to(t.scalar_type());
  }
  /// The latent [B, 1, S, kv_rank], normed, and the rotary key [B, 1, S, rope_dim], of w_kv_a's.
  std::pair<torch::Tensor, torch::Tensor> latent(const torch::Tensor& t) const {
    return {normed(norm_kv_a, t.narrow(2, 0, *options.kv_rank)).unsqueeze(1),
            t.narrow(2, *options.kv_rank, *options.rope_dim).unsqueeze(1)};
  }

  /// Checks options and all inputs. heads.q are the queries [B, H, L, head_dim + rope_dim], heads.k
  /// the latents and rotary keys [B, 1, S, kv_rank + rope_dim], those of a cache, too.
  Heads project_latent(const torch::Tensor& x, const AttentionInputs& inputs) {
    check_options();
    TORCH_CHECK_VALUE(
        is_matrix() || !options.absorb.value_or(false), kName,
        ": absorb has no meaning while w_kv_b has a bias, or LoRA with dropout, which "
        "is of latents; call eval(), or set absorb false");
    auto places = core::check_call(callee(), w_o->weight, x, inputs, mode(inputs));
    Heads heads{.packing = std::move(places.packing), .past = std::move(places.past)};
    const auto* kept = core::context_cache(inputs);
    const auto& to_q = options.q_rank ? w_q_a : w_q;
    std::vector<torch::Tensor> made;
    if (kept) {
      made = {core::linear(x, to_q)};
    } else if (inputs.context.defined()) {
      made = {core::linear(x, to_q), core::linear(inputs.context, w_kv_a)};
    } else {
      made = core::linear_each(x, {to_q, w_kv_a});
    }
    if (options.q_rank) made[0] = core::linear(normed(norm_q_a, made[0]), w_q_b);
    const int64_t nope = *options.head_dim, rope = *options.rope_dim;
    const auto q = core::split_heads(made[0], nope + rope);
    heads.q = q.narrow(3, nope, rope);
    torch::Tensor c;
    if (!kept) std::tie(c, heads.k) = latent(made[1]);
    rotate_heads(heads, inputs);
    // Turned in place where there is no gradient.
    heads.q = heads.q.is_alias_of(q) ? q : torch::cat({q.narrow(3, 0, nope), heads.q}, 3);
    heads.k = kept ? kept->k : torch::cat({c, heads.k}, 3);
    if (heads.past) {
      const auto own = heads.q;
      static_cast<core::KvCache&>(inputs.cache.state()).append(heads);
      heads.q = own;
    }
    return heads;
  }

  /// Whether W_kv_b is all that happens to latents, and not a bias or LoRA that drops some of their
  /// numbers, too.
  bool is_matrix() const {
    const auto* layer = core::adaptable(*w_kv_b);
    const bool drops = is_training() && layer && layer->has_lora() && layer->lora().dropout > 0;
    return !drops && !w_kv_b->bias.defined();
  }
  /// Whether this call takes the absorbed form, by the multiplications of each.
  bool absorbs(int64_t L, int64_t S) const {
    if (!is_matrix()) return false;
    if (options.absorb) return *options.absorb;
    const auto f = [](int64_t n) { return static_cast<double>(n); };
    const double up = f(*options.kv_rank) * f(*options.head_dim + *options.value_head_dim);
    const double full = f(*options.head_dim + *options.rope_dim + *options.value_head_dim);
    const double absorbed = f(2 * *options.kv_rank + *options.rope_dim);
    return f(L) * (up + f(S) * absorbed) <= f(S) * (up + f(L) * full);
  }

  /// W_kv_b, with its LoRA, of each head: [H, head_dim + value_head_dim, kv_rank].
  torch::Tensor up_weight() const {
    auto weight = w_kv_b->weight;
    if (const auto* layer = core::adaptable(*w_kv_b); layer && layer->has_lora()) {
      const double scale = layer->lora().scale(layer->rank());
      weight = torch::addmm(weight, layer->lora_B(), layer->lora_A(), 1, scale);
    }
    return weight.view({options.num_heads, -1, *options.kv_rank});
  }
  /// t [B, H, L, from] times a matrix of each head [H, from, to], which is not repeated.
  static torch::Tensor by_heads(const torch::Tensor& t, const torch::Tensor& w) {
    const auto rows = t.transpose(0, 1).flatten(1, 2);  // [H, B * L, from]
    return torch::matmul(rows, w).unflatten(1, {t.size(0), t.size(2)}).transpose(0, 1);
  }

  /// The full form: keys and values of each head.
  void expand(Heads& heads) const {
    const int64_t nope = *options.head_dim, rope = *options.rope_dim, v = *options.value_head_dim;
    const auto dtype = heads.q.scalar_type();
    const auto rows = core::dequantized(heads.k, dtype).squeeze(1).to(dtype);
    const auto kv =
        core::split_heads(core::linear(rows.narrow(2, 0, *options.kv_rank), w_kv_b), nope + v);
    const auto r = rows.narrow(2, *options.kv_rank, rope).unsqueeze(1);
    heads.k = torch::cat({kv.narrow(3, 0, nope), r.expand({-1, options.num_heads, -1, -1})}, 3);
    heads.v = kv.narrow(3, nope, v);
  }
  /// The absorbed form: queries for latents, of `dtype`, `weight` [H, head_dim, kv_rank]; values
  /// are a part of the keys.
  void absorb(Heads& heads, const torch::Tensor& weight, torch::ScalarType dtype) const {
    const int64_t nope = *options.head_dim;
    const auto q = by_heads(heads.q.narrow(3, 0, nope), weight);
    const auto turned = heads.q.narrow(3, nope, *options.rope_dim);
    heads.q = torch::cat({q, turned}, 3).to(dtype);
    // Rows of 8 bits stay whole, and the output has the rotary keys' sum behind the latents'.
    heads.v = core::is_quantized(heads.k) ? heads.k : heads.k.narrow(3, 0, *options.kv_rank);
  }
};

/// Example: `MultiHeadLatentAttention attn({.d_model = 512, .num_heads = 8, .causal = true});`
using MultiHeadLatentAttention = Holder<MultiHeadLatentAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(MultiHeadLatentAttentionImpl)
