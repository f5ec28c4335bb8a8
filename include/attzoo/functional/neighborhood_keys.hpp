#pragma once
/// \file
/// The keys of a neighborhood by their numbers, where neighborhood() is a mask.

#include <attzoo/functional/chosen_keys.hpp>

namespace attzoo {

/// What neighborhood() of the same arguments allows, for chosen_attention(): index [1, 1, L, M] of
/// the product L of the grid's sizes, on the CPU, M being the product of kernel sizes, none wider
/// than its dimension. On the CPU a list is faster than the mask where windows on a grid are small,
/// whose keys lie in many rows. Throws what neighborhood() throws.
ATTZOO_API ChosenKeys neighborhood_keys(const std::vector<int64_t>& grid,
                                        const std::vector<int64_t>& kernel_size,
                                        const std::vector<int64_t>& dilation = {1},
                                        const std::vector<bool>& causal = {false});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/functional/masks.hpp>

#include <algorithm>

namespace attzoo {
namespace core {

/// One dimension of neighborhood_keys(): int64 [size, places], -1 for none.
ATTZOO_API torch::Tensor axis_keys(int64_t size, int64_t kernel_size, int64_t dilation,
                                   bool causal) {
  const int64_t d = std::min(dilation, size), places = std::min(kernel_size, (size - 1) / d + 1);
  const auto i = torch::arange(size).unsqueeze(1);
  const auto residue = i.remainder(d);  // windows are of the same
  const auto at = i.floor_divide(d), count = (size - 1 - residue).floor_divide(d) + 1;
  const auto begin = causal
                         ? at - (places - 1)
                         : torch::minimum(at - kernel_size / 2, count - kernel_size).clamp_min(0);
  const auto place = begin + torch::arange(places);
  const auto exists = torch::logical_and(place >= 0, place < count);
  return torch::where(exists, residue + place * d, -1);
}

}  // namespace core

ATTZOO_API ChosenKeys neighborhood_keys(const std::vector<int64_t>& grid,
                                        const std::vector<int64_t>& kernel_size,
                                        const std::vector<int64_t>& dilation,
                                        const std::vector<bool>& causal) {
  neighborhood(grid, kernel_size, dilation, causal);  // checks them
  auto keys = torch::zeros({1, 1}, torch::kInt32);    // of the dimensions before, -1 for none
  for (size_t i = 0; i < grid.size(); ++i) {
    const auto of = [i](const auto& values) { return values[std::min(i, values.size() - 1)]; };
    const auto more = core::axis_keys(grid[i], of(kernel_size), of(dilation), of(causal))
                          .to(torch::kInt32)
                          .unsqueeze(1);  // [size, 1, places]
    const auto before = keys.unsqueeze(1).unsqueeze(3);
    keys = torch::where(torch::logical_or(before < 0, more < 0), -1, before * grid[i] + more)
               .flatten(2)
               .flatten(0, 1);
  }
  return {.index = keys.unsqueeze(0).unsqueeze(0)};
}

}  // namespace attzoo

#endif
