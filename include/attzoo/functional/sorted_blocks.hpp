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
  /// Those of q, k and v from those of what forward() returns.
  std::vector<torch::Tensor> gradients(const Qkv& t, const Cotangents& from) const;

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

#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/functional/attention.hpp>

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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

  /// The queries of all choices: [B, 1, N, D], N = G R n.
  torch::Tensor queries() const {
    return rows_of(t_.q).index_select(0, query_).view({B(), 1, -1, t_.q.size(3)});
  }
  const Qkv& tensors() const { return t_; }
  /// Of each choice by itself.
  AttentionResult attend(const torch::Tensor& queries, const torch::Tensor& k,
                         const torch::Tensor& v) const {
    return attention(queries, k, v, keys_, {}, {.scale = scale_}, /*private_qk=*/true);
  }

  /// Of each query: output [rows, Dv], lse [rows].
  OutputAndLse join(const AttentionResult& each) const {
    const auto from = each.output.contiguous(), lses = each.lse.contiguous();
    const int64_t Dv = from.size(3);
    const OutputAndLse all{torch::empty({rows(), Dv}, from.options()),
                           torch::empty({rows()}, lses.options())};
    with_compute_type(from, [&]<class T>(T) {
      const T *part = from.const_data_ptr<T>(), *lse = lses.const_data_ptr<T>();
      T *out = all.output.mutable_data_ptr<T>(), *total = all.lse.mutable_data_ptr<T>();
      for_each_row<T>([&](int64_t row, const int64_t* at, T* share) {
        total[row] = shares(lse, at, share);
        std::fill_n(out + row * Dv, Dv, T(0));
        for (int64_t i = 0; i < n_; ++i) add(part + at[i] * Dv, share[i], Dv, out + row * Dv);
      });
    });
    return all;
  }
  /// The gradients of what attend() returned, output [B, 1, N, Dv] and lse [B, 1, N], from those of
  /// what join() made of it, which may be undefined.
  Cotangents split(const AttentionResult& each, const Cotangents& joint) const {
    const auto from = each.output.contiguous(), lses = each.lse.contiguous();
    const int64_t Dv = from.size(3);
    const Cotangents parts{torch::zeros_like(from), torch::zeros_like(lses)};
    const auto of_output = joint.output.defined() ? rows_of(joint.output) : joint.output,
               of_lse = joint.lse.defined() ? rows_of(joint.lse.unsqueeze(3)) : joint.lse;
    with_compute_type(from, [&]<class T>(T) {
      const auto data = [](const torch::Tensor& t) {
        return t.defined() ? t.const_data_ptr<T>() : nullptr;
      };
      const T *part = data(from), *lse = data(lses), *g = data(of_output), *g_lse = data(of_lse);
      T *to = parts.output.mutable_data_ptr<T>(), *to_lse = parts.lse.mutable_data_ptr<T>();
      for_each_row<T>([&](int64_t row, const int64_t* at, T* share) {
        shares(lse, at, share);
        T mean = g_lse ? -g_lse[row] : 0;  // of the parts' products with g, less what lse brings
        for (int64_t i = 0; i < n_ && g; ++i) {
          const T *o = part + at[i] * Dv, *along = g + row * Dv;
          to_lse[at[i]] = std::inner_product(o, o + Dv, along, T(0));
          mean += share[i] * to_lse[at[i]];
          add(along, share[i], Dv, to + at[i] * Dv);
        }
        for (int64_t i = 0; i < n_; ++i) to_lse[at[i]] = share[i] * (to_lse[at[i]] - mean);
      });
    });
    return parts;
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

  /// t [B, G, R, features] -> [rows, features].
  static torch::Tensor rows_of(const torch::Tensor& t) {
    return t.transpose(1, 2).reshape({-1, t.size(3)}).contiguous();
  }
  /// The reverse.
  torch::Tensor of_heads(const torch::Tensor& t) const {
    return t.view({B(), t_.q.size(2), t_.q.size(1), t.size(1)}).transpose(1, 2);
  }

 private:
  int64_t B() const { return t_.q.size(0); }
  int64_t rows() const { return B() * t_.q.size(1) * t_.q.size(2); }

  /// Calls f(row, where its choices stand, memory for n numbers) for all queries.
  template <class T, class F>
  void for_each_row(const F& f) const {
    const int64_t* rank = rank_.const_data_ptr<int64_t>();
    at::parallel_for(0, rows(), 256, [&](int64_t begin, int64_t end) {
      std::vector<T> memory(static_cast<size_t>(n_));
      for (int64_t row = begin; row < end; ++row) f(row, rank + row * n_, memory.data());
    });
  }
  /// The shares of a query's choices in its softmax; returns its lse.
  template <class T>
  T shares(const T* lse, const int64_t* at, T* share) const {
    constexpr T kNone = std::numeric_limits<T>::lowest();  // -ffast-math knows no infinities
    T max = kNone, sum = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (!(lse[at[i]] <= max)) max = lse[at[i]];  // what is no number shows, too
    }
    std::fill_n(share, n_, T(0));
    if (max == kNone) return -std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < n_; ++i) sum += share[i] = std::exp(lse[at[i]] - max);
    for (int64_t i = 0; i < n_; ++i) share[i] /= sum;
    return max + std::log(sum);
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
  if (!t.q.is_cpu() || block_size < kLeast || n.B * n.L * n.S == 0) return;
  const int64_t blocks = (n.S - 1) / block_size + 1, units = std::max(chosen_.size(1), t.k.size(1)),
                row = n.B * (n.H / units) * chosen_.size(3);
  if (row * n.L < kQueries * blocks * n.B) return;
  window_ = mask.window_size(n);
  if (!window_.known) return;
  const int64_t rows = std::max((int64_t{1} << 22) / (t.k.size(3) + t.v.size(3) + 1),
                                2 * kQueries * blocks * n.B);  // most tiles are of one block
  step_ = std::clamp<int64_t>(rows / row, 1, n.L);
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
  const OutputAndLse result{torch::empty({n.B, n.H, n.L, t.Dv()}, t.q.options()),
                            torch::empty({n.B, n.H, n.L}, t.q.options().dtype(compute_dtype(t.q)))};
  for_each_unit(t, [&](const Unit& unit, const Sorted& sorted) {
    const auto& [q, k, v] = sorted.tensors();
    const auto all = sorted.join(sorted.attend(sorted.queries(), k, v));
    unit.rows(result.output).copy_(sorted.of_heads(all.output));
    unit.rows(result.lse.unsqueeze(3)).copy_(sorted.of_heads(all.lse.unsqueeze(1)));
  });
  return result;
}

ATTZOO_API std::vector<torch::Tensor> SortedBlocks::gradients(const Qkv& t,
                                                              const Cotangents& from) const {
  const auto dtype = compute_dtype(t.q);
  const auto zeros = [&](const torch::Tensor& x) {
    return torch::zeros(x.sizes(), x.options().dtype(dtype));
  };
  const auto grad_q = torch::empty(t.q.sizes(), t.q.options()), grad_k = zeros(t.k),
             grad_v = zeros(t.v);
  for_each_unit(t, [&](const Unit& unit, const Sorted& sorted) {
    const auto leaf = [](const torch::Tensor& x) { return x.detach().requires_grad_(); };
    const auto& [q, k, v] = sorted.tensors();
    const std::vector<torch::Tensor> leaves{leaf(sorted.queries()), leaf(k), leaf(v)};
    AttentionResult each;
    {
      const torch::AutoGradMode enable(true);
      each = sorted.attend(leaves[0], leaves[1], leaves[2]);
    }
    const auto of = [&](const torch::Tensor& g) {
      return g.defined() ? unit.rows(g).to(dtype) : g;
    };
    const auto parts = sorted.split({each.output.detach(), {}, each.lse.detach()},
                                    {of(from.output), of(from.lse)});
    const auto got =
        torch::autograd::grad({each.output, each.lse}, leaves, {parts.output, parts.lse});
    unit.rows(grad_q).copy_(sorted.of_heads(sorted.sum(got[0])));
    unit.keys(grad_k).add_(got[1]);
    unit.keys(grad_v).add_(got[2]);
  });
  return {grad_q, grad_k.to(t.k.scalar_type()), grad_v.to(t.v.scalar_type())};
}

}  // namespace attzoo::core

#endif
