#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/rope.hpp>

#include <ATen/ExpandUtils.h>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API void check_rope(const torch::Tensor& x, const RopeOptions& options) {
  check_floating(x, "apply_rope", "x");
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.size(-1) % 2 == 0,
                    "apply_rope: x must have shape [..., L, D] with an even D, got ", x.sizes());
  TORCH_CHECK_VALUE(options.base >= 1e-100 && options.base <= 1e100,
                    "apply_rope: base must be > 0, within 1e-100 ... 1e100, got ", options.base);
  constexpr int64_t kMost = int64_t{1} << 52;  // float64 holds all integers up to here, and L more
  TORCH_CHECK_VALUE(options.position_offset >= -kMost && options.position_offset <= kMost,
                    "apply_rope: position_offset must be within +-2^52, got ",
                    options.position_offset);
  const auto& positions = options.positions;
  if (!positions.defined()) return;
  check_dense(positions, "apply_rope", "positions");
  TORCH_CHECK_TYPE(torch::isIntegralType(positions.scalar_type(), /*includeBool=*/false),
                   "apply_rope: positions must be integers, got ", positions.scalar_type());
  TORCH_CHECK_VALUE(positions.device() == x.device(),
                    "apply_rope: positions must be on x's device ", x.device(), ", got ",
                    positions.device());
  const auto lengths = x.sizes().slice(0, x.sizes().size() - 1);
  TORCH_CHECK_VALUE(at::is_expandable_to(positions.sizes(), lengths),
                    "apply_rope: positions must broadcast to ", lengths, ", got ",
                    positions.sizes());
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options) {
  core::check_rope(x, options);
  const int64_t L = x.size(-2), D = x.size(-1);
  const auto f64 = torch::dtype(torch::kFloat64).device(x.device());
  const auto frequency =
      torch::pow(options.base, torch::arange(0, D, 2, f64) *
                                   (-1.0 / static_cast<double>(std::max<int64_t>(D, 1))));
  const auto rows =
      options.positions.defined() ? options.positions.to(torch::kFloat64) : torch::arange(L, f64);
  const auto position = rows + static_cast<double>(options.position_offset);
  const auto angle = position.unsqueeze(-1) * frequency;  // [..., L, D/2]
  const auto dtype = x.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto turn = torch::complex(angle.cos().to(dtype), angle.sin().to(dtype));
  // A pair is a complex number, and turning it is one multiplication.
  auto pairs = x.to(dtype).unflatten(-1, {D / 2, 2}).contiguous();
  return torch::view_as_real(torch::view_as_complex(pairs) * turn).flatten(-2).to(x.scalar_type());
}

}  // namespace attzoo
