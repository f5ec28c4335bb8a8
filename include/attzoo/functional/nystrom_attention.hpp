#pragma once
/// \file
/// Nystrom attention: softmax attention by way of a few landmarks, in linear time.

#include <attzoo/config.hpp>
#include <attzoo/core/documents.hpp>
#include <attzoo/functional/result.hpp>

#include <torch/types.h>

#include <cstdint>
#include <optional>

namespace attzoo {

/// Options of `nystrom_attention()`.
struct NystromAttentionOptions {
  int64_t num_landmarks = 64;  ///< m; > 0
  int64_t inverse_steps = 6;   ///< of the iteration for the pseudo-inverse; >= 0
  /// The iteration begins by the largest column sum in the batch and all heads, as in transformers
  /// ("original"), so that sequences are coupled; by default by that of each matrix.
  bool batch_inverse = false;
  /// Multiplies q k^T; default 1 / sqrt(D).
  std::optional<double> scale = std::nullopt;
  /// bool [B, S], true = real token: no query attends to the others.
  torch::Tensor key_padding_mask = {};
  /// Landmarks are means over padding, too, as in transformers; by default padded tokens are left
  /// out of them, and the landmarks of a sequence are those that it has without padding.
  bool count_padding = false;
  /// A packed batch, L = S: nobody attends beyond the own document, which has landmarks of its own.
  Documents documents = {};
};

/// Nystrom attention (Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating
/// Self-Attention", 2021, arXiv:2102.03902). With landmarks Q~ and K~, the means of m segments of
/// the rows of Q and K:
/// ```
/// output = softmax(s Q K~^T) Z softmax(s Q~ K^T) V,    Z = pinv(softmax(s Q~ K~^T)) nearly
/// Z_0 = A^T / max column sum of A,    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4
/// ```
/// Segments differ by one row at most, the longer ones first; where m divides the length they are
/// those of transformers. Of no more than m queries or keys it is softmax attention itself. A
/// padded sequence of no more than m real tokens has them as its landmarks, with its own inverse.
///
/// \param q [B, H, L, D], any strides
/// \param k [B, H, S, D]
/// \param v [B, H, S, Dv]
/// \return output [B, H, L, Dv], weights [B, H, L, S] on demand, the product of the three, which
///   may be negative; lse only where it is softmax attention itself
///
/// The three are fused: O((L + S) m (D + Dv) + m^3) time, O(L + S + m^2) memory beside inputs and
/// output. If key_padding_mask is given and L = S, queries are the same tokens, and padded ones are
/// no part of their landmarks, either. Throws c10::Error on wrong ranks, sizes, dtypes, layouts,
/// devices and options, before anything is computed. Example:
/// `auto o = nystrom_attention(q, k, v, {.num_landmarks = 32}).output;`
ATTZOO_API AttentionResult nystrom_attention(const torch::Tensor& q, const torch::Tensor& k,
                                             const torch::Tensor& v,
                                             const NystromAttentionOptions& options = {});

namespace core {

/// nystrom_attention() of inputs that are checked, of one document in each sequence, where `real`
/// [B, 1, S, 1] or undefined says which keys are real.
ATTZOO_API AttentionResult attend_by_landmarks(const torch::Tensor& q, const torch::Tensor& k,
                                               const torch::Tensor& v, const torch::Tensor& real,
                                               const NystromAttentionOptions& options);

/// The iteration for the pseudo-inverse of A [.., m, m], of rows that sum to 1 or are 0.
ATTZOO_API torch::Tensor pseudo_inverse(const torch::Tensor& A, int64_t steps, bool batch);

}  // namespace core

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/each_document.hpp>
#include <attzoo/functional/masks.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo::core {

ATTZOO_API torch::Tensor pseudo_inverse(const torch::Tensor& A, int64_t steps, bool batch) {
  const auto columns = A.sum(-2, /*keepdim=*/true);
  const auto largest = batch ? columns.max() : columns.amax({-2, -1}, /*keepdim=*/true);
  auto Z = A.transpose(-2, -1) / largest.masked_fill(largest == 0, 1);
  const auto eye = torch::eye(A.size(-1), A.options());
  for (int64_t i = 0; i < steps; ++i) {
    const auto AZ = torch::matmul(A, Z);
    const auto inner = 15 * eye - torch::matmul(AZ, 7 * eye - AZ);
    Z = torch::matmul(Z / 4, 13 * eye - torch::matmul(AZ, inner));
  }
  return Z;
}

/// Means of segments [B, H, m, D], and which of them have a token, bool [B, 1, m]; undefined: all.
struct Landmarks {
  torch::Tensor rows, filled = {};
};

/// `real` [B, 1, n, 1], where t is zeros in all other rows; undefined: all are.
inline Landmarks landmarks(const torch::Tensor& t, int64_t m, const torch::Tensor& real) {
  const int64_t n = t.size(2), size = n / m, longer = n % m;
  const auto dtype = compute_dtype(t);
  if (!real.defined()) {
    const auto means = [&](int64_t first, int64_t count, int64_t of) {
      return t.narrow(2, first, count * of).unflatten(2, {count, of}).to(dtype).mean(3);
    };
    const int64_t begin = longer * (size + 1);
    if (longer == 0) return {means(0, m, size)};
    return {torch::cat({means(0, longer, size + 1), means(begin, m - longer, size)}, 2)};
  }
  // Of each sequence: the p-th of its r real tokens is in the segment that it has without padding.
  const auto flags = real.to(torch::kInt64);
  const auto place = flags.cumsum(2) - 1, r = flags.sum(2, /*keepdim=*/true);
  const auto per = r.div(m, "floor"), more = r.remainder(m), head = more * (per + 1);
  const auto segment = torch::where(place < head, place.div(per + 1, "floor"),
                                    more + (place - head).div(per.clamp_min(1), "floor"))
                           .clamp(0, m - 1);
  const auto zeros = [&](int64_t heads, int64_t of, torch::ScalarType type) {
    return torch::zeros({t.size(0), heads, m, of}, t.options().dtype(type).requires_grad(false));
  };
  const auto sums =
      zeros(t.size(1), t.size(3), dtype).scatter_add(2, segment.expand(t.sizes()), t.to(dtype));
  const auto counts = zeros(1, 1, torch::kInt64).scatter_add(2, segment, flags);
  return {sums / counts.clamp_min(1), (counts > 0).squeeze(-1)};
}

ATTZOO_API AttentionResult attend_by_landmarks(const torch::Tensor& q_in, const torch::Tensor& k_in,
                                               const torch::Tensor& v, const torch::Tensor& real,
                                               const NystromAttentionOptions& o) {
  const int64_t L = q_in.size(2), S = k_in.size(2), m = o.num_landmarks;
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q_in.size(3))));
  const auto keys = real.defined() ? AnyMask(mask_tensor(real.transpose(-2, -1))) : AnyMask();
  const AttentionOptions how{.scale = scale};
  if (L <= m || S <= m) return attention(q_in, k_in, v, keys, {}, how);
  auto q = q_in, k = k_in;
  torch::Tensor real_q, real_k;
  const auto leave_out_padding = [&](torch::Tensor& t, torch::Tensor& rows) {
    rows = real;
    t = torch::where(real, t, torch::zeros({}, t.options()));
  };
  if (real.defined() && !o.count_padding) {
    leave_out_padding(k, real_k);
    if (L == S) leave_out_padding(q, real_q);
  }
  const auto of_q = landmarks(q, m, real_q), of_k = landmarks(k, m, real_k);
  auto among = torch::matmul(of_q.rows * scale, of_k.rows.transpose(-2, -1));
  AnyMask some;
  if (of_k.filled.defined()) {
    const auto filled = of_k.filled.unsqueeze(2);  // [B, 1, 1, m]
    some = mask_tensor(filled);
    constexpr double kLowest = std::numeric_limits<float>::lowest();
    among = torch::softmax(among.masked_fill(filled.logical_not(), kLowest), -1) * filled;
  } else {
    among = torch::softmax(among, -1);
  }
  if (of_q.filled.defined()) among = among * of_q.filled.unsqueeze(-1);
  const auto Z = pseudo_inverse(among, o.inverse_steps, o.batch_inverse);
  const auto dtype = q.scalar_type();
  const auto last = attention(of_q.rows.to(dtype), k, v, keys, {}, how);
  const auto middle = torch::matmul(Z, last.output.to(Z.scalar_type())).to(dtype);
  const auto first = attention(q, of_k.rows.to(dtype), middle, some, {}, how);
  return {
      first.output,
      first.weights.map({q.size(0), q.size(1), L, S},
                        [Z, last = last.weights, dtype](const torch::Tensor& w, int64_t, int64_t) {
                          const auto rows = torch::matmul(w.to(Z.scalar_type()), Z);
                          return torch::matmul(rows.to(dtype), last.tensor());
                        }),
      {}};
}

ATTZOO_API void check_nystrom(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const NystromAttentionOptions& o) {
  constexpr const char *kName = "nystrom_attention", *kDocuments = "nystrom_attention: documents";
  check_qkv(kName, q, k, v);
  for (const auto* t : {&k, &v}) {
    TORCH_CHECK_VALUE(t->sizes().slice(0, 2) == q.sizes().slice(0, 2), kName,
                      ": k and v must have q's batch size and heads, q is ", q.sizes(), ", got ",
                      t->sizes());
  }
  TORCH_CHECK_VALUE(o.num_landmarks > 0, kName, ": num_landmarks must be > 0, got ",
                    o.num_landmarks);
  TORCH_CHECK_VALUE(o.inverse_steps >= 0, kName, ": inverse_steps must be >= 0, got ",
                    o.inverse_steps);
  TORCH_CHECK_VALUE(!o.scale || is_valid_scale(*o.scale, q), kName,
                    ": scale must be finite and at most 1e30 in size (float64: 1e300), got ",
                    o.scale.value_or(0));
  const Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
  if (o.key_padding_mask.defined()) check_key_padding(o.key_padding_mask, n, q.device(), kName);
  if (!o.documents.defined()) return;
  check_documents(o.documents, kDocuments);
  check_documents_fit(o.documents, n, q.device(), kDocuments);
  TORCH_CHECK_VALUE(n.L == n.S, kDocuments, " need as many queries as keys, got L=", n.L,
                    " S=", n.S);
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API AttentionResult nystrom_attention(const torch::Tensor& q, const torch::Tensor& k,
                                             const torch::Tensor& v,
                                             const NystromAttentionOptions& options) {
  core::check_nystrom(q, k, v, options);
  core::Packing packing;
  if (options.documents.defined()) {
    packing = core::pack(options.documents, "nystrom_attention: documents");
  }
  auto real = options.key_padding_mask;
  if (real.defined()) real = real.unsqueeze(1).unsqueeze(-1);
  // Autocast would round the inverse to the half type.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return core::attend_by_document(
      packing, {q, k, v, real}, [&](const std::vector<torch::Tensor>& t) {
        return core::attend_by_landmarks(t[0], t[1], t[2], t[3], options);
      });
}

}  // namespace attzoo

#endif
