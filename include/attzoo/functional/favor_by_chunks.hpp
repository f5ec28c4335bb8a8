#pragma once
/// \file
/// FAVOR+ over all keys (Choromanski et al., "Rethinking Attention with Performers", 2020,
/// arXiv:2009.14794) a few tokens at a time: their features stay in the processor's cache, and none
/// are kept for the backward pass, which makes them anew.

#include <attzoo/core/autograd.hpp>

#include <cstdint>
#include <functional>

namespace attzoo::core {

/// Of q [B, H, L, D], k [B, H, S, D] and [v, 1] [B, H, S, E + 1] the output [B, H, L, E], as
/// performer_attention() says without relu_kernel and causal; and for the backward pass the sums
/// [B, H, F, E + 1] over the keys, and the largest projection [B, H, 1, 1]. No size may be 0.
class FavorByChunks final : public Differentiable {
 public:
  /// P [F, D]; `real` bool [B, 1, S, 1], or undefined; k and [v, 1] are zeros where it is false.
  /// `by_definition` computes the output of these inputs by operators that autograd records, for
  /// derivatives of derivatives.
  FavorByChunks(const torch::Tensor& projection, double scale, double eps, torch::Tensor real,
                std::function<torch::Tensor(const Tensors&)> by_definition);

  Tensors forward(const Tensors& x) override;
  Tensors backward(const Tensors& saved, const Tensors& grads) override;
  bool saves_outputs() const override { return true; }

 private:
  /// Calls f(begin, end) for all tokens of t [B, H, n, ..].
  template <class F>
  void for_each_chunk(const torch::Tensor& t, const F& f) const;
  torch::Tensor query_features(const torch::Tensor& q) const;
  /// Those of keys but for eps, of what project() made of them, in its memory.
  torch::Tensor key_features(torch::Tensor projected, const torch::Tensor& k,
                             const torch::Tensor& real, const torch::Tensor& top) const;
  torch::Tensor project(const torch::Tensor& x) const { return torch::matmul(x, projection_); }
  torch::Tensor half_square(const torch::Tensor& x) const {
    return x.square().sum(-1, /*keepdim=*/true) * (scale_ / 2);
  }
  /// The gradient of x from that of P x - |x|^2 / 2.
  torch::Tensor gradient(const torch::Tensor& x, const torch::Tensor& of_projected) const {
    return torch::matmul(of_projected, projection_.t())
        .sub_(x * (of_projected.sum(-1, /*keepdim=*/true) * scale_));
  }
  torch::Tensor real_rows(int64_t begin, int64_t end) const {
    return real_.defined() ? real_.slice(2, begin, end) : real_;
  }

  torch::Tensor projection_;  // [D, F]
  double scale_, log_ratio_, eps_;
  torch::Tensor real_;
  std::function<torch::Tensor(const Tensors&)> by_definition_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/recurrence/linear_attention.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace attzoo::core {

ATTZOO_API FavorByChunks::FavorByChunks(const torch::Tensor& projection, double scale, double eps,
                                        torch::Tensor real,
                                        std::function<torch::Tensor(const Tensors&)> by_definition)
    : projection_((projection.t() * std::sqrt(scale)).contiguous()),
      scale_(scale),
      log_ratio_(-std::log(static_cast<double>(projection.size(0))) / 2),
      eps_(eps * std::exp(log_ratio_)),
      real_(std::move(real)),
      by_definition_(std::move(by_definition)) {}

template <class F>
void FavorByChunks::for_each_chunk(const torch::Tensor& t, const F& f) const {
  constexpr int64_t kNumbers = int64_t{1} << 18, kLeast = 16;  // features at a time, and tokens
  const int64_t of_token = t.size(0) * t.size(1) * projection_.size(1), n = t.size(2),
                step = std::max(kNumbers / of_token, kLeast);
  for (int64_t begin = 0; begin < n; begin += step) f(begin, std::min(n, begin + step));
}

ATTZOO_API torch::Tensor FavorByChunks::query_features(const torch::Tensor& q) const {
  auto projected = project(q);
  const auto less = half_square(q).add_(projected.amax(-1, /*keepdim=*/true)).sub_(log_ratio_);
  return projected.sub_(less).exp_().add_(eps_);
}

ATTZOO_API torch::Tensor FavorByChunks::key_features(torch::Tensor projected,
                                                     const torch::Tensor& k,
                                                     const torch::Tensor& real,
                                                     const torch::Tensor& top) const {
  projected.sub_(half_square(k).add_(top).sub_(log_ratio_)).exp_();
  if (real.defined()) projected.masked_fill_(real.logical_not(), 0);
  return projected;
}

ATTZOO_API Tensors FavorByChunks::forward(const Tensors& x) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const auto &q = x[0], &k = x[1], &v1 = x[2];
  const int64_t B = q.size(0), H = q.size(1), E = v1.size(3) - 1;
  const auto sums = torch::zeros({B, H, projection_.size(1), E + 1}, q.options());
  // Scaled by the largest projection so far; 0 as long as there is none.
  auto most = torch::full({B, H, 1, 1}, kNone, q.options()), top = torch::zeros_like(most);
  for_each_chunk(k, [&](int64_t begin, int64_t end) {
    const auto rows = k.slice(2, begin, end), real = real_rows(begin, end);
    const auto projected = project(rows);
    auto each = projected.amax(-1, /*keepdim=*/true);
    if (real.defined()) each = each.masked_fill(real.logical_not(), kNone);
    const auto before = most;
    most = torch::maximum(most, each.amax(2, /*keepdim=*/true));
    top = most.masked_fill(most == kNone, 0);
    sums.mul_((before - top).exp_());
    const auto features = key_features(projected, rows, real, top);
    sums.add_(torch::matmul(features.transpose(2, 3), v1.slice(2, begin, end)));
  });
  sums.add_(v1.sum(2, /*keepdim=*/true) * eps_);
  const auto output = torch::empty({B, H, q.size(2), E}, q.options());
  for_each_chunk(q, [&](int64_t begin, int64_t end) {
    const auto collected = torch::matmul(query_features(q.slice(2, begin, end)), sums);
    output.slice(2, begin, end)
        .copy_(over_normalizer(collected.narrow(3, 0, E), collected.narrow(3, E, 1), 0));
  });
  return {output, sums, top};
}

ATTZOO_API Tensors FavorByChunks::backward(const Tensors& saved, const Tensors& grads) {
  if (!grads[0].defined()) return Tensors(3);
  const auto &q = saved[0], &k = saved[1], &v1 = saved[2];
  if (torch::GradMode::is_enabled()) {
    Tensors x{q, k, v1};
    for (auto& t : x) {
      if (!t.requires_grad()) t = t.detach().requires_grad_();
    }
    return torch::autograd::grad({by_definition_(x)}, x, {grads[0]}, /*retain_graph=*/true,
                                 /*create_graph=*/true);
  }
  const auto &output = saved[3], &sums = saved[4], &top = saved[5];
  const int64_t E = output.size(3);
  const auto grad_q = torch::empty_like(q), grad_k = torch::empty_like(k),
             grad_v1 = torch::empty_like(v1), grad_sums = torch::zeros_like(sums);
  for_each_chunk(q, [&](int64_t begin, int64_t end) {
    const auto rows = q.slice(2, begin, end), features = query_features(rows);
    const auto normalizer = torch::matmul(features, sums.narrow(3, E, 1));
    const auto of_values = over_normalizer(grads[0].slice(2, begin, end), normalizer, 0);
    const auto of_normalizer = (of_values * output.slice(2, begin, end)).sum(-1, true).neg_();
    const auto of_collected = torch::cat({of_values, of_normalizer}, -1);
    grad_sums.add_(torch::matmul(features.transpose(2, 3), of_collected));
    const auto of_projected =
        torch::matmul(of_collected, sums.transpose(2, 3)).mul_(features.sub_(eps_));
    grad_q.slice(2, begin, end).copy_(gradient(rows, of_projected));
  });
  const auto of_eps = grad_sums.sum(2, /*keepdim=*/true) * eps_;
  for_each_chunk(k, [&](int64_t begin, int64_t end) {
    const auto rows = k.slice(2, begin, end);
    const auto features = key_features(project(rows), rows, real_rows(begin, end), top);
    grad_v1.slice(2, begin, end).copy_(torch::matmul(features, grad_sums).add_(of_eps));
    const auto of_projected =
        torch::matmul(v1.slice(2, begin, end), grad_sums.transpose(2, 3)).mul_(features);
    grad_k.slice(2, begin, end).copy_(gradient(rows, of_projected));
  });
  return {grad_q, grad_k, grad_v1};
}

}  // namespace attzoo::core

#endif
