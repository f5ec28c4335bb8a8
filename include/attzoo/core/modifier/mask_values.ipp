#pragma once
// Definitions of mask_values.hpp.

#include <attzoo/core/modifier/mask_values.hpp>

namespace attzoo::core {

ATTZOO_API torch::Tensor FullMask::evaluate(const Grid& g) const {
  return torch::ones({1, 1, 1, 1}, g.kv.options().dtype(torch::kBool));
}

ATTZOO_API torch::Tensor CausalMask::evaluate(const Grid& g) const {
  return g.kv <= g.q + offset(g.shape);
}

ATTZOO_API torch::Tensor WindowMask::evaluate(const Grid& g) const {
  const auto distance = g.aligned_q() - g.kv;
  return torch::logical_and(distance <= left, distance >= -right);
}

ATTZOO_API torch::Tensor DilatedMask::evaluate(const Grid& g) const {
  return (g.aligned_q() - g.kv).remainder(rate) == 0;
}

/// The block of each position, and whether it lies in one.
ATTZOO_API std::pair<torch::Tensor, torch::Tensor> SameBlockMask::locate(
    const torch::Tensor& i) const {
  const auto block = torch::div(i - offset, period, "floor");
  const auto within = i - offset - block * period;
  return {block, torch::logical_and(torch::logical_and(within < size, block >= 0),
                                    block * period + offset < end)};
}

ATTZOO_API torch::Tensor SameBlockMask::evaluate(const Grid& g) const {
  const auto [q_block, q_inside] = locate(g.aligned_q());
  const auto [kv_block, kv_inside] = locate(g.kv);
  return torch::logical_and(q_block == kv_block, torch::logical_and(q_inside, kv_inside));
}

ATTZOO_API torch::Tensor PrefixMask::evaluate(const Grid& g) const { return g.kv < length; }

ATTZOO_API void DocumentsMask::check(const Shape& n, const torch::Device& device) const {
  check_documents_fit(documents, n, device, "documents");
}

ATTZOO_API torch::Tensor DocumentsMask::evaluate(const Grid& g) const {
  const auto ids = document_ids(documents);  // [1 or B, S]
  return g.aligned_rows().of(ids, 1).unsqueeze(1).unsqueeze(3) ==
         g.columns.of(ids, 1).unsqueeze(1).unsqueeze(1);
}

ATTZOO_API void GlobalTokensMask::check(const Shape& n, const torch::Device& device) const {
  TORCH_CHECK_VALUE((is_global.size(0) == n.B || is_global.size(0) == 1) &&
                        is_global.size(1) == n.S && n.L <= n.S,
                    "global_tokens: is_global must have shape [S] or [B, S] with B=", n.B,
                    " S=", n.S, ", and L <= S, got ", is_global.sizes(), " and L=", n.L);
  TORCH_CHECK_VALUE(is_global.device() == device, "global_tokens: is_global must be on ", device,
                    ", got ", is_global.device());
}

ATTZOO_API torch::Tensor GlobalTokensMask::evaluate(const Grid& g) const {
  const auto q = g.aligned_rows().of(is_global, 1).unsqueeze(1).unsqueeze(3);
  const auto kv = g.columns.of(is_global, 1).unsqueeze(1).unsqueeze(1);
  if (!keys) return q;
  return queries ? torch::logical_or(q, kv) : kv;
}

ATTZOO_API void TensorMask::check(const Shape& n, const torch::Device& device) const {
  check_captured(mask, {n.B, n.H, n.L, n.S}, device, "mask_tensor",
                 "[L, S], [B, L, S] or [B, H, L, S]", n);
}

ATTZOO_API torch::Tensor BandMask::evaluate(const Grid& g) const {
  const auto of_query = [&](const torch::Tensor& t) { return g.rows.of(t, 2).unsqueeze(-1); };
  return torch::logical_and(g.kv >= of_query(begin), g.kv < of_query(end));
}

}  // namespace attzoo::core
