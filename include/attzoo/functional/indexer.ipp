#pragma once
// Definitions of indexer.hpp.

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/row_lists.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/indexer.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo {
namespace core {

ATTZOO_API void check_indexer(const char* who, const Indexer& x) {
  check_floating(x.q, who, "q");
  check_floating(x.k, who, "k");
  const auto &q = x.q, &k = x.k;
  TORCH_CHECK_VALUE(q.dim() == 4 && q.size(3) > 0, who, ": q must have shape [B, HI, L, DI], got ",
                    q.sizes());
  TORCH_CHECK_VALUE(k.dim() == 3 && k.size(0) == q.size(0) && k.size(2) == q.size(3), who,
                    ": k must have shape [B, S, DI] with B=", q.size(0), " DI=", q.size(3),
                    ", got ", k.sizes());
  TORCH_CHECK_VALUE(!x.scale || (*x.scale > 0 && is_valid_scale(*x.scale, q)), who,
                    ": scale must be > 0 and at most 1e30 (float64: 1e300), got ", *x.scale);
  const auto fits = [&](const torch::Tensor& t, const char* name) {
    TORCH_CHECK_TYPE(t.scalar_type() == q.scalar_type(), who, ": ", name, " must have q's dtype ",
                     q.scalar_type(), ", got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == q.device(), who, ": ", name, " must be on q's device ",
                      q.device(), ", got ", t.device());
  };
  fits(k, "k");
  if (!x.w.defined()) return;
  check_floating(x.w, who, "w");
  TORCH_CHECK_VALUE(x.w.sizes() == q.sizes().slice(0, 3), who,
                    ": w must have shape [B, HI, L] with B=", q.size(0), " HI=", q.size(1),
                    " L=", q.size(2), ", got ", x.w.sizes());
  fits(x.w, "w");
}

/// Of rows q [B, HI, R, DI] and w [B, HI, R], with keys [B, S, DI], or [B, R, M, DI] of each row.
ATTZOO_API torch::Tensor scores_of(const torch::Tensor& q, const torch::Tensor& k,
                                   const torch::Tensor& w, std::optional<double> scale) {
  const auto dtype = compute_dtype(q);
  const double s = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  const auto keys = k.to(dtype).transpose(-2, -1);
  const auto queries = q.to(dtype) * s;
  const auto products =
      k.dim() == 3 ? torch::matmul(queries.flatten(1, 2), keys).unflatten(1, {q.size(1), -1})
                   : torch::matmul(queries.transpose(1, 2), keys).transpose(1, 2);
  const auto active = torch::relu(products);  // [B, HI, R, S or M]
  return w.defined() ? (active * w.to(dtype).unsqueeze(-1)).sum(1) : active.sum(1);
}

/// How many rows are scored at once.
ATTZOO_API int64_t scored_rows(const torch::Tensor& q, int64_t keys) {
  const int64_t row = std::max<int64_t>(1, q.size(0) * q.size(1) * std::max<int64_t>(keys, 1));
  return std::clamp<int64_t>((int64_t{1} << 21) / row, 1, std::max<int64_t>(1, q.size(2)));
}

/// Where some head may attend, bool [1 or B, rows, S].
ATTZOO_API torch::Tensor allowed_rows(const AnyMask& mask, const Indexer& x, int64_t heads,
                                      int64_t begin, int64_t end) {
  const Shape n{x.q.size(0), heads, x.q.size(2), x.k.size(1)};
  return mask.evaluate(Grid(n, begin, end, x.q.device())).any(1);
}

/// The loss of some rows at a time.
class IndexerLoss final : public Differentiable {
 public:
  IndexerLoss(Indexer indexer, LazyWeights weights, AnyMask mask, torch::Tensor chosen)
      : x_(std::move(indexer)),
        weights_(std::move(weights)),
        mask_(std::move(mask)),
        chosen_(std::move(chosen)) {}

  /// Of q, k and, unless all are 1, w.
  Tensors forward(const Tensors& x) override {
    std::vector<torch::Tensor> losses;
    for_each_chunk([&](int64_t begin, int64_t end) {
      const auto at = keys(begin, end);
      losses.push_back(divergence(rows_of(x, begin, end, at), at));
    });
    return {torch::cat(losses, 1)};
  }

  Tensors backward(const Tensors& x, const Tensors& grads) override {
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::GradMode::is_enabled(),
                                "indexer_loss: it has no second derivatives");
    if (!grads[0].defined()) return Tensors(x.size());
    const torch::AutoGradMode enable(true);
    Tensors sums;
    for (const auto& t : x) sums.push_back(torch::zeros_like(t, compute_dtype(t)));
    sums[1] = sums[1].contiguous();
    for_each_chunk([&](int64_t begin, int64_t end) {
      const auto at = keys(begin, end);
      auto leaves = rows_of(x, begin, end, at);
      for (auto& t : leaves) t = t.detach().requires_grad_();
      const auto got =
          torch::autograd::grad({divergence(leaves, at)}, leaves, {grads[0].slice(1, begin, end)});
      const torch::NoGradGuard no_grad;
      sums[0].slice(2, begin, end).copy_(got[0]);
      if (at.index.defined()) {
        auto to = sums[1].unsqueeze(1);
        add_rows(to, at.index, got[1].unsqueeze(1));
      } else {
        sums[1].add_(got[1]);
      }
      if (x.size() > 2) sums[2].slice(2, begin, end).copy_(got[2]);
    });
    for (size_t i = 0; i < x.size(); ++i) sums[i] = sums[i].to(x[i].scalar_type());
    return sums;
  }

 private:
  /// The keys of some rows: their numbers [B, 1, R, M] where they were chosen, which of them count
  /// [1 or B, R, M or S], and what attention gives them, [B, R, M or S].
  struct Keys {
    torch::Tensor index, counted, share;
  };

  template <class F>
  void for_each_chunk(const F& f) const {
    const int64_t L = x_.q.size(2), step = scored_rows(x_.q, x_.k.size(1));
    for (int64_t at = 0; at == 0 || at < L; at += step) f(at, std::min(L, at + step));
  }

  Keys keys(int64_t begin, int64_t end) const {
    const torch::NoGradGuard no_grad;
    Keys at;
    auto share = weights_.rows(begin, end).to(compute_dtype(x_.q)).sum(1);  // [B, R, S]
    if (chosen_.defined()) {
      const auto index = chosen_.slice(2, begin, end).to(torch::kInt64);
      at.index = index.clamp_min(0).expand({share.size(0), 1, -1, -1});
      at.counted = index.squeeze(1) >= 0;
      share = share.gather(2, at.index.squeeze(1)) * at.counted;
    } else {
      at.counted = allowed_rows(mask_, x_, weights_.size(1), begin, end);
    }
    const auto sum = share.sum(-1, /*keepdim=*/true);
    at.share = share / sum.masked_fill(sum == 0, 1.0);
    return at;
  }

  /// The rows of q, k and w that a chunk is made of.
  static Tensors rows_of(const Tensors& x, int64_t begin, int64_t end, const Keys& at) {
    Tensors part{x[0].slice(2, begin, end),
                 at.index.defined() ? take_rows(x[1].unsqueeze(1), at.index).squeeze(1) : x[1]};
    if (x.size() > 2) part.push_back(x[2].slice(2, begin, end));
    return part;
  }

  torch::Tensor divergence(const Tensors& part, const Keys& at) const {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    const auto w = part.size() > 2 ? part[2] : torch::Tensor();
    const auto scores = scores_of(part[0], part[1], w, x_.scale);
    const auto logs = torch::log_softmax(scores.masked_fill(at.counted.logical_not(), -kInf), -1);
    const auto cross = torch::where(at.share > 0, at.share * logs, torch::zeros_like(logs));
    return (torch::xlogy(at.share, at.share) - cross).sum(-1);
  }

  Indexer x_;
  LazyWeights weights_;
  AnyMask mask_;
  torch::Tensor chosen_;
};

}  // namespace core

ATTZOO_API torch::Tensor indexer_scores(const Indexer& indexer, int64_t begin, int64_t end) {
  core::check_indexer("indexer_scores", indexer);
  TORCH_CHECK_VALUE(0 <= begin && begin <= end && end <= indexer.q.size(2),
                    "indexer_scores: expected 0 <= begin <= end <= ", indexer.q.size(2),
                    ", got begin=", begin, " end=", end);
  const auto& w = indexer.w;
  return core::scores_of(indexer.q.slice(2, begin, end), indexer.k,
                         w.defined() ? w.slice(2, begin, end) : w, indexer.scale);
}

ATTZOO_API torch::Tensor choose_keys(const Indexer& indexer, int64_t top_k,
                                     const core::AnyMask& mask, int64_t heads) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  core::check_indexer("choose_keys", indexer);
  TORCH_CHECK_VALUE(top_k > 0, "choose_keys: top_k must be > 0, got ", top_k);
  const torch::NoGradGuard no_grad;
  const int64_t L = indexer.q.size(2), S = indexer.k.size(1);
  const int64_t step = core::scored_rows(indexer.q, S);
  mask.check({indexer.q.size(0), heads, L, S}, indexer.q.device());
  std::vector<torch::Tensor> chosen;
  for (int64_t at = 0; at == 0 || at < L; at += step) {
    const int64_t end = std::min(L, at + step);
    auto scores = indexer_scores(indexer, at, end);
    if (!mask.is_full()) {
      const auto allowed = core::allowed_rows(mask, indexer, heads, at, end);
      scores = scores.masked_fill(allowed.logical_not(), -kInf);
    }
    chosen.push_back(core::greatest(scores, std::min(top_k, S)));
  }
  return torch::cat(chosen, 1).unsqueeze(1);
}

ATTZOO_API torch::Tensor indexer_loss(const Indexer& indexer, const LazyWeights& weights,
                                      const core::AnyMask& mask, const torch::Tensor& chosen) {
  constexpr const char* kWho = "indexer_loss";
  core::check_indexer(kWho, indexer);
  const int64_t B = indexer.q.size(0), L = indexer.q.size(2), S = indexer.k.size(1);
  TORCH_CHECK_VALUE(
      weights.dim() == 4 && weights.size(0) == B && weights.size(2) == L && weights.size(3) == S,
      kWho, ": weights must have shape [B, H, L, S] with B=", B, " L=", L, " S=", S, ", got ",
      weights.sizes());
  mask.check({B, weights.size(1), L, S}, indexer.q.device());
  if (chosen.defined()) {
    TORCH_CHECK_TYPE(torch::isIntegralType(chosen.scalar_type(), false), kWho,
                     ": chosen must be integers, got ", chosen.scalar_type());
    TORCH_CHECK_VALUE(chosen.dim() == 4 && (chosen.size(0) == 1 || chosen.size(0) == B) &&
                          chosen.size(1) == 1 && chosen.size(2) == L,
                      kWho, ": chosen must have shape [1 or B, 1, L, M] with B=", B, " L=", L,
                      ", got ", chosen.sizes());
  }
  core::Tensors inputs{indexer.q, indexer.k};
  if (indexer.w.defined()) inputs.push_back(indexer.w);
  Indexer sizes = indexer;  // for their sizes: what is computed with are the inputs
  for (auto* t : {&sizes.q, &sizes.k, &sizes.w}) {
    if (t->defined()) *t = t->detach();
  }
  return core::differentiable(
      c10::make_intrusive<core::IndexerLoss>(std::move(sizes), weights, mask, chosen), inputs)[0];
}

}  // namespace attzoo
