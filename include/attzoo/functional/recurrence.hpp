#pragma once
/// \file
/// Linear recurrences: attention with a state in the place of keys and values.

#include <attzoo/config.hpp>
#include <attzoo/core/documents.hpp>

#include <torch/types.h>

#include <optional>

namespace attzoo {

/// Options of `recurrence()`. HV heads of values, H heads of keys.
struct RecurrenceOptions {
  /// What remains of the state before a token writes, as natural logs (<= 0): a number for each
  /// head [HV], for each token [B, HV, n], or for each channel of the keys [B, HV, n, F]. Default:
  /// everything.
  torch::Tensor decay = {};
  /// Delta rule: v becomes beta (v - R^T k), R the state that remains: what it does not yet say of
  /// k. [B, HV, n], usually in 0 ... 1 or 0 ... 2.
  torch::Tensor beta = {};
  /// Delta rule that asks the state of another vector than k, [B, H or HV, n, F]: Comba's p, or
  /// b * k of Gated DeltaNet 2. Default: k. Without beta that is 1.
  torch::Tensor erase = {};
  /// Adds b (a^T S) to the new state, S the one before it decays: RWKV-7's. [B, H or HV, n, F],
  /// both or none, not with a delta rule.
  torch::Tensor a = {}, b = {};
  std::optional<double> scale = std::nullopt;  ///< of q; default 1 / sqrt(F)
  /// Before the first token, [B, HV, F, E]; float32, for float64 inputs float64. Default: zeros.
  torch::Tensor initial_state = {};
  /// Writes the state behind the last token over initial_state and returns that: a token takes two
  /// thirds of the time. Not where gradients are recorded.
  bool inplace = false;
  /// A packed batch: each document begins from a state of zeros, but for the first one of a row,
  /// which goes on from initial_state.
  Documents documents = {};
};

/// What recurrence() returns.
struct RecurrenceResult {
  torch::Tensor output;  ///< [B, HV, n, E], in v's dtype
  torch::Tensor state;   ///< behind the last token, [B, HV, F, E]; float32 or float64
};

/// A linear recurrence in every head, over a state S [F, E]; R is what remains of it:
/// ```
/// R   = exp(decay_t) S_{t-1}      decays of channels: diag(exp(decay_t)) S_{t-1}
/// u   = v_t                       delta rule: beta_t (v_t - R^T erase_t)
/// S_t = R + k_t u^T               with a and b: + b_t (a_t^T S_{t-1})
/// output_t = scale S_t^T q_t
/// ```
/// With a decay of each head it is RetNet's retention (Sun et al., 2023, arXiv:2307.08621) and
/// lightning attention; of each token simple GLA and Mamba-2's state space duality (Dao and Gu,
/// 2024, arXiv:2405.21060, q = C, k = B, v = dt x); of each channel gated linear attention (Yang et
/// al., 2023, arXiv:2312.06635). With beta it is the delta rule (Yang et al., 2024,
/// arXiv:2406.06484), with a decay too Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024,
/// arXiv:2412.06464) and Kimi Delta Attention (Kimi Team, 2025, arXiv:2510.26692); with a and b
/// RWKV-7 (Peng et al., 2025, arXiv:2503.14456).
///
/// \param q [B, H, n, F], any strides
/// \param k [B, H, n, F]
/// \param v [B, HV, n, E]; H divides HV, consecutive heads share q and k
///
/// Differentiable any number of times, with respect to all tensors. O(n F E) time, O(n (F + E))
/// memory, in chunks of tensors on any device; by definition, token by token, while an
/// EagerReferenceGuard lives and for up to 4 tokens. Sums are float32 for half types. Throws
/// c10::Error on wrong ranks, sizes, dtypes, layouts, devices and options before anything is
/// computed. Example:
/// `auto y = recurrence(q, k, v, {.decay = g, .beta = beta});  // Gated DeltaNet`
ATTZOO_API RecurrenceResult recurrence(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& v,
                                       const RecurrenceOptions& options = {});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/functional/checks.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <vector>

namespace attzoo {

namespace core {

/// Throws unless t is a floating tensor on v's device, of v's dtype or wider, of these sizes; those
/// of `heads` may be of keys or values.
ATTZOO_API void check_gate(const char* name, const torch::Tensor& t, const char* shape,
                           const std::vector<std::vector<int64_t>>& sizes, const torch::Tensor& v) {
  constexpr const char* kName = "recurrence";
  check_floating(t, kName, name);
  TORCH_CHECK_VALUE(t.device() == v.device(), kName, ": ", name, " must be on v's device ",
                    v.device(), ", got ", t.device());
  for (const auto& of : sizes) {
    if (t.sizes() == torch::IntArrayRef(of)) return;
  }
  TORCH_CHECK_VALUE(false, kName, ": ", name, " must have shape ", shape, " with v ", v.sizes(),
                    ", got ", t.sizes());
}

/// Checks all inputs; the documents' runs.
ATTZOO_API Packing check_recurrence(const torch::Tensor& q, const torch::Tensor& k,
                                    const torch::Tensor& v, const RecurrenceOptions& o) {
  constexpr const char *kName = "recurrence", *kDocuments = "recurrence: documents";
  check_qkv(kName, q, k, v);
  const int64_t B = v.size(0), HV = v.size(1), n = v.size(2), E = v.size(3);
  const int64_t H = q.size(1), F = q.size(3);
  TORCH_CHECK_VALUE(q.sizes() == k.sizes() && q.size(0) == B && q.size(2) == n, kName,
                    ": q and k must have the same shape, and v their batch and length, got ",
                    q.sizes(), ", ", k.sizes(), " and ", v.sizes());
  TORCH_CHECK_VALUE(H > 0 ? HV % H == 0 : HV == 0, kName,
                    ": the heads of q and k must divide those of v, got ", H, " and ", HV);
  const std::vector<std::vector<int64_t>> vectors{{B, H, n, F}, {B, HV, n, F}};
  if (o.decay.defined()) {
    check_gate("decay", o.decay, "[HV], [B, HV, n] or [B, HV, n, F]",
               {{HV}, {B, HV, n}, {B, HV, n, F}}, v);
  }
  if (o.beta.defined()) check_gate("beta", o.beta, "[B, HV, n]", {{B, HV, n}}, v);
  if (o.erase.defined()) check_gate("erase", o.erase, "[B, H or HV, n, F]", vectors, v);
  TORCH_CHECK_VALUE(o.a.defined() == o.b.defined(), kName, ": a and b come together");
  if (o.a.defined()) {
    TORCH_CHECK_VALUE(
        !o.beta.defined() && !o.erase.defined(), kName,
        ": a and b rewrite the state in another way than beta and erase; give either");
    check_gate("a", o.a, "[B, H or HV, n, F]", vectors, v);
    check_gate("b", o.b, "[B, H or HV, n, F]", vectors, v);
  }
  TORCH_CHECK_VALUE(!o.scale || is_valid_scale(*o.scale, q), kName, ": scale must be finite, got ",
                    *o.scale);
  if (o.initial_state.defined()) {
    check_gate("initial_state", o.initial_state, "[B, HV, F, E]", {{B, HV, F, E}}, v);
    TORCH_CHECK_TYPE(o.initial_state.scalar_type() == compute_dtype(q), kName,
                     ": initial_state must be ", compute_dtype(q), ", got ",
                     o.initial_state.scalar_type());
  }
  TORCH_CHECK_VALUE(!o.inplace || o.initial_state.defined(), kName,
                    ": inplace = true writes over initial_state, which is not given");
  if (o.inplace) {
    const auto recorded =
        is_recorded({q, k, v, o.initial_state, o.decay, o.beta, o.erase, o.a, o.b});
    TORCH_CHECK_VALUE(!recorded, kName,
                      ": inplace = true has no gradients: run it under a NoGradGuard");
  }
  if (!o.documents.defined()) return {};
  check_documents(o.documents, kDocuments);
  check_documents_fit(o.documents, {B, HV, n, n}, v.device(), kDocuments);
  return pack(o.documents, kDocuments);
}

}  // namespace core

ATTZOO_API RecurrenceResult recurrence(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& v, const RecurrenceOptions& o) {
  const auto packing = core::check_recurrence(q, k, v, o);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  core::Recurrence x{.q = q, .k = k, .v = v};
  x.scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  x.state = o.initial_state;
  x.over_state = o.inplace;
  x.run = packing.run;
  x.delta = o.beta.defined() || o.erase.defined();
  x.p = o.erase;
  if (o.beta.defined()) x.beta = o.beta.unsqueeze(-1);
  x.a = o.a;
  x.b = o.b;
  if (o.decay.defined()) {
    x.decay = o.decay.dim() == 1 ? o.decay.view({1, -1, 1, 1}).expand({v.size(0), -1, v.size(2), 1})
              : o.decay.dim() == 3 ? o.decay.unsqueeze(-1)
                                   : o.decay;
  }
  auto y = core::recur(x);
  if (o.inplace && !y.state.is_same(o.initial_state)) {
    y.state = o.initial_state.copy_(y.state);
  }
  return {y.out, y.state};
}

}  // namespace attzoo

#endif
