#pragma once
/// \file
/// The places of tokens in their sequences, for callables that count: mask_mod(f, in_document).

#include <attzoo/core/checks.hpp>
#include <attzoo/core/modifier/interval.hpp>
#include <attzoo/core/modifier/symbol.hpp>
#include <attzoo/core/modifier/tensor_lane.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

namespace attzoo::core {

/// Maps a key's number, or an aligned query's, to its place, in every form that a callable runs in.
class TokenPlaces {
 public:
  /// None are given: a place is the number itself, where a callable runs on tensors.
  TokenPlaces() = default;
  /// `places`: int64 [1 or B, S], >= 0.
  explicit TokenPlaces(const torch::Tensor& places);
  /// For the kernel, where none are given.
  static TokenPlaces numbers(const Shape& n);

  bool defined() const { return tensor_.defined(); }
  /// Whether the kernel's indices hold them.
  bool fit() const { return high_ <= static_cast<double>(kernel::kMostIndex); }

  TensorLane operator()(const TensorLane& b, const TensorLane& i) const;
  Interval operator()(const Interval&, const Interval& i) const {
    return defined() ? Interval(low_, high_, true) : i;
  }
  Symbol operator()(const Symbol& b, const Symbol& i) const {
    return defined() ? SymbolPair::of(tensor_, {b, i}) : i;
  }
  template <kernel::Lane I>
  ATTZOO_ALWAYS_INLINE I operator()(I b, I i) const {
    const int* const of_sequence = numbers_ + b.v * row_;
    i.v = of_sequence[i.v];
    return i;
  }

 private:
  torch::Tensor tensor_, in_kernel_;  // int64 [1 or B, S]; int32 on the CPU, where they fit
  const int* numbers_ = nullptr;      // into in_kernel_
  int64_t row_ = 0;                   // the step to the next sequence's
  double low_ = 0, high_ = 0;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <algorithm>

namespace attzoo::core {

ATTZOO_API TokenPlaces::TokenPlaces(const torch::Tensor& places) : tensor_(places) {
  if (places.numel() == 0) return;
  low_ = static_cast<double>(places.min().item<int64_t>());
  high_ = static_cast<double>(places.max().item<int64_t>());
  if (!fit()) return;
  in_kernel_ = places.to(torch::dtype(torch::kInt32).device(torch::kCPU)).contiguous();
  numbers_ = in_kernel_.const_data_ptr<int>();
  row_ = places.size(0) == 1 ? 0 : places.size(1);
}

// Of more queries than keys, the first ones stand before all keys.
ATTZOO_API TokenPlaces TokenPlaces::numbers(const Shape& n) {
  const int64_t first = std::min<int64_t>(0, n.S - n.L);
  TokenPlaces all;
  all.in_kernel_ = torch::arange(first, n.S, torch::kInt32);
  all.numbers_ = all.in_kernel_.const_data_ptr<int>() - first;
  return all;
}

ATTZOO_API TensorLane TokenPlaces::operator()(const TensorLane& b, const TensorLane& i) const {
  if (!defined()) return i;
  const auto row = tensor_.size(0) == 1 ? torch::zeros_like(b.t) : b.t;
  return torch::index(tensor_, {row, i.t});
}

}  // namespace attzoo::core

#endif
