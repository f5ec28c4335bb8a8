#pragma once
/// \file
/// Rotary position embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021, arXiv:2104.09864).

#include <torch/types.h>

namespace attzoo {

/// Options of `apply_rope`.
struct RopeOptions {
  double base = 10000.0;        ///< the slowest pair turns base^-(1 - 2/D) radians a token
  int64_t position_offset = 0;  ///< position of the first row
};

/// Rotates each feature pair (2i, 2i + 1) of row p by the angle (p + position_offset) *
/// base^(-2i/D).
///
/// x [..., L, D], D even -> [..., L, D]. Angles are computed in float64 and applied in at least
/// float32, whatever x's dtype, so far positions stay exact in half types too.
/// Throws c10::Error for an odd D or a rank below 2.
inline torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options = {}) {
  TORCH_CHECK_VALUE(x.defined() && x.dim() >= 2 && x.size(-1) % 2 == 0 && x.is_floating_point(),
                    "apply_rope: x must be a floating tensor [..., L, D] with an even D, got ",
                    x.sizes(), " ", x.scalar_type());
  TORCH_CHECK_VALUE(options.base > 0, "apply_rope: base must be > 0, got ", options.base);
  const int64_t L = x.size(-2), D = x.size(-1);
  const auto f64 = torch::dtype(torch::kFloat64).device(x.device());
  const auto frequency =
      torch::pow(options.base, torch::arange(0, D, 2, f64) * (-1.0 / std::max<int64_t>(D, 1)));
  const auto position = torch::arange(options.position_offset, options.position_offset + L, f64);
  const auto angle = torch::outer(position, frequency);  // [L, D/2]
  const auto dtype = x.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto turn = torch::complex(angle.cos().to(dtype), angle.sin().to(dtype));
  // A pair is a complex number, and turning it is one multiplication.
  auto pairs = x.to(dtype).unflatten(-1, {D / 2, 2}).contiguous();
  return torch::view_as_real(torch::view_as_complex(pairs) * turn).flatten(-2).to(x.scalar_type());
}

}  // namespace attzoo
