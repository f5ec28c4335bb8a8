#pragma once
/// \file
/// Rotary position embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021, arXiv:2104.09864).

#include <attzoo/core/checks.hpp>

#include <ATen/ExpandUtils.h>

#include <cmath>

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
inline torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options = {}) {
  core::check_floating(x, "apply_rope", "x");
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.size(-1) % 2 == 0,
                    "apply_rope: x must have shape [..., L, D] with an even D, got ", x.sizes());
  TORCH_CHECK_VALUE(options.base >= 1e-100 && options.base <= 1e100,
                    "apply_rope: base must be > 0, within 1e-100 ... 1e100, got ", options.base);
  constexpr int64_t kMost = int64_t{1} << 52;  // float64 holds all integers up to here, and L more
  TORCH_CHECK_VALUE(options.position_offset >= -kMost && options.position_offset <= kMost,
                    "apply_rope: position_offset must be within +-2^52, got ",
                    options.position_offset);
  const int64_t L = x.size(-2), D = x.size(-1);
  if (options.positions.defined()) {
    core::check_dense(options.positions, "apply_rope", "positions");
    TORCH_CHECK_TYPE(torch::isIntegralType(options.positions.scalar_type(), /*includeBool=*/false),
                     "apply_rope: positions must be integers, got ",
                     options.positions.scalar_type());
    TORCH_CHECK_VALUE(options.positions.device() == x.device(),
                      "apply_rope: positions must be on x's device ", x.device(), ", got ",
                      options.positions.device());
  }
  const auto rows =
      options.positions.defined() ? options.positions : torch::arange(L, torch::device(x.device()));
  const auto lengths = x.sizes().slice(0, x.sizes().size() - 1);
  TORCH_CHECK_VALUE(at::is_expandable_to(rows.sizes(), lengths),
                    "apply_rope: positions must broadcast to ", lengths, ", got ", rows.sizes());
  const auto f64 = torch::dtype(torch::kFloat64).device(x.device());
  const auto frequency =
      torch::pow(options.base, torch::arange(0, D, 2, f64) *
                                   (-1.0 / static_cast<double>(std::max<int64_t>(D, 1))));
  const auto position = rows.to(torch::kFloat64) + static_cast<double>(options.position_offset);
  const auto angle = position.unsqueeze(-1) * frequency;  // [..., L, D/2]
  const auto dtype = x.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto turn = torch::complex(angle.cos().to(dtype), angle.sin().to(dtype));
  // A pair is a complex number, and turning it is one multiplication.
  auto pairs = x.to(dtype).unflatten(-1, {D / 2, 2}).contiguous();
  return torch::view_as_real(torch::view_as_complex(pairs) * turn).flatten(-2).to(x.scalar_type());
}

}  // namespace attzoo
