#pragma once
/// \file
/// FAVOR+, softmax attention by random features in linear time: the features and the attention of
/// the Performer, without a module.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/functional/result.hpp>

#include <torch/types.h>

#include <cstdint>
#include <optional>

namespace attzoo {

/// Options of `orthogonal_features()`.
struct OrthogonalFeaturesOptions {
  /// Rows have the length sqrt(head_dim) instead of that of Gaussian rows, as `ortho_scaling` 1.
  bool equal_norms = false;
  /// The same seed draws the same rows; default: torch's CPU generator.
  std::optional<uint64_t> seed = std::nullopt;
};

/// Random projections [features, head_dim], float32, on the CPU: blocks of head_dim rows that are
/// orthogonal to each other, each row as long as a Gaussian one
/// (Choromanski et al., "Rethinking Attention with Performers", 2020, arXiv:2009.14794, section
/// 2.4). Throws c10::ValueError unless both sizes are > 0.
ATTZOO_API torch::Tensor orthogonal_features(int64_t features, int64_t head_dim,
                                             const OrthogonalFeaturesOptions& options = {});

/// Options of `performer_attention()`.
struct PerformerAttentionOptions {
  /// Features relu(P x) instead of those whose products estimate the softmax kernel.
  bool relu_kernel = false;
  /// Nobody attends to later keys; the last query stands at the last key.
  bool causal = false;
  /// Multiplies q k^T in the kernel that is estimated; > 0. Default 1 / sqrt(D).
  std::optional<double> scale = std::nullopt;
  /// Added to every feature; finite and >= 0. Default 1e-4, with relu_kernel 1e-3.
  std::optional<double> eps = std::nullopt;
  /// Of a causal pass: keys are scaled by the largest projection of all keys, later ones too, as
  /// performer-pytorch does, which by eps lets a token see a little of later ones. By default it is
  /// the largest so far.
  bool max_of_all_keys = false;
  /// bool [B, S], true = real token; keys that are not real are left out, whatever they hold.
  torch::Tensor key_padding_mask = {};
  /// A packed batch, L = S: nobody attends beyond the own document, whose tokens lie together.
  Documents documents = {};
};

/// FAVOR+ (Choromanski et al., 2020, arXiv:2009.14794). With u = x scale^(1/2) and F projections
/// P [F, D]:
/// ```
/// phi(x)   = F^(-1/2) (exp(P u - |u|^2 / 2 - max) + eps),  or  relu(P u) + eps
/// output_i = sum over j of (phi(q_i) . phi(k_j)) v_j / (sum over j of phi(q_i) . phi(k_j))
/// ```
/// max is the largest number of P u of a query, and of P u of all keys that are attended to: but
/// for eps the weights do not depend on it. With eps 0 and P of independent Gaussian rows phi(q) .
/// phi(k) is on average exp(scale q . k), up to these factors. In a causal pass 1e-6 is added to
/// the sums of the keys' features, as in performer-pytorch 1.1.4, whose constants these are.
///
/// \param q [B, H, L, D], any strides
/// \param k [B, H, S, D]
/// \param v [B, H, S, E]
/// \param projection P [F, D] of orthogonal_features(), in float32 at least, on q's device; no
///   gradients flow to it
/// \return output [B, H, L, E], weights [B, H, L, S] on demand, both in q's dtype; no lse
///
/// O((L + S) F E) time; O((L + S) (D + E) + F E) memory on the CPU, where features are made for a
/// few tokens at a time, O((L + S) (F + E)) if causal, with relu_kernel or documents, and on other
/// devices. Features and sums are float32 for half types. A query without any key has output 0.
/// Throws c10::Error on wrong ranks, sizes, dtypes, layouts, devices and options, before anything
/// is computed. Example: `auto o = performer_attention(q, k, v, orthogonal_features(256, 64),
/// {.causal = true});`
ATTZOO_API AttentionResult performer_attention(const torch::Tensor& q, const torch::Tensor& k,
                                               const torch::Tensor& v,
                                               const torch::Tensor& projection,
                                               const PerformerAttentionOptions& options = {});

namespace core {

/// The kernel that is estimated.
struct Favor {
  torch::Tensor projection;  ///< [F, D], in the dtype of the sums
  bool relu;
  double scale, eps;

  double ratio() const;  ///< F^(-1/2), or 1
};

/// Features of keys [B, H, S, F], those of relu as they are; else their logarithms, which are still
/// to be scaled down, and the largest projection of each key [B, H, S], -inf where it is left out.
struct FavorKeys {
  torch::Tensor features, top = {};

  FavorKeys rows(int64_t begin, int64_t end) const;
};

/// All that causal attention needs of the tokens before: sums over scaled features and [v, 1], the
/// largest projection, and the sum of [v, 1]. Default: no tokens yet. With relu the first alone.
struct FavorState {
  torch::Tensor kv = {};   ///< [B, H, F, E + 1]
  torch::Tensor top = {};  ///< [B, H, 1]
  torch::Tensor v = {};    ///< [B, H, 1, E + 1]
};

ATTZOO_API torch::Tensor favor_queries(const Favor& f, const torch::Tensor& q);
/// Of keys of which those that are not `real` [B, 1, S, 1], if it is defined, are zeros already.
ATTZOO_API FavorKeys favor_keys(const Favor& f, const torch::Tensor& k, const torch::Tensor& real);
/// v and a last column of ones, zeros where it is not `real`.
ATTZOO_API torch::Tensor values_and_ones(const torch::Tensor& v, const torch::Tensor& real);

/// What the features q [B, H, n, F] of tokens collect of these and of all before, [B, H, n, E + 1];
/// `state` moves on.
ATTZOO_API torch::Tensor favor_go_on(const Favor& f, FavorState& state, const torch::Tensor& q,
                                     const FavorKeys& k, const torch::Tensor& v1);
/// The state behind these tokens, which come after `before`.
ATTZOO_API FavorState favor_state_after(const Favor& f, const FavorState& before,
                                        const FavorKeys& k, const torch::Tensor& v1);
/// Of what causal queries collected the values, over the sum of weights: [B, H, n, E].
ATTZOO_API torch::Tensor favor_output(const torch::Tensor& collected, const torch::Tensor& q);

/// performer_attention() of inputs that are checked and in the dtype of the sums; `real` [B, S].
/// `read` notices changes of q and k in place until the weights are asked for; none where nobody
/// else has them.
ATTZOO_API AttentionResult favor_attention(const Favor& f, const torch::Tensor& q,
                                           const torch::Tensor& k, const torch::Tensor& v,
                                           bool causal, bool max_of_all_keys,
                                           const torch::Tensor& real, const Packing& packing,
                                           torch::ScalarType dtype, const Unchanged& read = {});

}  // namespace core

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL
#include <attzoo/functional/performer_attention.ipp>
#endif
