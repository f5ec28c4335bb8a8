#pragma once
/// \file
/// A way to run the causal sums of linear attention.

#include <torch/types.h>

namespace attzoo::core {

/// Stateless; chosen by choose.hpp, as the backends of softmax attention are. Tensors are plain(),
/// q, k [B, H, n, F], v [B, H, n, E], each of its own floating dtype.
class ScanBackend {
 public:
  virtual ~ScanBackend() = default;
  /// Whether this problem is one that it runs.
  virtual bool takes(const torch::Tensor& q, const torch::Tensor& v) const = 0;
  /// out_i = sum over j <= i of (q_i . k_j) v_j; reverse: over j >= i. [B, H, n, E] in v's dtype.
  virtual torch::Tensor run(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            bool reverse) const = 0;
};

}  // namespace attzoo::core
