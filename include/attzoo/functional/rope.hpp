#pragma once
/// \file
/// Rotary position embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021, arXiv:2104.09864).

#include <attzoo/kernel/compiler.hpp>

#include <torch/types.h>

#include <cstdint>

namespace attzoo {

/// Options of `apply_rope`.
struct RopeOptions {
  /// The slowest pair turns base^-(1 - 2/D) radians a token; within 1e-100 ... 1e100.
  double base = 10000.0;
  int64_t position_offset = 0;  ///< position of the first row; within +-2^52
  /// Positions of the rows before the offset is added, integers that broadcast to x's [..., L];
  /// default 0, 1, 2, ...
  torch::Tensor positions = {};
};

/// Rotates each feature pair (2i, 2i + 1) of row p by the angle (p + position_offset) *
/// base^(-2i/D).
///
/// x [..., L, D], D even -> [..., L, D]. Angles are computed in float64 and applied in at least
/// float32, whatever x's dtype, so far positions stay exact in half types too.
/// Throws c10::Error for an odd D, a rank below 2, a base or an offset out of range, and positions
/// that do not broadcast.
ATTZOO_API torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options = {});

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/rope.ipp>
#endif
