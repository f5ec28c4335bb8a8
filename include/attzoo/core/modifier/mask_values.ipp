#pragma once
// Definitions of mask_values.hpp.

#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/core/modifier/tensor_lane.hpp>

#include <memory>

namespace attzoo::core {

ATTZOO_API torch::Tensor FullMask::evaluate(const Grid& g) const {
  return torch::ones({1, 1, 1, 1}, g.kv.options().dtype(torch::kBool));
}

template <class F>
torch::Tensor NamedMask<F>::evaluate(const Grid& g) const {
  return f(TensorLane(g.b), TensorLane(g.h), TensorLane(aligned ? g.aligned_q() : g.q),
           TensorLane(g.kv))
      .t;
}

ATTZOO_API void check_grid(int64_t tokens, size_t dimensions, const Shape& n) {
  TORCH_CHECK_VALUE(n.S == tokens, "neighborhood: the grid has ", tokens, " tokens, got S=", n.S);
  TORCH_CHECK_VALUE(n.L <= n.S || dimensions == 1,
                    "neighborhood: the queries must be tokens of the grid, the last ones, L <= S, "
                    "got L=",
                    n.L, " S=", n.S);
}

ATTZOO_API void DocumentsMask::check(const Shape& n, const torch::Device& device) const {
  check_documents_fit(documents, n, device, "documents");
}

ATTZOO_API torch::Tensor DocumentsMask::evaluate(const Grid& g) const {
  const auto ids = document_ids(documents);  // [1 or B, S]
  return g.of_queries(ids) == g.of_keys(ids);
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
  const auto q = g.of_queries(is_global), kv = g.of_keys(is_global);
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

inline constexpr int64_t kBitsInWord = 32;

/// bool [.., columns] as bits, int32 [.., words].
ATTZOO_API torch::Tensor as_bits(const torch::Tensor& t, int64_t words) {
  auto sizes = t.sizes().vec();
  sizes.back() = words;
  sizes.push_back(kBitsInWord);
  const auto value =
      torch::bitwise_left_shift(torch::ones(kBitsInWord, t.options().dtype(torch::kInt64)),
                                torch::arange(kBitsInWord, t.options().dtype(torch::kInt64)));
  const auto padded = torch::constant_pad_nd(t, {0, words * kBitsInWord - t.size(-1)}, 0);
  return (padded.view(sizes) * value).sum(-1).to(torch::kInt32);
}

ATTZOO_API ChosenBlocksMask::ChosenBlocksMask(const torch::Tensor& chosen, int64_t query_block_,
                                              int64_t key_block_)
    : sizes(chosen.sizes().vec()),
      query_block(query_block_),
      key_block(key_block_),
      of_all_keys(chosen.scalar_type() == torch::kBool),
      columns(chosen.size(3)) {
  const auto numbers = of_all_keys ? chosen : chosen.to(torch::kInt64);
  if (!of_all_keys) columns = numbers.numel() == 0 ? 0 : numbers.max().item<int64_t>() + 1;
  const int64_t words = std::max<int64_t>(1, (columns + kBitsInWord - 1) / kBitsInWord);
  bits = torch::zeros({sizes[0], sizes[1], sizes[2], words}, chosen.options().dtype(torch::kInt32));
  const int64_t of_a_row = std::max<int64_t>(1, sizes[0] * sizes[1] * words * kBitsInWord),
                rows = std::max<int64_t>(1, (int64_t{1} << 20) / of_a_row);  // 8 bytes for each
  for (int64_t begin = 0; begin < sizes[2]; begin += rows) {
    auto part = numbers.slice(2, begin, begin + rows);
    if (!of_all_keys) {
      const auto none = torch::zeros({sizes[0], sizes[1], part.size(2), columns + 1},
                                     chosen.options().dtype(torch::kBool));
      part = none.scatter(3, part + 1, true).slice(3, 1);
    }
    bits.slice(2, begin, begin + rows).copy_(as_bits(part, words));
  }
}

ATTZOO_API ChosenBlocksMask::ChosenBlocksMask(const torch::Tensor& chosen, torch::Tensor query_row_,
                                              torch::Tensor key_column_)
    : ChosenBlocksMask(chosen, 1, 1) {
  query_row = std::move(query_row_);
  key_column = std::move(key_column_);
}

ATTZOO_API void ChosenBlocksMask::check(const Shape& n, const torch::Device& device) const {
  if (query_row.defined()) return;  // of a mechanism, which made it for this problem
  const int64_t rows = bits.size(2), all_rows = (n.S + query_block - 1) / query_block,
                least_rows = all_rows - (n.S - n.L) / query_block,
                all_columns = (n.S + key_block - 1) / key_block;
  TORCH_CHECK_VALUE(n.L <= n.S, "chosen_blocks: L <= S is needed, got L=", n.L, " S=", n.S);
  TORCH_CHECK_VALUE((bits.size(0) == 1 || bits.size(0) == n.B) && bits.size(1) > 0 &&
                        n.H % bits.size(1) == 0 && rows >= least_rows && rows <= all_rows,
                    "chosen_blocks: chosen must have shape [1 or B, a divisor of H, ", least_rows,
                    " to ", all_rows, " blocks of queries, ...] with B=", n.B, " H=", n.H,
                    " L=", n.L, " S=", n.S, " and blocks of ", query_block, ", got ",
                    torch::IntArrayRef(sizes));
  TORCH_CHECK_VALUE(of_all_keys ? columns == all_columns : columns <= all_columns,
                    "chosen_blocks: S=", n.S, " keys are ", all_columns, " blocks of ", key_block,
                    ", got a chosen ", torch::IntArrayRef(sizes), " of ", columns);
  TORCH_CHECK_VALUE(bits.device() == device, "chosen_blocks: chosen must be on ", device, ", got ",
                    bits.device());
}

ATTZOO_API torch::Tensor ChosenBlocksMask::all_bits(const Shape& n) const {
  if (query_row.defined()) return bits;
  const int64_t words = (n.S - 1) / key_block / kBitsInWord + 1;
  return torch::constant_pad_nd(bits, {0, std::max<int64_t>(0, words - bits.size(3))}, 0);
}

ATTZOO_API torch::Tensor ChosenBlocksMask::evaluate(const Grid& g) const {
  const auto floor = [](const torch::Tensor& t, int64_t by) { return torch::div(t, by, "floor"); };
  const bool listed = query_row.defined();
  const auto number = [&](const torch::Tensor& t, const torch::Tensor& token) {
    return scattered(t, {g.b, token}).to(torch::kInt64);
  };
  const auto column = listed ? number(key_column, g.kv) : floor(g.kv, key_block);
  const auto row =
      listed ? number(query_row, g.q) : floor(g.aligned_q(), query_block) - skipped(g.shape);
  const auto word = scattered(all_bits(g.shape), {g.b, floor(g.h, heads_in_group(g.shape)), row,
                                                  floor(column, kBitsInWord)});
  return torch::bitwise_and(torch::bitwise_right_shift(word, column % kBitsInWord), 1) != 0;
}

// ---- as symbols ---------------------------------------------------------------------------------

ATTZOO_API Symbol DocumentsMask::symbol(const SymbolPair& p) const {
  const auto ids = document_ids(documents);  // [1 or B, S]
  return SymbolPair::of(ids, {p.b, p.aligned_q()}) == SymbolPair::of(ids, {p.b, p.kv});
}
ATTZOO_API Symbol GlobalTokensMask::symbol(const SymbolPair& p) const {
  const auto of = [&](const Symbol& token) { return SymbolPair::of(is_global, {p.b, token}) != 0; };
  if (!keys) return of(p.aligned_q());
  return queries ? of(p.aligned_q()) || of(p.kv) : of(p.kv);
}
ATTZOO_API Symbol BandMask::symbol(const SymbolPair& p) const {
  const auto of_query = [&](const torch::Tensor& t) { return SymbolPair::of(t, {p.b, p.h, p.q}); };
  return p.kv >= of_query(begin) && p.kv < of_query(end);
}

ATTZOO_API Symbol ChosenBlocksMask::symbol(const SymbolPair& p) const {
  const bool listed = query_row.defined();
  const auto column = listed ? SymbolPair::of(key_column, {p.b, p.kv}) : p.kv / key_block,
             row = listed ? SymbolPair::of(query_row, {p.b, p.q})
                          : p.aligned_q() / query_block - skipped(p.shape);
  const auto word = SymbolPair::of(all_bits(p.shape),
                                   {p.b, p.h / heads_in_group(p.shape), row, column / kBitsInWord});
  return ((word >> (column % kBitsInWord)) & 1) != 0;
}

// ---- as the kernels see them --------------------------------------------------------------------

/// A bool tensor [1 or B, S]; on the CPU, where it is asked what is reached.
ATTZOO_API std::shared_ptr<const kernel::Flags> flags_of(const torch::Tensor& t) {
  const auto flags = t.cpu().contiguous();
  return std::make_shared<kernel::Flags>(flags.const_data_ptr<bool>(),
                                         static_cast<int>(flags.size(0)),
                                         static_cast<int>(flags.size(1)));
}

ATTZOO_API kernel::Documents DocumentsMask::bind(const Shape& n) const {
  const auto of = document_ids(documents).cpu().contiguous();
  return {shift(n),
          std::make_shared<kernel::DocumentTable>(
              of.const_data_ptr<int64_t>(), static_cast<int>(of.size(0)), static_cast<int>(n.S))};
}

ATTZOO_API kernel::GlobalTokens GlobalTokensMask::bind(const Shape& n) const {
  return {shift(n), flags_of(is_global), queries, keys};
}

ATTZOO_API kernel::DenseMask TensorMask::bind(const Shape&) const {
  const auto t = plain(mask);
  kernel::DenseMask form{t.const_data_ptr<bool>(), step(t, 0), step(t, 1), step(t, 2), step(t, 3)};
  form.owner = owner_of(t);
  // The same keys for all queries and heads, as key padding: what is forbidden is not reached.
  if (t.size(1) == 1 && t.size(2) == 1 && t.size(3) > 1) form.keys = flags_of(t.flatten(1));
  return form;
}

ATTZOO_API kernel::Bands BandMask::bind(const Shape&) const {
  const auto both = torch::stack({begin, end}).cpu();
  const auto* data = both.const_data_ptr<int>();
  return {data, data + begin.numel(), begin.stride(0), begin.stride(1), owner_of(both)};
}

/// int32 numbers [1 or B, n] of so many blocks.
ATTZOO_API std::shared_ptr<const kernel::BlockTable> block_table(const torch::Tensor& numbers,
                                                                 int64_t blocks) {
  if (!numbers.defined()) return nullptr;
  const auto t = numbers.cpu().contiguous();
  return std::make_shared<kernel::BlockTable>(t.const_data_ptr<int>(), static_cast<int>(t.size(0)),
                                              static_cast<int>(t.size(1)),
                                              static_cast<int>(blocks));
}

ATTZOO_API kernel::ChosenBlocks ChosenBlocksMask::bind(const Shape& n) const {
  const auto t = all_bits(n).cpu().contiguous();
  return {.bits = t.const_data_ptr<int>(),
          .b = step(t, 0),
          .h = step(t, 1),
          .words = t.size(3),
          .shift = shift(n),
          .skipped = query_row.defined() ? 0 : static_cast<int>(skipped(n)),
          .group = static_cast<int>(heads_in_group(n)),
          .query_block = to_int(query_block),
          .key_block = to_int(key_block),
          .owner = owner_of(t),
          .queries = block_table(query_row, t.size(2)),
          .keys = block_table(key_column, columns)};
}

}  // namespace attzoo::core
