#pragma once
/// \file
/// Nystrom self-attention (Nystromformer): softmax attention by way of a few landmarks, in linear
/// time.
///
/// Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", 2021,
/// arXiv:2102.03902. With landmarks Q~ and K~, the means of m segments of the rows of Q and K, per
/// head:
/// ```
/// Y = softmax(Q K~^T / sqrt(d_head)) Z softmax(Q~ K^T / sqrt(d_head)) V + conv(V)
/// ```
/// Z is the pseudo-inverse of softmax(Q~ K~^T / sqrt(d_head)) by a few steps of an iteration, and
/// conv, if there is a conv_kernel_size, a depthwise convolution over the sequence, one kernel for
/// each head. Lengths need not be multiples of m; of no more than m tokens it is softmax attention
/// itself. See nystrom_attention(). Every landmark is a mean of many tokens: there is no causal
/// form, no cache, and a mask of pairs has no meaning; all of these are errors.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]: the product of the
/// three, without conv, which may be negative; lse only where it is softmax attention itself.
/// Cost: O(L m d_model + m^3 H) time, O(L d_model + m^2 H) memory.

#include <attzoo/functional/nystrom_attention.hpp>
#include <attzoo/module/self_attention.hpp>

#include <torch/nn/modules/conv.h>

namespace attzoo {

/// Options of NystromSelfAttention.
struct NystromSelfAttentionOptions {
  int64_t d_model = 0;         ///< features of the output; > 0
  int64_t num_heads = 0;       ///< divides d_model
  int64_t num_landmarks = 64;  ///< m; > 0
  int64_t inverse_steps = 6;   ///< of the iteration for the pseudo-inverse; >= 0
  /// The iteration begins by one number for the batch and all heads, as transformers' "original".
  bool batch_inverse = false;
  bool count_padding = false;  ///< landmarks and conv count padding, as in transformers
  /// Tokens that the convolution of the values sees, odd; default no convolution.
  std::optional<int64_t> conv_kernel_size = std::nullopt;
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the attended vectors, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
};

/// The module; NystromSelfAttention holds it.
class NystromSelfAttentionImpl
    : public core::Mechanism<NystromSelfAttentionImpl, NystromSelfAttentionOptions,
                             core::SoftmaxAttention> {
  using Base = core::Mechanism<NystromSelfAttentionImpl, NystromSelfAttentionOptions,
                               core::SoftmaxAttention>;

 public:
  static constexpr const char* kName = "NystromSelfAttention";
  static constexpr TakenInputs kTakes{.mask = false, .causal = false};

  /// With the default of every other option.
  NystromSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : NystromSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit NystromSelfAttentionImpl(const NystromSelfAttentionOptions& o) : Base(o) { reset(); }

  /// Makes and registers the parameters, the convolution's too.
  void reset() override {
    Base::reset();
    if (!options.conv_kernel_size) return;
    const int64_t H = options.num_heads, size = *options.conv_kernel_size;
    check_layer("conv", size, H);
    conv = register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(H, H, {size, 1})
                                                         .padding({size / 2, 0})
                                                         .groups(H)
                                                         .bias(false)));
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S]; S is L, or the context's
  /// length. Throws what project() does; and c10::ValueError for a mask of pairs, for a causal
  /// call, and for a context where there is a convolution.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// Throws c10::NotImplementedError: there is no causal form.
  Cache make_cache(int64_t, std::optional<int64_t> = std::nullopt,
                   const CacheOptions& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kName,
                                ": a cache has no meaning: every landmark is a mean of many "
                                "tokens, so that there is no causal form");
  }
  /// A context's keys and values, projected once; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    check_options();
    TORCH_CHECK_VALUE(conv.is_empty(), kName,
                      ": a context has no meaning with a conv_kernel_size, whose convolution is "
                      "over the tokens of x");
    return new_context_cache(*this, context, key_padding_mask);
  }

  torch::nn::Conv2d conv{nullptr};  ///< weight [H, 1, conv_kernel_size, 1]; empty without

 protected:
  void check_own_options() const override {
    check_positive("num_landmarks", options.num_landmarks);
    TORCH_CHECK_VALUE(options.inverse_steps >= 0, kName, ": inverse_steps must be >= 0, got ",
                      options.inverse_steps);
    const int64_t size = options.conv_kernel_size.value_or(1);
    TORCH_CHECK_VALUE(size > 0 && size % 2 == 1, kName,
                      ": conv_kernel_size must be > 0 and odd, got ", size);
  }

 private:
  AttentionResult attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                         const torch::Tensor& real) const;
  torch::Tensor convolve(torch::Tensor v, const torch::Tensor& real) const;
};

/// Example: `NystromSelfAttention attn({.d_model = 256, .num_heads = 4, .num_landmarks = 32});`
using NystromSelfAttention = Holder<NystromSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(NystromSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/recurrence/short_convolution.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/module/token_cache.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

namespace attzoo {

ATTZOO_API AttentionResult NystromSelfAttentionImpl::forward(const torch::Tensor& x,
                                                             const AttentionInputs& inputs) {
  TORCH_CHECK_VALUE(!core::says_pairs(inputs), kName,
                    ": mask, pattern and score are about pairs of tokens, and every landmark is "
                    "a mean of many; pass tokens to leave out as key_padding_mask [B, S], or "
                    "documents");
  TORCH_CHECK_VALUE(conv.is_empty() || !core::crosses(inputs), kName,
                    ": a context has no meaning with a conv_kernel_size, whose convolution is "
                    "over the tokens of x");
  check_options();
  const auto heads = Base::project(x, inputs, Keeps{});
  auto real = core::key_padding_of(inputs);
  if (real.defined()) real = real.unsqueeze(1).unsqueeze(-1);
  auto result = core::attend_by_document(
      heads.packing, {heads.q, heads.k, heads.v, real},
      [this](const std::vector<torch::Tensor>& t) { return attend(t[0], t[1], t[2], t[3]); });
  result.output = torch::dropout(result.output, options.dropout, is_training());
  return finish(std::move(result));
}

ATTZOO_API AttentionResult NystromSelfAttentionImpl::attend(const torch::Tensor& q,
                                                            const torch::Tensor& k,
                                                            const torch::Tensor& v,
                                                            const torch::Tensor& real) const {
  // Autocast would round the inverse to the half type.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  auto result = core::attend_by_landmarks(q, k, v, real,
                                          {.num_landmarks = options.num_landmarks,
                                           .inverse_steps = options.inverse_steps,
                                           .batch_inverse = options.batch_inverse,
                                           .scale = scale(),
                                           .count_padding = options.count_padding});
  if (!conv.is_empty()) result.output = result.output + convolve(v, real);
  return result;
}

/// A sum of causal convolutions of so many taps as the kernel takes, over values that half of all
/// taps lie before.
ATTZOO_API torch::Tensor NystromSelfAttentionImpl::convolve(torch::Tensor v,
                                                            const torch::Tensor& real) const {
  constexpr int64_t kTaps = 64;
  const int64_t K = *options.conv_kernel_size, n = v.size(2), D = v.size(3);
  if (real.defined() && !options.count_padding) {
    v = torch::where(real, v, torch::zeros({}, v.options()));
  }
  const auto rows = torch::constant_pad_nd(core::join_heads(v), {0, 0, K / 2, K / 2});
  const auto weight = conv->weight.view({-1, 1, K}).expand({-1, D, K}).reshape({-1, K});
  torch::Tensor sum;
  for (int64_t end = K; end > 0; end -= kTaps) {
    const auto taps = weight.slice(1, std::max<int64_t>(end - kTaps, 0), end);
    const auto y = core::convolve({.x = rows, .weight = taps, .silu = false}).narrow(1, end - 1, n);
    sum = sum.defined() ? sum + y : y;
  }
  return core::split_heads(sum.contiguous(), D);
}

}  // namespace attzoo

#endif
