#pragma once
/// \file
/// The masks that modifiers.hpp names: their meaning on tensors, and their form for the kernel.

#include <attzoo/core/callables.hpp>
#include <attzoo/core/documents.hpp>
#include <attzoo/kernel/masks.hpp>

#include <algorithm>
#include <memory>

namespace attzoo {

/// No limit on one side of a window.
inline constexpr int64_t kUnbounded = int64_t{1} << 40;

namespace core {

/// Sides, sizes and rates as the kernel's 32-bit numbers; 2^30 is beyond any length.
inline int to_int(int64_t n) { return static_cast<int>(std::min(n, int64_t{1} << 30)); }

/// What takes a query to its place among the keys: the last query meets the last key.
inline int shift(const Shape& n) { return static_cast<int>(n.S - n.L); }

/// The stride of a dimension that may broadcast.
inline int64_t step(const torch::Tensor& t, int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); }

/// A bool tensor [1 or B, S] for the kernel.
inline std::shared_ptr<const kernel::Flags> flags_of(const torch::Tensor& t) {
  const auto flags = t.contiguous();
  return std::make_shared<kernel::Flags>(flags.const_data_ptr<bool>(),
                                         static_cast<int>(flags.size(0)),
                                         static_cast<int>(flags.size(1)));
}

/// q's index among the keys: rows are aligned so that the last query meets the last key.
inline torch::Tensor aligned_query(const Grid& g) { return g.q + (g.shape.S - g.shape.L); }

/// A mask made of a callable on indices.
template <class F>
struct MaskFunction : MaskCallable<F> {
  static constexpr bool is_mask = true;
  F f;
  bool aligned;

  MaskFunction(F callable, bool q_among_keys) : f(std::move(callable)), aligned(q_among_keys) {}
  void check(const Shape& n, const torch::Device& device) const {
    check_callable(f, n, device, aligned, [&](const Grid& g) { evaluate(g); });
  }
  void tensors(Captured& out) const { tensors_of_tables(f, out); }
  torch::Tensor evaluate(const Grid& g) const {
    return TensorLane(f(TensorLane(g.b), TensorLane(g.h),
                        TensorLane(aligned ? aligned_query(g) : g.q), TensorLane(g.kv)))
        .t.to(torch::kBool);
  }
  kernel::MaskFunction<F> bind(const Shape& n) const {
    return {bind_tables(f), aligned ? shift(n) : 0};
  }
};

struct FullMask {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const Grid& g) const {
    return torch::ones({1, 1, 1, 1}, g.kv.options().dtype(torch::kBool));
  }
  kernel::Full bind(const Shape&) const { return {}; }
};

struct CausalMask {
  static constexpr bool is_mask = true;
  bool top_left = false;
  bool enabled = true;  // a module's run-time switch: off means full

  int64_t offset(const Shape& n) const { return top_left ? 0 : n.S - n.L; }
  torch::Tensor evaluate(const Grid& g) const {
    if (!enabled) return FullMask{}.evaluate(g);
    return g.kv <= g.q + offset(g.shape);
  }
  kernel::Window bind(const Shape& n) const {
    return {static_cast<int>(offset(n)), to_int(kUnbounded), enabled ? 0 : to_int(kUnbounded)};
  }
};

struct WindowMask {
  static constexpr bool is_mask = true;
  int64_t left, right;
  torch::Tensor evaluate(const Grid& g) const {
    const auto distance = aligned_query(g) - g.kv;
    return torch::logical_and(distance <= left, distance >= -right);
  }
  kernel::Window bind(const Shape& n) const { return {shift(n), to_int(left), to_int(right)}; }
};

struct DilatedMask {
  static constexpr bool is_mask = true;
  int64_t rate;
  torch::Tensor evaluate(const Grid& g) const {
    return (aligned_query(g) - g.kv).remainder(rate) == 0;
  }
  kernel::Dilated bind(const Shape& n) const {
    // A rate beyond the lengths leaves the same pairs, and the kernel walks rate residues.
    return {shift(n), static_cast<int>(std::min(rate, std::max<int64_t>({n.L, n.S, 1})))};
  }
};

/// Blocks of `size` positions that start at offset, offset + period, ...; from `end` on there are
/// none. Two positions attend if one block holds both.
struct BlocksMask {
  static constexpr bool is_mask = true;
  int64_t size, period, offset, end;

  torch::Tensor evaluate(const Grid& g) const {
    const auto [q_block, q_inside] = locate(aligned_query(g));
    const auto [kv_block, kv_inside] = locate(g.kv);
    return torch::logical_and(q_block == kv_block, torch::logical_and(q_inside, kv_inside));
  }
  kernel::Blocks bind(const Shape& n) const {
    return {shift(n), to_int(size), to_int(period), to_int(offset), to_int(end)};
  }

 private:
  std::pair<torch::Tensor, torch::Tensor> locate(const torch::Tensor& i) const {
    const auto block = torch::div(i - offset, period, "floor");
    const auto within = i - offset - block * period;
    return {block, torch::logical_and(torch::logical_and(within < size, block >= 0),
                                      block * period + offset < end)};
  }
};

struct PrefixMask {
  static constexpr bool is_mask = true;
  int64_t length;
  torch::Tensor evaluate(const Grid& g) const { return g.kv < length; }
  kernel::Prefix bind(const Shape& n) const { return {static_cast<int>(std::min(length, n.S))}; }
};

struct DocumentsMask {
  static constexpr bool is_mask = true;
  Documents documents;
  void check(const Shape& n, const torch::Device& device) const {
    check_documents_fit(documents, n, device, "documents");
  }
  void tensors(Captured& out) const { out.insert(out.end(), {documents.offsets, documents.ids}); }
  torch::Tensor evaluate(const Grid& g) const {
    const auto of = document_ids(documents);
    const int64_t offset = g.shape.S - g.shape.L;
    const auto of_query = of.slice(1, offset + g.q_begin, offset + g.q_end);
    return of_query.unsqueeze(1).unsqueeze(3) == of.unsqueeze(1).unsqueeze(1);
  }
  kernel::Documents bind(const Shape& n) const {
    const auto of = document_ids(documents).contiguous();
    return {shift(n),
            std::make_shared<kernel::DocumentTable>(
                of.const_data_ptr<int64_t>(), static_cast<int>(of.size(0)), static_cast<int>(n.S))};
  }
};

/// The same where a module's caller may have given none: then everybody attends.
struct MaybeDocumentsMask {
  static constexpr bool is_mask = true;
  DocumentsMask mask;
  bool given() const { return mask.documents.defined(); }
  void check(const Shape& n, const torch::Device& device) const {
    if (given()) mask.check(n, device);
  }
  void tensors(Captured& out) const { mask.tensors(out); }
  torch::Tensor evaluate(const Grid& g) const {
    return given() ? mask.evaluate(g) : FullMask{}.evaluate(g);
  }
  kernel::MaybeDocuments bind(const Shape& n) const {
    if (!given()) return {};
    return {mask.bind(n)};
  }
};

struct GlobalTokensMask {
  static constexpr bool is_mask = true;
  torch::Tensor is_global;  // bool [1 or B, S]
  bool queries = true, keys = true;
  void check(const Shape& n, const torch::Device& device) const {
    TORCH_CHECK_VALUE((is_global.size(0) == n.B || is_global.size(0) == 1) &&
                          is_global.size(1) == n.S && n.L <= n.S,
                      "global_tokens: is_global must have shape [S] or [B, S] with B=", n.B,
                      " S=", n.S, ", and L <= S, got ", is_global.sizes(), " and L=", n.L);
    TORCH_CHECK_VALUE(is_global.device() == device, "global_tokens: is_global must be on ", device,
                      ", got ", is_global.device());
  }
  void tensors(Captured& out) const { out.push_back(is_global); }
  torch::Tensor evaluate(const Grid& g) const {
    const int64_t offset = g.shape.S - g.shape.L;
    const auto q =
        is_global.slice(1, offset + g.q_begin, offset + g.q_end).unsqueeze(1).unsqueeze(3);
    const auto kv = is_global.unsqueeze(1).unsqueeze(1);
    if (!keys) return q;
    return queries ? torch::logical_or(q, kv) : kv;
  }
  kernel::GlobalTokens bind(const Shape& n) const {
    return {shift(n), flags_of(is_global), queries, keys};
  }
};

struct TensorMask {
  static constexpr bool is_mask = true;
  torch::Tensor mask;  // bool, rank 4, broadcastable; undefined: nothing is masked
  void check(const Shape& n, const torch::Device& device) const {
    if (!mask.defined()) return;
    check_captured(mask, {n.B, n.H, n.L, n.S}, device, "mask_tensor",
                   "[L, S], [B, L, S] or [B, H, L, S]", n);
  }
  void tensors(Captured& out) const { out.push_back(mask); }
  torch::Tensor evaluate(const Grid& g) const {
    return mask.defined() ? grid_rows(mask, g) : FullMask{}.evaluate(g);
  }
  kernel::DenseMask bind(const Shape&) const {
    if (!mask.defined()) return {};
    kernel::DenseMask m{mask.const_data_ptr<bool>(),
                        step(mask, 0),
                        step(mask, 1),
                        step(mask, 2),
                        step(mask, 3),
                        nullptr};
    // The same keys for all queries and heads, as key padding: the schedule skips what is
    // forbidden.
    if (mask.size(1) == 1 && mask.size(2) == 1 && mask.size(3) > 1) {
      m.keys = flags_of(mask.flatten(1));
    }
    return m;
  }
};

/// An interval of keys for every query, int32 [B, H, L], contiguous.
struct BandMask {
  static constexpr bool is_mask = true;
  torch::Tensor begin, end;
  void tensors(Captured& out) const { out.insert(out.end(), {begin, end}); }
  torch::Tensor evaluate(const Grid& g) const {
    const auto rows = [&](const torch::Tensor& t) {
      return t.slice(2, g.q_begin, g.q_end).unsqueeze(-1);
    };
    return torch::logical_and(g.kv >= rows(begin), g.kv < rows(end));
  }
  kernel::Bands bind(const Shape&) const {
    return {begin.const_data_ptr<int>(), end.const_data_ptr<int>(), begin.stride(0),
            begin.stride(1)};
  }
};

template <MaskMod A, MaskMod B>
struct AndMask {
  static constexpr bool is_mask = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  void tensors(Captured& out) const {
    held_tensors(a, out);
    held_tensors(b, out);
  }
  torch::Tensor evaluate(const Grid& g) const {
    return torch::logical_and(a.evaluate(g), b.evaluate(g));
  }
  auto bind(const Shape& n) const { return kernel::And{a.bind(n), b.bind(n)}; }
};

template <MaskMod A, MaskMod B>
struct OrMask {
  static constexpr bool is_mask = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  void tensors(Captured& out) const {
    held_tensors(a, out);
    held_tensors(b, out);
  }
  torch::Tensor evaluate(const Grid& g) const {
    return torch::logical_or(a.evaluate(g), b.evaluate(g));
  }
  auto bind(const Shape& n) const { return kernel::Or{a.bind(n), b.bind(n)}; }
};

template <MaskMod A>
struct NotMask {
  static constexpr bool is_mask = true;
  A a;
  void check(const Shape& n, const torch::Device& device) const { check_modifier(a, n, device); }
  void tensors(Captured& out) const { held_tensors(a, out); }
  torch::Tensor evaluate(const Grid& g) const { return torch::logical_not(a.evaluate(g)); }
  auto bind(const Shape& n) const { return kernel::Not<decltype(a.bind(n))>{a.bind(n)}; }
};

/// A mask and how each of its tiles is covered.
template <MaskMod M>
struct BlockMask {
  static constexpr bool is_mask = true;
  M mask;
  int64_t L, S;
  std::shared_ptr<const kernel::TileCover> tiles;
  Unchanged unchanged;  // what the tiles were made of
  void tensors(Captured& out) const { held_tensors(mask, out); }
  void check(const Shape& n, const torch::Device& device) const {
    TORCH_CHECK_VALUE(n.L == L && n.S == S && (tiles->batches == 1 || tiles->batches == n.B) &&
                          (tiles->heads == 1 || tiles->heads == n.H),
                      "block_mask: made for B=", tiles->batches, " H=", tiles->heads, " L=", L,
                      " S=", S, ", got B=", n.B, " H=", n.H, " L=", n.L, " S=", n.S);
    check_modifier(mask, n, device);
    unchanged.check("block_mask");
  }
  torch::Tensor evaluate(const Grid& g) const { return mask.evaluate(g); }
  auto bind(const Shape& n) const { return kernel::Tiled{mask.bind(n), tiles}; }
};

/// Evaluates a mask one row of tiles at a time.
template <MaskMod M>
std::shared_ptr<const kernel::TileCover> tile_cover(const M& mask, const Shape& n) {
  constexpr int64_t kTile = 64;
  const int64_t rows = (n.L + kTile - 1) / kTile, columns = (n.S + kTile - 1) / kTile;
  auto tiles = std::make_shared<kernel::TileCover>(kernel::TileCover{kTile,
                                                                     static_cast<int>(n.B),
                                                                     static_cast<int>(n.H),
                                                                     static_cast<int>(rows),
                                                                     static_cast<int>(columns),
                                                                     {}});
  tiles->cover.resize(static_cast<size_t>(n.B * n.H * rows * columns));
  const auto by_tile = [&](const torch::Tensor& t, bool padding) {  // [B, H, S] -> [.., 64]
    return torch::constant_pad_nd(t, {0, columns * kTile - n.S}, padding)
        .view({n.B, n.H, columns, kTile});
  };
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = row * kTile, end = std::min(n.L, begin + kTile);
    const auto allowed =
        mask.evaluate(Grid(n, begin, end, torch::kCPU)).expand({n.B, n.H, end - begin, n.S});
    const auto any = by_tile(allowed.any(2), false).any(-1).to(torch::kInt32);
    const auto all = by_tile(allowed.all(2), true).all(-1).to(torch::kInt32);
    const auto cover = (any + all).contiguous();  // 0 empty, 1 partial, 2 full
    const int* from = cover.template const_data_ptr<int>();
    for (int64_t head = 0; head < n.B * n.H; ++head) {
      for (int64_t column = 0; column < columns; ++column) {
        tiles->cover[static_cast<size_t>((head * rows + row) * columns + column)] =
            static_cast<kernel::Cover>(from[head * columns + column]);
      }
    }
  }
  return tiles;
}

// Beside the types, so that they are found without `using namespace attzoo`.

template <MaskMod A, MaskMod B>
auto operator&&(A a, B b) {
  if constexpr (std::is_same_v<A, FullMask>) {
    return b;
  } else if constexpr (std::is_same_v<B, FullMask>) {
    return a;
  } else {
    return AndMask<A, B>{std::move(a), std::move(b)};
  }
}
template <MaskMod A, MaskMod B>
OrMask<A, B> operator||(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <MaskMod A>
NotMask<A> operator!(A a) {
  return {std::move(a)};
}

}  // namespace core

using core::operator&&;
using core::operator||;
using core::operator!;

}  // namespace attzoo
