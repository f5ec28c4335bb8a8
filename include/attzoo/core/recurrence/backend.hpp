#pragma once
/// \file
/// Linear recurrences, and a way to run them.

#include <torch/types.h>

namespace attzoo::core {

/// In every head a state S [F, E], to which each token adds and from which it reads:
/// ```
/// S_t = S_{t-1} + k_t v_t^T      out_t = q_t^T S_t
/// ```
/// What forgets, gates or rewrites S_{t-1} is a further tensor of the recurrences that have it.
struct Recurrence {
  torch::Tensor q, k;        ///< [B, H, n, F]
  torch::Tensor v;           ///< [B, H, n, E]
  torch::Tensor state = {};  ///< before the first token, [B, H, F, E]; undefined: zeros
  bool reverse = false;      ///< from the last token to the first
};

/// In every head a state S [F, E]; R is what remains of it, all of it without a decay:
/// ```
/// R   = diag(exp(d_t)) S_{t-1}     u = v_t, by the delta rule beta_t (v_t - R^T p_t)
/// S_t = R + k_t u^T + b_t (a_t^T S_{t-1})      out_t = scale q_t^T S_t
/// ```
/// Where a or b is undefined there is none; HV heads of values, H of them, a divisor, of q, k, p, a
/// and b.
struct GatedRecurrence {
  torch::Tensor q, k;               ///< [B, H, n, F]
  torch::Tensor v;                  ///< [B, HV, n, E]
  torch::Tensor decay = {};         ///< natural logs, [B, HV, n, F or 1]
  bool delta = false;               ///< whether it has a delta rule
  torch::Tensor p = {}, beta = {};  ///< of that: [B, H or HV, n, F], default k; [B, HV, n, 1], 1
  torch::Tensor a = {}, b = {};     ///< [B, H or HV, n, F], both or none, without a delta rule
  double scale = 1;
  torch::Tensor state = {};  ///< before the first token, [B, HV, F, E]; undefined: zeros
  torch::Tensor run = {};    ///< int64 [1 or B, n], the document of a token, each from zeros
};

/// What comes of one; and, in a backward pass, the gradients of that.
struct Recurred {
  torch::Tensor out;         ///< [B, H, n, E]
  torch::Tensor state = {};  ///< behind the last token, [B, H, F, E], where it was asked for
};

/// Stateless; chosen by choose.hpp, as the backends of softmax attention are. Tensors are plain();
/// without a state each may be of its own floating dtype, and `out` is of v's. Calls are not
/// recorded by autograd.
class RecurrenceBackend {
 public:
  virtual ~RecurrenceBackend() = default;
  /// Whether this problem is one that it runs.
  virtual bool takes(const Recurrence& x) const = 0;
  virtual Recurred run(const Recurrence& x, bool with_state) const = 0;
  /// The gradients of x's tensors, each in its place, from those of `out`, and of the state behind
  /// the last token unless that is undefined.
  virtual Recurrence run_backward(const Recurrence& x, const Recurred& grad) const = 0;
  /// One token, n = 1, as in decoding: O(F E).
  virtual Recurred step(const Recurrence& x, bool with_state) const = 0;
};

}  // namespace attzoo::core
