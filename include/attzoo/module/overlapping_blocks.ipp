#pragma once
// Definitions of overlapping_blocks.hpp.

#include <attzoo/module/overlapping_blocks.hpp>

#include <algorithm>

namespace attzoo::core {

/// Numbers for the parts of all documents; `part` numbers those of each from 0 up to the row's
/// length.
inline torch::Tensor parts_of_documents(const Packing& packing, const torch::Tensor& part) {
  return packing.run * (packing.run.size(1) + 1) + part;
}

ATTZOO_API DocumentsMask blocks_of_documents(const Packing& packing, int64_t block_size) {
  const auto block = torch::div(packing.position, block_size, "floor");
  return {{.ids = parts_of_documents(packing, block)}};
}

ATTZOO_API OverlappingBlocks::OverlappingBlocks(int64_t length, int64_t block_size,
                                                const Packing& packing)
    : n_(length),
      size_(block_size),
      step_(std::max<int64_t>(1, block_size / 2)),
      families_((size_ + step_ - 1) / step_),
      packing_(length > 0 ? packing : Packing{}) {}

/// The last block ends at the last token or after it.
ATTZOO_API int64_t OverlappingBlocks::count(int64_t length) const {
  return length <= size_ ? 1 : 1 + (length - size_ + step_ - 1) / step_;
}

ATTZOO_API AnyMask OverlappingBlocks::family(int64_t f) const {
  const int64_t period = families_ * step_;
  if (!packing_.defined()) return SameBlockMask{size_, period, f * step_, count(n_) * step_};
  std::vector<int64_t> counts;
  for (const auto length : packing_.lengths) counts.push_back(count(length));
  const auto offset = packing_.position - f * step_;
  const auto j = torch::div(offset, period, "floor").clamp_min(-1);  // of the family's blocks
  const auto inside =
      (j >= 0) & (offset - j * period < size_) & (j * families_ + f < packing_.spread(counts));
  // What lies between two blocks is a document whose keys nobody attends to.
  const DocumentsMask blocks{{.ids = parts_of_documents(packing_, j + 1) * 2 + inside}};
  return blocks && TensorMask{inside.unsqueeze(1).unsqueeze(1)};
}

ATTZOO_API torch::Tensor OverlappingBlocks::shares() const {
  if (!packing_.defined()) return shares_of(n_);
  std::vector<torch::Tensor> of_each;
  for (const auto length : packing_.lengths) of_each.push_back(shares_of(length));
  return torch::cat(of_each, 1).view({families_, -1, 1, n_});
}

ATTZOO_API torch::Tensor OverlappingBlocks::shares_of(int64_t length) const {
  auto shares = torch::zeros({families_, length}, torch::kFloat64);
  auto at = shares.accessor<double, 2>();
  for (int64_t k = 0; k < count(length); ++k) {
    const int64_t begin = k * step_, end = std::min(begin + size_, length);
    for (int64_t i = begin; i < end; ++i) {
      at[k % families_][i] = static_cast<double>(std::min(i - begin + 1, end - i));
    }
  }
  return shares / shares.sum(0);
}

ATTZOO_API torch::Tensor OverlappingBlocks::python_shares() const {
  auto shares = torch::zeros({families_, n_}, torch::kFloat64);
  for (int64_t k = 0; k < count(n_); ++k) {
    const int64_t begin = k * step_, length = std::min(size_, n_ - begin);
    const auto place = torch::arange(length, torch::kFloat64);
    const auto taken = k == 0 ? torch::ones_like(place)
                              : place / static_cast<double>(std::max<int64_t>(1, length - 1));
    auto here = shares.slice(1, begin, begin + length);
    here.mul_(1 - taken);
    here[k % families_].copy_(taken);
  }
  return shares;
}

/// Of every pair in the rows [begin, end), the last block of family f that holds both tokens, -1
/// where none does: [1, 1, rows, n].
ATTZOO_API torch::Tensor OverlappingBlocks::block_of(int64_t f, int64_t begin, int64_t end) const {
  const auto mask = family(f).evaluate(Grid({1, 1, n_, n_}, begin, end, torch::kCPU));
  const auto i = torch::arange(begin, end, torch::kInt64).view({1, 1, -1, 1});
  const auto k = torch::div(i - f * step_, families_ * step_, "floor") * families_ + f;
  return torch::where(mask, k, torch::full({}, -1, torch::kInt64));
}

ATTZOO_API LazyWeights
OverlappingBlocks::last_block_wins(const std::vector<AttentionResult>& parts) const {
  std::vector<LazyWeights> others;
  for (const auto& part : parts) others.push_back(part.weights);
  return others[0].map([blocks = *this, others](torch::Tensor rows, int64_t begin, int64_t end) {
    auto last = blocks.block_of(0, begin, end).to(rows.device());
    for (int64_t f = 1; f < blocks.families(); ++f) {
      const auto block = blocks.block_of(f, begin, end).to(rows.device());
      rows = torch::where(block > last, others[static_cast<size_t>(f)].rows(begin, end), rows);
      last = torch::maximum(last, block);
    }
    return rows;
  });
}

}  // namespace attzoo::core
