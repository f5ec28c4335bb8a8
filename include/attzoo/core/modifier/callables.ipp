#pragma once
// Definitions of callables.hpp.

#include <attzoo/core/modifier/callables.hpp>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API void for_each_grid(const Shape& n, const torch::Device& device,
                              const std::function<void(const Grid&)>& f) {
  torch::NoGradGuard no_grad;
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 22) / n.S);
  for (int64_t begin = 0; begin < n.L; begin += rows) {
    f(Grid(n, begin, std::min(n.L, begin + rows), device));
  }
}

}  // namespace attzoo::core
