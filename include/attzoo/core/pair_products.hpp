#pragma once
/// \file
/// Products over the pairs that attend, for whole tensors. What a hidden pair holds has no effect,
/// not even an infinity or what is not a number, although 0 times these is not 0. Differentiable
/// any number of times: each derivative is one of these two again.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// q_i . k_j where `visible`, a bool tensor that broadcasts to [B, H, L, S], says so, else 0.
/// q [B, H, L, D], k [B, Hkv, S, D] -> [B, H, L, S].
ATTZOO_API torch::Tensor pair_products(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& visible);

/// The sum of w_ij v_j over the visible j. w [B, H, L, S] is 0 elsewhere, but where all of a row is
/// not a number; v [B, Hkv, S, E] -> [B, H, L, E].
ATTZOO_API torch::Tensor sum_over_pairs(const torch::Tensor& w, const torch::Tensor& v,
                                        const torch::Tensor& visible);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>

namespace attzoo::core {

/// a [B, H, M, K] times b [B, Hkv, K, N], where heads of a share heads of b in groups of H / Hkv:
/// the group is folded into the rows, so that b is never repeated in memory.
ATTZOO_API torch::Tensor grouped_matmul(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.size(1) == b.size(1)) return torch::matmul(a, b);
  const int64_t group = a.size(1) / b.size(1);
  const auto rows = a.reshape({a.size(0), b.size(1), group * a.size(2), a.size(3)});
  return torch::matmul(rows, b).view({a.size(0), a.size(1), a.size(2), b.size(3)});
}

/// The sums over heads [B, H, ...] that share one of `heads`.
ATTZOO_API torch::Tensor sum_of_groups(const torch::Tensor& t, int64_t heads) {
  return t.size(1) == heads ? t : t.unflatten(1, {heads, t.size(1) / heads}).sum(2);
}

ATTZOO_API bool is_finite(const torch::Tensor& t) { return torch::isfinite(t).all().item<bool>(); }

/// The finite numbers by one product, then each row of v with others by itself.
ATTZOO_API torch::Tensor careful_sum(const torch::Tensor& w, const torch::Tensor& v,
                                     const torch::Tensor& hidden) {
  const auto finite = torch::isfinite(v);
  auto sum = grouped_matmul(w.masked_fill(hidden, 0.0), v.masked_fill(finite.logical_not(), 0.0));
  const auto others = finite.logical_not().any(3).any(1).any(0).nonzero().squeeze(1);  // keys
  const auto rest = v.masked_fill(finite, 0.0).repeat_interleave(w.size(1) / v.size(1), 1);
  const auto unseen = hidden.expand_as(w);
  for (int64_t i = 0; i < others.size(0); ++i) {
    const auto j = others[i].item<int64_t>();
    const auto ends = torch::logical_or(unseen.narrow(3, j, 1), rest.narrow(2, j, 1) == 0);
    sum += (w.narrow(3, j, 1) * rest.narrow(2, j, 1)).masked_fill(ends, 0.0);
  }
  return sum;
}

class PairProducts final : public Differentiable {
 public:
  explicit PairProducts(const torch::Tensor& visible) : hidden_(visible.logical_not()) {}

  Tensors forward(const Tensors& x) override {
    return {grouped_matmul(x[0], x[1].transpose(-2, -1)).masked_fill_(hidden_, 0.0)};
  }
  Tensors backward(const Tensors& x, const Tensors& grads) override {
    const auto &q = x[0], &k = x[1];
    if (!grads[0].defined()) return Tensors(2);
    const auto grad = grads[0].masked_fill(hidden_, 0.0);
    auto visible = hidden_.logical_not();
    if (!is_finite(q) || !is_finite(k)) {
      // A score of -inf hides a pair, too, whatever made it so: then it has no gradient.
      visible = torch::logical_and(visible, grad != 0);
    }
    const auto of_keys = sum_over_pairs(grad.transpose(-2, -1), q, visible.transpose(-2, -1));
    return {sum_over_pairs(grad, k, visible), sum_of_groups(of_keys, k.size(1))};
  }

 private:
  torch::Tensor hidden_;  // a tensor of its own: a mask may be changed in place
};

class SumOverPairs final : public Differentiable {
 public:
  explicit SumOverPairs(const torch::Tensor& visible) : hidden_(visible.logical_not()) {}

  Tensors forward(const Tensors& x) override {
    auto sum = grouped_matmul(x[0], x[1]);
    if (is_finite(sum)) return {sum};
    return {careful_sum(x[0], x[1], hidden_)};
  }
  Tensors backward(const Tensors& x, const Tensors& grads) override {
    const auto &w = x[0], &v = x[1], &grad = grads[0];
    if (!grad.defined()) return Tensors(2);
    const auto visible = hidden_.logical_not();
    const auto of_keys = sum_over_pairs(w.transpose(-2, -1), grad, visible.transpose(-2, -1));
    return {pair_products(grad, v, visible), sum_of_groups(of_keys, v.size(1))};
  }

 private:
  torch::Tensor hidden_;
};

ATTZOO_API torch::Tensor pair_products(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& visible) {
  return differentiable(c10::make_intrusive<PairProducts>(visible), {q, k})[0];
}

ATTZOO_API torch::Tensor sum_over_pairs(const torch::Tensor& w, const torch::Tensor& v,
                                        const torch::Tensor& visible) {
  return differentiable(c10::make_intrusive<SumOverPairs>(visible), {w, v})[0];
}

}  // namespace attzoo::core

#endif
