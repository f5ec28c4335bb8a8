#pragma once
/// \file
/// Features turned pair by pair, with their gradient: what rotary positions do to queries and keys.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// By how much the pairs of each row turn, made once for all tensors whose rows stand at the same
/// positions.
struct Rotation {
  /// [..., L, P], contiguous, of the type that the product is computed in: float32 or float64.
  torch::Tensor cos, sin;
  bool halves = false;  ///< pairs (i, i + P), not (2i, 2i + 1)
};

/// (a, b) -> (a cos - b sin, b cos + a sin) for each pair of the first 2 P features of x [..., L,
/// D]; the others pass. cos and sin broadcast to x's rows. Differentiable of any order in x, which
/// it does not keep; one pass over memory on the CPU.
ATTZOO_API torch::Tensor rotate(const torch::Tensor& x, const Rotation& by);
/// x = rotate(x, by) for who made x and lets nobody else see its memory: that is used again where
/// no gradient is asked for.
ATTZOO_API void rotate_own(torch::Tensor& x, const Rotation& by);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/layers/rotate.ipp>
#endif
