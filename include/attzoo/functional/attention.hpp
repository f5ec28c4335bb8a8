#pragma once
/// \file
/// The functional entry point: attention for any mask and any change of scores.

#include <attzoo/core/chunked.hpp>
#include <attzoo/core/cpu/fused.hpp>
#include <attzoo/core/reference.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/result.hpp>

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

namespace attzoo {

/// Options of `attention()`.
struct AttentionOptions {
  /// Multiplies q k^T; default 1 / sqrt(D). At most 1e30 in size (float64: 1e300).
  std::optional<double> scale = std::nullopt;
  /// Probability in [0, 1] of dropping a weight; the kept ones are divided by 1 - dropout.
  double dropout = 0.0;
  /// Decides which weights are dropped; default: drawn from torch's CPU generator, so that
  /// torch::manual_seed makes it repeatable.
  std::optional<uint64_t> seed = std::nullopt;
  /// A promise that nobody changes q and k in place while weights may still be read. Inference
  /// tensors count no versions, so without it their weights are guarded by a copy of q and k.
  bool private_qk = false;
};

namespace core {

/// Tensors of fewer elements have sizes in bytes that 64 bits hold.
constexpr int64_t kMostElements = int64_t{1} << 59;

/// What all forms of attention ask of their arguments.
inline void check_arguments(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                            const torch::Tensor& v, double dropout) {
  const char* names[] = {"q", "k", "v"};
  const torch::Tensor* tensors[] = {&q, &k, &v};
  for (int i = 0; i < 3; ++i) {
    check_floating(*tensors[i], who, names[i]);
    TORCH_CHECK_TYPE(tensors[i]->scalar_type() == q.scalar_type(), who, ": ", names[i],
                     " must have q's dtype ", q.scalar_type(), ", got ", tensors[i]->scalar_type());
    TORCH_CHECK_VALUE(tensors[i]->device() == q.device(), who, ": ", names[i],
                      " must be on q's device ", q.device(), ", got ", tensors[i]->device());
  }
  TORCH_CHECK_VALUE(dropout >= 0 && dropout <= 1, who, ": dropout must be in [0, 1], got ",
                    dropout);
}

/// Whether numbers of q's compute dtype hold a scale and, with room to spare, scores.
inline bool is_valid_scale(double scale, const torch::Tensor& q) {
  return std::abs(scale) <= (compute_dtype(q) == torch::kFloat64 ? 1e300 : 1e30);
}

inline void check_qkv(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                      const AttentionOptions& options) {
  check_arguments("attention", q, k, v, options.dropout);
  const char* names[] = {"q", "k", "v"};
  const torch::Tensor* tensors[] = {&q, &k, &v};
  for (int i = 0; i < 3; ++i) {
    TORCH_CHECK_VALUE(tensors[i]->dim() == 4, "attention: ", names[i],
                      " must have shape [B, H, L or S, D], got ", tensors[i]->sizes());
  }
  TORCH_CHECK_VALUE(k.size(0) == q.size(0) && v.size(0) == q.size(0),
                    "attention: q, k and v must have the same batch size, got ", q.sizes(), ", ",
                    k.sizes(), ", ", v.sizes());
  TORCH_CHECK_VALUE(q.size(1) > 0 && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                    "attention: the heads of q must be a multiple of the heads of k, got q ",
                    q.sizes(), ", k ", k.sizes());
  TORCH_CHECK_VALUE(v.size(1) == k.size(1) && v.size(2) == k.size(2),
                    "attention: v must have the heads and the length of k, got v ", v.sizes(),
                    ", k ", k.sizes());
  TORCH_CHECK_VALUE(q.size(3) == k.size(3) && q.size(3) > 0,
                    "attention: q and k must have the same head_dim > 0, got q ", q.sizes(), ", k ",
                    k.sizes());
  TORCH_CHECK_VALUE(
      product_at_most({q.size(0), q.size(1), q.size(2), v.size(3)}, kMostElements),
      "attention: the output [B, H, L, Dv] has too many elements for 64-bit numbers, from q ",
      q.sizes(), ", v ", v.sizes());
  TORCH_CHECK_VALUE(!options.scale || is_valid_scale(*options.scale, q),
                    "attention: scale must be finite and at most 1e30 in size (float64: 1e300), "
                    "got ",
                    *options.scale);
}

inline uint64_t random_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get<at::CPUGeneratorImpl>()->random64();
}

/// Runs the problem by the best way that is exact for it: fused on CPU; elsewhere in chunks of
/// query rows; by definition what is small, empty, or asked for by an EagerReferenceGuard.
template <MaskMod Mask, ScoreMod Score>
OutputAndLse dispatch(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                      const Mask& mask, const Score& score, double scale, const Dropout& dropout) {
  const bool eager = EagerReferenceGuard::enabled();
#if ATTZOO_HAS_FUSED_KERNEL
  using Fused = FusedCpuKernel<Mask, Score>;
  if (!eager && Fused::fits(q, k, v)) {
    return run_kernel(c10::make_intrusive<Fused>(mask, score, scale, dropout), q, k, v);
  }
#endif
  const int64_t rows = chunk_rows({q.size(0), q.size(1), q.size(2), k.size(2)});
  if (!eager && q.size(2) > rows) {
    using Chunked = ChunkedKernel<Mask, Score>;
    return run_kernel(c10::make_intrusive<Chunked>(mask, score, scale, dropout, rows), q, k, v);
  }
  return reference(q, k, v, mask, score, scale, dropout);
}

/// Adds exp(sink[h]) to the softmax's denominator: all weights shrink by the share that is left.
inline AttentionResult with_sink(const AttentionResult& r, const torch::Tensor& sink) {
  const auto logit = sink.to(r.lse.scalar_type()).view({1, -1, 1});
  // A row without keys has the sink alone; where that is -inf too, -inf - -inf must not arise.
  const auto empty = r.lse == -std::numeric_limits<double>::infinity();
  const auto lse = r.lse.masked_fill(empty, 0.0);
  const auto share =
      torch::sigmoid(lse - logit).masked_fill(empty, 0.0).unsqueeze(-1);  // [B, H, L, 1]
  return {(r.output * share).to(r.output.scalar_type()),
          LazyWeights(r.weights.sizes().vec(),
                      [weights = r.weights, share](int64_t begin, int64_t end) {
                        const auto w = weights.rows(begin, end);
                        return (w * share.slice(2, begin, end)).to(w.scalar_type());
                      }),
          torch::where(empty, logit, torch::logaddexp(lse, logit))};
}

}  // namespace core

/// Scaled dot-product attention: softmax over the allowed keys of score_mod(scale * q k^T), times v
/// (Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762).
///
/// \param q [B, H, L, D], any strides
/// \param k [B, Hkv, S, D], H a multiple of Hkv: query head h reads head h / (H / Hkv)
/// \param v [B, Hkv, S, Dv]
/// \param mask who may attend to whom (modifiers.hpp); default everybody
/// \param score how scores change before the softmax (modifiers.hpp); default not at all
/// \return output [B, H, L, Dv], weights [B, H, L, S] on demand, lse [B, H, L] (float32; float64
/// for
///   float64). A query without any allowed key has output 0, weights 0 and lse -inf.
///
/// Throws c10::Error on wrong ranks, sizes, dtypes, layouts or devices, before anything is
/// computed; and in the backward pass and when weights are read, if a tensor that they need, those
/// of mask and score included, was changed in place since. Example: `auto o = attention(q, k, v,
/// causal(), bias_tensor(bias)).output;`
template <MaskMod Mask = core::FullMask, ScoreMod Score = core::IdentityScore>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const Mask& mask = {}, const Score& score = {},
                          const AttentionOptions& options = {}) {
  core::check_qkv(q, k, v, options);
  const core::Shape shape{q.size(0), q.size(1), q.size(2), k.size(2)};
  core::check_modifier(mask, shape, q.device());
  core::check_modifier(score, shape, q.device());
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
  core::Dropout dropout{options.dropout};
  if (dropout.p > 0) dropout.seed = options.seed ? *options.seed : core::random_seed();
  const auto resolved = core::resolve(score, shape);
  const auto [output, lse] = core::dispatch(q, k, v, mask, resolved, scale, dropout);
  core::Captured read;
  if (!options.private_qk || !q.is_inference()) read = {q, k};
  core::held_tensors(mask, read);
  core::held_tensors(resolved, read);
  LazyWeights weights({shape.B, shape.H, shape.L, shape.S}, [=, unchanged = core::Unchanged(read)](
                                                                int64_t begin, int64_t end) {
    unchanged.check("LazyWeights");
    return core::reference_weights(q, k, mask, resolved, scale, dropout, begin, end)
        .weights.to(q.scalar_type());
  });
  const AttentionResult result{output, std::move(weights), lse};
  const auto sink = core::sink_of(score);
  return sink.defined() ? core::with_sink(result, sink) : result;
}

/// The same without a mask: `attention(q, k, v, score_mod(f))`.
template <ScoreMod Score>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const Score& score, const AttentionOptions& options = {}) {
  return attention(q, k, v, full(), score, options);
}

}  // namespace attzoo
