#pragma once

#include <attzoo/module/overlapping_blocks.hpp>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API OverlappingBlocks::OverlappingBlocks(int64_t length, int64_t block_size)
    : n(length), size(block_size), step(std::max<int64_t>(1, block_size / 2)) {
  families = (size + step - 1) / step;
  count = n <= size ? 1 : 1 + (n - size + step - 1) / step;  // the last block ends at or after n
}

ATTZOO_API BlocksMask OverlappingBlocks::family(int64_t f) const {
  return {size, families * step, f * step, count * step};
}

ATTZOO_API torch::Tensor OverlappingBlocks::shares() const {
  auto shares = torch::zeros({families, n}, torch::kFloat64);
  auto at = shares.accessor<double, 2>();
  for (int64_t k = 0; k < count; ++k) {
    const int64_t begin = k * step, end = std::min(begin + size, n);
    for (int64_t i = begin; i < end; ++i) {
      at[k % families][i] = static_cast<double>(std::min(i - begin + 1, end - i));
    }
  }
  return shares / shares.sum(0);
}

ATTZOO_API torch::Tensor OverlappingBlocks::python_shares() const {
  auto shares = torch::zeros({families, n}, torch::kFloat64);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t begin = k * step, end = std::min(begin + size, n), length = end - begin;
    const auto place = torch::arange(length, torch::kFloat64);
    const auto taken = k == 0 ? torch::ones_like(place)
                              : place / static_cast<double>(std::max<int64_t>(1, length - 1));
    auto here = shares.slice(1, begin, end);
    here.mul_(1 - taken);
    here[k % families].copy_(taken);
  }
  return shares;
}

ATTZOO_API torch::Tensor OverlappingBlocks::block_of(int64_t f, int64_t begin, int64_t end) const {
  const auto mask = family(f).evaluate(Grid({1, 1, n, n}, begin, end, torch::kCPU));
  const auto i = torch::arange(begin, end, torch::kInt64).view({1, 1, -1, 1});
  const auto k = torch::div(i - f * step, families * step, "floor") * families + f;
  return torch::where(mask, k, torch::full({}, -1, torch::kInt64));
}

ATTZOO_API LazyWeights
OverlappingBlocks::last_block_wins(const std::vector<LazyWeights>& weights) const {
  return weights[0].map([blocks = *this, weights](torch::Tensor rows, int64_t begin, int64_t end) {
    auto block = blocks.block_of(0, begin, end).to(rows.device());
    for (int64_t f = 1; f < blocks.families; ++f) {
      const auto other = blocks.block_of(f, begin, end).to(rows.device());
      rows = torch::where(other > block, weights[static_cast<size_t>(f)].rows(begin, end), rows);
      block = torch::maximum(block, other);
    }
    return rows;
  });
}

ATTZOO_API PackedBlocks::PackedBlocks(const Packing& packing, int64_t length, int64_t block_size)
    : whole(length, block_size) {
  std::vector<torch::Tensor> of_each;
  std::vector<int64_t> counts;
  for (const auto n : packing.lengths) {
    const OverlappingBlocks blocks(n, block_size);
    of_each.push_back(blocks.shares());
    counts.push_back(blocks.count);
  }
  shares = torch::cat(of_each, 1).view({whole.families, -1, 1, length});
  count = packing.spread(counts);
}

ATTZOO_API std::pair<Heads, torch::Tensor> PackedBlocks::family(Heads heads, int64_t f) const {
  auto& packing = heads.packing;
  const int64_t period = whole.families * whole.step;
  const auto offset = packing.position - f * whole.step;
  const auto j = torch::div(offset, period, "floor").clamp_min(-1);
  const auto within = offset - j * period;
  const auto inside = (j >= 0) & (within < whole.size) & (j * whole.families + f < count);
  // What lies between two blocks is a document that nobody attends to.
  packing.run = (packing.run * (packing.run.size(1) + 1) + j + 1) * 2 + inside;
  return {std::move(heads), inside};
}

ATTZOO_API Heads block_by_block(Heads heads, int64_t block_size) {
  auto& packing = heads.packing;
  const auto block = torch::div(packing.position, block_size, "floor");
  packing.run = packing.run * (packing.run.size(1) + 1) + block;
  return heads;
}

}  // namespace attzoo::core
