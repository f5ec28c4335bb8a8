#pragma once
/// \file
/// The cache of a mechanism whose tokens forget: keys, values, and what was forgotten up to each.

#include <attzoo/module/token_cache.hpp>

#include <vector>

namespace attzoo::core {

/// The sums of the log gates [B, H, L] up to each token; documents begin anew, and so nothing of
/// one reaches another.
ATTZOO_API torch::Tensor sums_of_documents(const torch::Tensor& gates, const Packing& packing);

/// Keys and values, and for each head the sum of the log gates up to every token that is kept.
class GateCache final : public KvCache {
 public:
  ATTZOO_API GateCache(const CacheHead& head, int64_t heads, int64_t kv_heads, int64_t d_head,
                       const Keeps& keeps);

  /// Takes the sums of the next tokens, float64 [B, H, L]; gives those of all kept ones, [B, H, S].
  ATTZOO_API torch::Tensor enter(torch::Tensor sums);

  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 private:
  RowBuffer sums_;  // float64 [B, H, S, 1]
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

namespace attzoo::core {

ATTZOO_API torch::Tensor sums_of_documents(const torch::Tensor& gates, const Packing& packing) {
  if (!packing.defined() || gates.numel() == 0) return gates.cumsum(2);
  const auto sizes = gates.sizes();
  // Documents of single sequences follow one another.
  const bool of_all = packing.position.size(0) == 1;
  const auto rows = of_all ? gates : gates.transpose(0, 1).reshape({sizes[1], 1, -1});
  std::vector<torch::Tensor> sums;
  for (const auto& part : rows.split_with_sizes(packing.lengths, 2)) sums.push_back(part.cumsum(2));
  const auto all = torch::cat(sums, 2);
  return of_all ? all : all.view({sizes[1], sizes[0], sizes[2]}).transpose(0, 1);
}

ATTZOO_API GateCache::GateCache(const CacheHead& head, int64_t heads, int64_t kv_heads,
                                int64_t d_head, const Keeps& keeps)
    : KvCache(head, {kv_heads, d_head, d_head}, keeps, /*globals=*/false),
      sums_({torch::empty({head.batch, heads, 0, 1},
                          torch::dtype(torch::kFloat64).device(head.device))},
            head.capacity, keeps) {}

ATTZOO_API torch::Tensor GateCache::enter(torch::Tensor sums) {
  // Where no token is left, any begin does: differences alone count.
  const auto before = sums_.rows(0);
  if (before.size(2) > 0) sums = sums + before.slice(2, before.size(2) - 1).squeeze(3);
  return sums_.append({sums.unsqueeze(3)}).rows[0].squeeze(3);
}

ATTZOO_API int64_t GateCache::bytes() const { return KvCache::bytes() + sums_.bytes(); }

ATTZOO_API void GateCache::truncate(int64_t n) {
  KvCache::truncate(n);
  sums_.truncate(n);
}

ATTZOO_API void GateCache::reorder(const torch::Tensor& order) {
  KvCache::reorder(order);
  sums_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> GateCache::clone() const {
  auto copy = std::make_shared<GateCache>(*this);
  copy->copy_rows();
  copy->sums_ = sums_.clone();
  return copy;
}

}  // namespace attzoo::core

#endif
