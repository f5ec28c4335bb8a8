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

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/kernel/rotate.hpp>

#include <ATen/Parallel.h>

#include <utility>
#include <vector>

namespace attzoo::core {

/// On the CPU. x has contiguous rows; cos and sin broadcast to them.
template <class T, class A>
void rotate_rows(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& cos,
                 const torch::Tensor& sin, bool halves) {
  const auto sizes = x.sizes().vec();
  const auto xs = x.strides().vec(), ys = y.strides().vec();
  std::vector<int64_t> ts(sizes.size(), 0);
  for (int64_t d = 1; d <= cos.dim(); ++d) {  // the last dimension, the one before it ...
    if (cos.size(-d) > 1) ts[sizes.size() - static_cast<size_t>(d)] = cos.stride(-d);
  }
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  auto* to = static_cast<T*>(y.mutable_data_ptr());
  const auto *c = cos.const_data_ptr<A>(), *s = sin.const_data_ptr<A>();
  const int64_t D = sizes.back(), P = cos.size(-1), grain = 1 + (1 << 15) / D;
  at::parallel_for(0, x.numel() / D, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t rest = row, at_x = 0, at_y = 0, at_turn = 0;
      for (size_t d = sizes.size() - 1; d-- > 0; rest /= sizes[d]) {
        const int64_t i = rest % sizes[d];
        at_x += i * xs[d];
        at_y += i * ys[d];
        at_turn += i * ts[d];
      }
      kernel::rotate_row(from + at_x, to + at_y, c + at_turn, s + at_turn, P, D, halves);
    }
  });
}

/// On the CPU. x has contiguous rows, and so has y, which may be x.
inline void rotate_on_cpu(const torch::Tensor& x, const torch::Tensor& y, const Rotation& by) {
  const auto run = [&]<class T, class A>(T, A) {
    rotate_rows<T, A>(x, y, by.cos, by.sin, by.halves);
  };
  switch (x.scalar_type()) {
    case torch::kFloat64:
      run(double(), double());
      break;
    case torch::kFloat32:
      run(float(), float());
      break;
    case torch::kBFloat16:
      run(kernel::BFloat16(), float());
      break;
    default:
      run(kernel::Float16(), float());
  }
}

/// On any device: the first and the second features of all pairs, as views.
inline std::pair<torch::Tensor, torch::Tensor> pairs_of(const torch::Tensor& x, int64_t P,
                                                        bool halves) {
  const auto turned = x.narrow(-1, 0, 2 * P);
  const auto split =
      halves ? turned.unflatten(-1, {2, P}).transpose(-1, -2) : turned.unflatten(-1, {P, 2});
  return {split.select(-1, 0), split.select(-1, 1)};
}

/// Without autograd.
inline torch::Tensor rotated(torch::Tensor x, const Rotation& by) {
  const int64_t P = by.cos.size(-1);
  if (x.numel() == 0 || P == 0) return x.clone();
  x = plain(x);
  if (x.stride(-1) != 1) x = x.contiguous();
  auto y = torch::empty_like(x);
  if (y.stride(-1) != 1) y = torch::empty(x.sizes(), x.options());
  if (!x.device().is_cpu()) {
    y.copy_(x);
    const auto [a, b] = pairs_of(x, P, by.halves);
    const auto [ya, yb] = pairs_of(y, P, by.halves);
    ya.copy_(a * by.cos - b * by.sin);
    yb.copy_(b * by.cos + a * by.sin);
    return y;
  }
  rotate_on_cpu(x, y, by);
  return y;
}

struct Rotate final : Differentiable {
  Rotation by;
  explicit Rotate(Rotation r) : by(std::move(r)) {}
  Tensors forward(const Tensors& inputs) override { return {rotated(inputs[0], by)}; }
  Tensors backward(const Tensors&, const Tensors& grads) override {
    if (!grads[0].defined()) return {torch::Tensor()};
    return {rotate(grads[0], {by.cos, by.sin.neg(), by.halves})};
  }
  bool saves_inputs() const override { return false; }
};

ATTZOO_API torch::Tensor rotate(const torch::Tensor& x, const Rotation& by) {
  if (!torch::GradMode::is_enabled() || !x.requires_grad()) return rotated(x, by);
  return differentiable(c10::make_intrusive<Rotate>(by), {x})[0];
}

ATTZOO_API void rotate_own(torch::Tensor& x, const Rotation& by) {
  const bool in_place = x.device().is_cpu() && x.layout() == torch::kStrided && !x.is_neg() &&
                        !x._is_zerotensor() && x.dim() > 0 && x.stride(-1) == 1 && x.numel() > 0 &&
                        !is_differentiated(x);
  if (in_place) {
    rotate_on_cpu(x, x, by);
  } else {
    x = rotate(x, by);
  }
}

}  // namespace attzoo::core

#endif
