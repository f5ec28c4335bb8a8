#pragma once
/// \file
/// Linear recurrences, and a way to run them.

#include <torch/types.h>

#include <array>

namespace attzoo::core {

/// In every head a state S [F, E]; R is what remains of it, all of it without a decay:
/// ```
/// R   = diag(exp(d_t)) S_{t-1}     u = v_t, by the delta rule beta_t (v_t - R^T p_t)
/// S_t = R + k_t u^T + b_t (a_t^T S_{t-1})      out_t = scale q_t^T S_t
/// ```
/// Where a and b are undefined nothing is added. HV heads of values; H, a divisor, of q and k.
struct Recurrence {
  torch::Tensor q, k;               ///< [B, H, n, F]
  torch::Tensor v;                  ///< [B, HV, n, E]
  torch::Tensor decay = {};         ///< natural logs, [B, HV, n, F or 1]
  bool delta = false;               ///< whether it has a delta rule
  torch::Tensor p = {}, beta = {};  ///< of that: [B, H or HV, n, F], default k; [B, HV, n, 1], 1
  torch::Tensor a = {}, b = {};     ///< [B, H or HV, n, F], both or none, without a delta rule
  double scale = 1;
  torch::Tensor state = {};  ///< before the first token, [B, HV, F, E]; undefined: zeros
  bool over_state = false;   ///< may write over it; only where no gradients are recorded
  torch::Tensor run = {};    ///< int64 [1 or B, n], the document of a token, each from zeros

  /// Those that have a gradient, some undefined.
  std::array<torch::Tensor*, 9> tensors() {
    return {&q, &k, &v, &state, &decay, &p, &beta, &a, &b};
  }
};

/// What comes of one; and, in a backward pass, the gradients of that.
struct Recurred {
  torch::Tensor out;    ///< [B, HV, n, E], in v's dtype
  torch::Tensor state;  ///< behind the last token, [B, HV, F, E]; float32, of float64 ones float64
};

/// Stateless; chosen by choose.hpp, as the backends of softmax attention are. Tensors are of any
/// floating dtypes. Calls are not recorded by autograd.
class RecurrenceBackend {
 public:
  virtual ~RecurrenceBackend() = default;
  /// Whether this problem is one that it runs.
  virtual bool takes(const Recurrence& x) const = 0;
  virtual Recurred run(const Recurrence& x) const = 0;
  /// The gradients of x's tensors, each in its place, from those of the output and the last state,
  /// either of which may be undefined.
  virtual Recurrence run_backward(const Recurrence& x, const Recurred& grad) const = 0;
};

}  // namespace attzoo::core
