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
