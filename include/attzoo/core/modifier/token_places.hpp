#pragma once
/// \file
/// The places of tokens in their sequences, for callables that count: mask_mod(f, in_document).

#include <attzoo/core/checks.hpp>
#include <attzoo/core/modifier/interval.hpp>
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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/token_places.ipp>
#endif
