#pragma once
// Definitions of token_places.hpp.

#include <attzoo/core/modifier/token_places.hpp>

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
