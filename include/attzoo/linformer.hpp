#pragma once
/// \file
/// Linformer self-attention: keys and values are projected along the sequence to a fixed number of
/// rows, so that time is linear.
///
/// Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768. With
/// learned E, F [seq_len, k], of which a sequence of n tokens uses the first n rows, per head:
/// ```
/// Y = softmax(Q (E^T K)^T / sqrt(d_head)) (F^T V)
/// ```
/// E and F are shared by all heads. Every projected key is a sum over all tokens: there is no
/// causal form, no cache, and a mask of pairs has no meaning; all of these are errors. Padded keys
/// and values count as zeros; each document of a packed batch uses the first rows.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]: those that the
/// tokens' values get, softmax(...) F^T, which may be negative; lse [B, H, L] of the softmax over
/// the k projected keys, which dropout acts on.
/// Cost: O(L k d_model) time, O((L + k) d_model) memory.

#include <attzoo/functional/each_document.hpp>
#include <attzoo/module/self_attention.hpp>

#include <cmath>

namespace attzoo {

/// Options of LinformerSelfAttention.
struct LinformerSelfAttentionOptions {
  int64_t d_model = 0;          ///< features of the output; > 0
  int64_t num_heads = 8;        ///< divides d_model unless there is a head_dim
  int64_t seq_len = 0;          ///< keys at most, rows of E and F; > 0
  int64_t num_projected = 256;  ///< k, keys and values after projection; > 0
  bool one_kv_head = false;     ///< one head of keys and values for all query heads
  bool share_kv = false;        ///< values are the keys, and F is E
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the softmax's weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  std::optional<int64_t> head_dim = std::nullopt;   ///< features of a head; default d_model / heads
  std::optional<bool> out_bias = std::nullopt;      ///< of w_o; default bias
};

/// The module; LinformerSelfAttention holds it.
class LinformerSelfAttentionImpl
    : public core::Mechanism<LinformerSelfAttentionImpl, LinformerSelfAttentionOptions,
                             core::SoftmaxAttention> {
  using Base = core::Mechanism<LinformerSelfAttentionImpl, LinformerSelfAttentionOptions,
                               core::SoftmaxAttention>;

 public:
  static constexpr const char* kName = "LinformerSelfAttention";
  static constexpr TakenInputs kTakes{.mask = false, .causal = false};

  /// With the default of every other option.
  LinformerSelfAttentionImpl(int64_t d_model, int64_t num_heads, int64_t seq_len)
      : LinformerSelfAttentionImpl(
            {.d_model = d_model, .num_heads = num_heads, .seq_len = seq_len}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LinformerSelfAttentionImpl(const LinformerSelfAttentionOptions& o)
      : Base(o, settings(o)) {
    say_size("seq_len", o.seq_len);
    say_size("num_projected", o.num_projected);
    reset();
  }

  /// Makes and registers the parameters; proj_k and proj_v are uniform within 1 / sqrt(k).
  void reset() override {
    Base::reset();
    check_layer("proj_k", options.num_projected, options.seq_len);
    const double bound = 1 / std::sqrt(static_cast<double>(options.num_projected));
    const auto make = [&] {
      return torch::empty({options.seq_len, options.num_projected}).uniform_(-bound, bound);
    };
    proj_k = register_parameter("proj_k", make());
    if (options.share_kv) {
      unregister_module("w_v");
      w_v = w_k;
      proj_v = proj_k;
    } else {
      proj_v = register_parameter("proj_v", make());
    }
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does; and c10::ValueError for a mask of pairs, for
  /// a causal call, and for more than seq_len keys.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// Throws c10::NotImplementedError: there is no causal form.
  Cache make_cache(int64_t, std::optional<int64_t> = std::nullopt,
                   const CacheOptions& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kName,
                                ": a cache has no meaning: every projected key is a sum over all "
                                "tokens, so that there is no causal form");
  }
  /// A context's keys and values, before they are projected; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    check_options();
    return new_context_cache(*this, context, key_padding_mask);
  }

  torch::Tensor proj_k;  ///< E [seq_len, k]
  torch::Tensor proj_v;  ///< F; with share_kv it is proj_k, and w_v is w_k

 protected:
  void check_own_options() const override {
    check_positive("seq_len", options.seq_len);
    check_positive("num_projected", options.num_projected);
  }

 private:
  static SelfAttentionSettings settings(const LinformerSelfAttentionOptions& o) {
    auto s = core::settings_of(o);
    if (o.one_kv_head) s.kv_heads = 1;
    return s;
  }
  void check_lengths(const Heads& heads) const;
  AttentionResult attend(const torch::Tensor& q, torch::Tensor k, torch::Tensor v,
                         const torch::Tensor& real) const;
};

/// Example: `LinformerSelfAttention attn({.d_model = 256, .seq_len = 4096, .num_projected = 128});`
using LinformerSelfAttention = Holder<LinformerSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(LinformerSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/views.hpp>
#include <attzoo/module/token_cache.hpp>

#include <algorithm>
#include <vector>

namespace attzoo {

ATTZOO_API AttentionResult LinformerSelfAttentionImpl::forward(const torch::Tensor& x,
                                                               const AttentionInputs& inputs) {
  TORCH_CHECK_VALUE(!core::says_pairs(inputs), kName,
                    ": mask, pattern and score are about pairs of tokens, and every projected "
                    "key is a sum over all of them; pass tokens to leave out as "
                    "key_padding_mask [B, S], or documents");
  check_options();
  const auto heads = Base::project(x, inputs, Keeps{});
  check_lengths(heads);
  auto real = core::key_padding_of(inputs);
  if (real.defined()) real = real.unsqueeze(1).unsqueeze(-1);
  return finish(core::attend_by_document(
      heads.packing, {heads.q, heads.k, heads.v, real},
      [this](const std::vector<torch::Tensor>& t) { return attend(t[0], t[1], t[2], t[3]); }));
}

ATTZOO_API void LinformerSelfAttentionImpl::check_lengths(const Heads& heads) const {
  const auto& lengths = heads.packing.lengths;
  const int64_t S =
      lengths.empty() ? heads.k.size(2) : *std::max_element(lengths.begin(), lengths.end());
  TORCH_CHECK_VALUE(S <= options.seq_len, kName,
                    ": there must be at most seq_len=", options.seq_len, " keys",
                    lengths.empty() ? "" : " in a document", ", got ", S);
}

/// q [B, H, L, D], k and v [B, Hkv, S, D], `real` [B, 1, S, 1] or undefined.
ATTZOO_API AttentionResult LinformerSelfAttentionImpl::attend(const torch::Tensor& q,
                                                              torch::Tensor k, torch::Tensor v,
                                                              const torch::Tensor& real) const {
  const int64_t S = k.size(2), D = k.size(3);
  if (real.defined()) {
    k = torch::where(real, k, torch::zeros({}, k.options()));
    v = torch::where(real, v, torch::zeros({}, v.options()));
  }
  const auto project = [&](const torch::Tensor& rows, const torch::Tensor& t) {
    return core::split_heads(torch::matmul(rows.t(), core::join_heads(t)), D);
  };
  const auto rows_k = proj_k.slice(0, 0, S).to(k.scalar_type()),
             rows_v = proj_v.slice(0, 0, S).to(v.scalar_type());
  auto result = attention(q, project(rows_k, k), project(rows_v, v),
                          {.scale = scale(), .dropout = dropout()});
  auto of_tokens = rows_v.t();  // [k, S], or for each sequence
  if (real.defined()) of_tokens = of_tokens * real.transpose(-2, -1).to(of_tokens.scalar_type());
  result.weights = result.weights.map({q.size(0), q.size(1), q.size(2), S},
                                      [of_tokens](const torch::Tensor& w, int64_t, int64_t) {
                                        return torch::matmul(w, of_tokens);
                                      });
  return result;
}

}  // namespace attzoo

#endif
