#pragma once
/// \file
/// Attention to chosen blocks of keys with queries in the order of the blocks that they chose, so
/// that a block is read once for many queries (Lu et al., "MoBA", 2025, arXiv:2502.13189).

#include <attzoo/core/attention/backend.hpp>

#include <functional>
#include <vector>

namespace attzoo::core {

/// On the CPU, for choices [1 or B, C, L, n] of blocks of `block_size` keys, -1 for none, C being
/// 1, Hkv or H, without a score and dropout. Calls are not recorded by autograd.
class SortedBlocks {
 public:
  SortedBlocks() = default;
  SortedBlocks(const Qkv& t, torch::Tensor chosen, int64_t block_size, const AnyMask& mask,
               double scale);

  /// Whether many queries choose each block, which are large enough, and the mask is a window.
  bool pay() const { return step_ > 0; }
  OutputAndLse forward(const Qkv& t) const;
  /// Those of q, k and v from those of what forward() returned.
  std::vector<torch::Tensor> gradients(const Qkv& t, const OutputAndLse& result,
                                       const Cotangents& from) const;

 private:
  /// Rows of the queries of the heads that share keys and a choice.
  struct Unit {
    int64_t head, heads, kv_head, begin, end;
    torch::Tensor rows(const torch::Tensor& t) const {
      return t.defined() ? t.slice(1, head, head + heads).slice(2, begin, end) : t;
    }
    torch::Tensor keys(const torch::Tensor& t) const { return t.slice(1, kv_head, kv_head + 1); }
  };
  class Sorted;
  void for_each_unit(const Qkv& t, const std::function<void(const Unit&, const Sorted&)>& f) const;

  torch::Tensor chosen_;
  int64_t block_size_ = 1, step_ = 0;  // rows at a time; 0: other ways are faster
  WindowSize window_;
  double scale_ = 1;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/cpu/fused.hpp>
#include <attzoo/core/cpu/runtime.hpp>

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace attzoo::core {

/// The choices of some queries in the order of their blocks, those of a block by queries.
class SortedBlocks::Sorted {
 public:
  /// q [B, G, R, D], k and v [B, 1, S, ..], in the compute dtype; block int64 [B, R, n]; place: of
  /// the first query among the keys.
  Sorted(Qkv t, const torch::Tensor& block, const SortedBlocks& how, int64_t place)
      : t_(std::move(t)), n_(block.size(2)), scale_(how.scale_) {
    sort(block.contiguous(), how, place);
  }

  /// Of each query: output [rows, Dv], and lse [1, rows] and softmax [2, rows] likewise.
  OutputAndLse forward() const {
    auto call = this->call();
    call.learns = true;  // for the softmax
    const auto each = FusedCpuBackend().run({of_choices(t_.q), t_.k, t_.v}, call);
    const int64_t Dv = each.output.size(3);
    const OutputAndLse all{torch::empty({rows(), Dv}, each.output.options()),
                           torch::empty({1, rows()}, each.lse.options()),
                           torch::empty({2, rows()}, each.lse.options())};
    with_compute_type(each.output, [&]<class T>(T) {
      const auto *part = each.output.const_data_ptr<T>(), *max = each.softmax.const_data_ptr<T>(),
                 *log_sum = max + each.lse.numel();
      auto *out = all.output.mutable_data_ptr<T>(), *lse = all.lse.mutable_data_ptr<T>(),
           *joint = all.softmax.mutable_data_ptr<T>();
      for_each_row<T>([&](int64_t row, const int64_t* at, T* share) {
        const auto [most, log] = join(max, log_sum, at, share);
        lse[row] = most + log;
        joint[row] = most;
        joint[rows() + row] = log;
        std::fill_n(out + row * Dv, Dv, T(0));
        for (int64_t i = 0; i < n_; ++i) add(part + at[i] * Dv, share[i], Dv, out + row * Dv);
      });
    });
    return all;
  }
  /// From those of what forward() returned, and from that, both by heads. The weights of a choice
  /// are those of the joint softmax, which is all that its gradients need to know of the others.
  Gradients backward(const OutputAndLse& result, const Cotangents& from) const {
    const OutputAndLse each{
        of_choices(result.output), of_choices(result.lse),
        torch::stack({of_choices(result.softmax[0]), of_choices(result.softmax[1])})};
    auto grads = FusedCpuBackend().run_backward({of_choices(t_.q), t_.k, t_.v}, call(), each,
                                                {of_choices(from.output), of_choices(from.lse)});
    grads.q = of_heads(sum(grads.q));
    return grads;
  }

  /// The reverse of rows_of().
  torch::Tensor of_heads(const torch::Tensor& t) const {
    return t.view({B(), t_.q.size(2), t_.q.size(1), t.size(1)}).transpose(1, 2);
  }

 private:
  int64_t B() const { return t_.q.size(0); }
  int64_t rows() const { return B() * t_.q.size(1) * t_.q.size(2); }
  Call call() const { return Call(Rule{.mask = keys_, .scale = scale_}); }

  /// t [B, G, R, features] -> [rows, features].
  static torch::Tensor rows_of(const torch::Tensor& t) {
    return t.transpose(1, 2).reshape({-1, t.size(3)}).contiguous();
  }
  /// Those of the query of each choice: [B, G, R, features] -> [B, 1, N, features], and the same
  /// without features.
  torch::Tensor of_choices(const torch::Tensor& t) const {
    if (!t.defined()) return t;
    if (t.dim() == 3) return of_choices(t.unsqueeze(3)).squeeze(3);
    return rows_of(t.to(t_.q.scalar_type())).index_select(0, query_).view({B(), 1, -1, t.size(3)});
  }
  /// The sums of t [B, 1, N, D] over the choices of each query: [rows, D].
  torch::Tensor sum(const torch::Tensor& t_in) const {
    const auto t = t_in.contiguous();
    const int64_t D = t.size(3);
    const auto sums = torch::zeros({rows(), D}, t.options());
    with_compute_type(t, [&]<class T>(T) {
      const T* from = t.const_data_ptr<T>();
      T* to = sums.mutable_data_ptr<T>();
      for_each_row<T>([&](int64_t row, const int64_t* at, T*) {
        for (int64_t i = 0; i < n_; ++i) add(from + at[i] * D, T(1), D, to + row * D);
      });
    });
    return sums;
  }

  /// Calls f(row, where its choices stand, memory for n numbers) for all queries.
  template <class T, class F>
  void for_each_row(const F& f) const {
    const int64_t* rank = rank_.const_data_ptr<int64_t>();
    at::parallel_for(0, rows(), 256, [&](int64_t begin, int64_t end) {
      std::vector<T> memory(static_cast<size_t>(n_));
      for (int64_t row = begin; row < end; ++row) f(row, rank + row * n_, memory.data());
    });
  }
  /// The shares of a query's choices in its softmax; returns its maximum and log of the sum.
  template <class T>
  std::pair<T, T> join(const T* max, const T* log_sum, const int64_t* at, T* share) const {
    constexpr T kNone = std::numeric_limits<T>::lowest();  // -ffast-math knows no infinities
    const auto is_empty = [&](int64_t i) { return log_sum[at[i]] < kNone; };
    T most = kNone, sum = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (!is_empty(i) && !(max[at[i]] <= most)) most = max[at[i]];  // what is no number shows, too
    }
    for (int64_t i = 0; i < n_; ++i) {
      sum += share[i] = is_empty(i) ? T(0) : std::exp(max[at[i]] - most + log_sum[at[i]]);
    }
    if (sum == 0) return {T(0), -std::numeric_limits<T>::infinity()};
    for (int64_t i = 0; i < n_; ++i) share[i] /= sum;
    return {most, std::log(sum)};
  }
  template <class T>
  static void add(const T* x, T factor, int64_t n, T* to) {
    for (int64_t i = 0; i < n; ++i) to[i] += factor * x[i];
  }

  void sort(const torch::Tensor& block, const SortedBlocks& how, int64_t first_place) {
    const int64_t G = t_.q.size(1), R = t_.q.size(2), S = t_.k.size(2), N = G * R * n_,
                  size = how.block_size_;
    const int64_t none = (S - 1) / size + 1;  // stands behind all blocks
    const auto integers = [&](torch::Tensor& t) {
      t = torch::empty({B() * N}, torch::kInt64);
      return t.mutable_data_ptr<int64_t>();
    };
    auto *query = integers(query_), *rank = integers(rank_);
    const auto ends = [&](torch::Tensor& t) {
      t = torch::empty({B(), 1, N}, torch::kInt32);
      return t.mutable_data_ptr<int32_t>();
    };
    auto *begin = ends(keys_.begin), *end = ends(keys_.end);
    for (int64_t b = 0; b < B(); ++b) {
      const int64_t* chosen = block.const_data_ptr<int64_t>() + b * R * n_;
      const auto of = [&](int64_t i) { return chosen[i] < 0 ? none : chosen[i]; };
      std::vector<int64_t> next(static_cast<size_t>(none + 2), b * N);  // where each block goes on
      for (int64_t i = 0; i < R * n_; ++i) next[static_cast<size_t>(of(i) + 1)] += G;
      for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1] - b * N;
      for (int64_t row = 0; row < R * G; ++row) {
        const int64_t place = first_place + row / G;
        for (int64_t i = 0; i < n_; ++i) {
          const int64_t number = of(row / G * n_ + i), first = number * size,
                        at = next[static_cast<size_t>(number)]++;
          query[at] = b * R * G + row;
          rank[b * N + row * n_ + i] = at;
          const auto least = std::min(S, std::max(first, place - how.window_.left)),
                     most = std::min({S, first + size, place + how.window_.right + 1});
          begin[at] = static_cast<int32_t>(least);
          end[at] = static_cast<int32_t>(std::max(least, most));
        }
      }
    }
  }

  Qkv t_;
  int64_t n_;
  double scale_;
  torch::Tensor query_;  // int64 [B N]: whose each is, in order
  torch::Tensor rank_;   // int64 [B N]: where each choice of each query stands
  BandMask keys_;
};

ATTZOO_API SortedBlocks::SortedBlocks(const Qkv& t, torch::Tensor chosen, int64_t block_size,
                                      const AnyMask& mask, double scale)
    : chosen_(std::move(chosen)), block_size_(block_size), scale_(scale) {
  constexpr int64_t kLeast = 16, kQueries = 64;  // of a block; of a tile of the fused kernel
  const auto n = t.shape();
  if (block_size < kLeast || !FusedCpuBackend().takes(t, Call(Rule{}))) return;
  const int64_t blocks = (n.S - 1) / block_size + 1, units = std::max(chosen_.size(1), t.k.size(1)),
                row = n.B * (n.H / units) * chosen_.size(3);
  if (row * n.L < kQueries * blocks * n.B) return;
  window_ = mask.window_size(n);
  if (!window_.known) return;
  const int64_t least = 2 * kQueries * blocks * n.B;  // rows, so that most tiles are of one block
  if (least >= int64_t{1} << 30) return;              // as long as the kernel's indices allow
  const int64_t rows = std::max((int64_t{1} << 21) / (t.k.size(3) + t.v.size(3)), least);
  const int64_t steps = (n.L * row - 1) / rows + 1;
  step_ = (n.L - 1) / steps + 1;
}

ATTZOO_API void SortedBlocks::for_each_unit(
    const Qkv& t, const std::function<void(const Unit&, const Sorted&)>& f) const {
  const auto n = t.shape();
  const auto dtype = compute_dtype(t.q);
  const int64_t C = chosen_.size(1), kv_heads = t.k.size(1), units = std::max(C, kv_heads);
  for (int64_t u = 0; u < units; ++u) {
    const int64_t heads = n.H / units;
    for (int64_t at = 0; at < n.L; at += step_) {
      const Unit unit{u * heads, heads, u / (units / kv_heads), at, std::min(n.L, at + step_)};
      const auto block = chosen_.select(1, C == 1 ? 0 : u).slice(1, unit.begin, unit.end);
      const auto keys = [&](const torch::Tensor& x) {
        return dequantized(unit.keys(x), dtype).to(dtype);
      };
      f(unit, Sorted({unit.rows(t.q).to(dtype), keys(t.k), keys(t.v)},
                     block.to(torch::kInt64).expand({n.B, block.size(1), block.size(2)}), *this,
                     at + n.S - n.L));
    }
  }
}

ATTZOO_API OutputAndLse SortedBlocks::forward(const Qkv& t) const {
  const auto n = t.shape();
  const auto numbers = t.q.options().dtype(compute_dtype(t.q));
  const OutputAndLse result{torch::empty({n.B, n.H, n.L, t.Dv()}, t.q.options()),
                            torch::empty({n.B, n.H, n.L}, numbers),
                            torch::empty({2, n.B, n.H, n.L}, numbers)};
  for_each_unit(t, [&](const Unit& unit, const Sorted& sorted) {
    const auto all = sorted.forward();
    unit.rows(result.output).copy_(sorted.of_heads(all.output));
    unit.rows(result.lse.unsqueeze(3)).copy_(sorted.of_heads(all.lse.t()));
    for (const int64_t i : {0, 1}) {
      unit.rows(result.softmax[i].unsqueeze(3)).copy_(sorted.of_heads(all.softmax[i].unsqueeze(1)));
    }
  });
  return result;
}

ATTZOO_API std::vector<torch::Tensor> SortedBlocks::gradients(const Qkv& t,
                                                              const OutputAndLse& result,
                                                              const Cotangents& from) const {
  const auto dtype = compute_dtype(t.q);
  const auto zeros = [&](const torch::Tensor& x) {
    return torch::zeros(x.sizes(), x.options().dtype(dtype));
  };
  const auto grad_q = torch::empty(t.q.sizes(), t.q.options()), grad_k = zeros(t.k),
             grad_v = zeros(t.v);
  for_each_unit(t, [&](const Unit& unit, const Sorted& sorted) {
    const auto softmax = torch::stack({unit.rows(result.softmax[0]), unit.rows(result.softmax[1])});
    const auto got = sorted.backward({unit.rows(result.output), unit.rows(result.lse), softmax},
                                     {unit.rows(from.output), unit.rows(from.lse)});
    unit.rows(grad_q).copy_(got.q);
    unit.keys(grad_k).add_(got.k);
    unit.keys(grad_v).add_(got.v);
  });
  return {grad_q, grad_k.to(t.k.scalar_type()), grad_v.to(t.v.scalar_type())};
}

}  // namespace attzoo::core

#endif
