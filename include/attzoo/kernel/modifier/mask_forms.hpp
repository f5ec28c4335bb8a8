#pragma once
/// \file
/// Masks that read tensors, as the kernel sees them: plain pointers. Each says whether one pair may
/// attend, and what a range of queries reaches. `shift` is S - L: a query's place among the keys is
/// q + shift.

#include <attzoo/kernel/modifier/callable_forms.hpp>
#include <attzoo/kernel/modifier/masks.hpp>

#include <bit>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// The document of every position, one row of positions per sequence, and where each document lies.
struct DocumentTable {
  struct Extent {
    int begin, end, tokens;
    bool together() const { return tokens == end - begin; }
  };
  int batch, n;
  std::vector<int> of;  // [batch, n], an index of `extents`
  std::vector<Extent> extents;

  /// ids [batch, n], any numbers: equal ones are one document.
  DocumentTable(const int64_t* ids, int batch_, int n_) : batch(batch_), n(n_) {
    of.reserve(static_cast<size_t>(batch) * static_cast<size_t>(n));
    for (int b = 0; b < batch; ++b, ids += n) {
      std::unordered_map<int64_t, int> known;
      for (int i = 0; i < n; ++i) {
        int document = i > 0 && ids[i] == ids[i - 1] ? of.back() : -1;
        if (document < 0) {
          const auto at = known.try_emplace(ids[i], static_cast<int>(extents.size())).first;
          document = at->second;
          if (document == static_cast<int>(extents.size())) extents.push_back({i, i, 0});
        }
        auto& extent = extents[static_cast<size_t>(document)];
        extent.end = i + 1;
        ++extent.tokens;
        of.push_back(document);
      }
    }
  }
};

/// Pairs of one document. A range of queries reaches from the first token of its documents to the
/// last.
struct Documents {
  Documents(int shift_, std::shared_ptr<const DocumentTable> t)
      : shift(shift_), row(t->batch == 1 ? 0 : t->n), of(t->of.data()), table(std::move(t)) {}
  int shift;
  int64_t row;
  const int* of;
  std::shared_ptr<const DocumentTable> table;
  ATTZOO_ALWAYS_INLINE bool operator()(int b, int, int q, int kv) const {
    return of[b * row + q + shift] == of[b * row + kv];
  }
  void reach(const Rows& r, Segments& out) const {
    const int* at = of + r.b * row + shift;
    int begin = r.S, end = 0;
    bool full = true;
    for (int q = r.begin; q < r.end; q += r.stride) {
      const auto& extent = table->extents[static_cast<size_t>(at[q])];
      begin = std::min(begin, extent.begin);
      end = std::max(end, extent.end);
      full = full && extent.together() && at[q] == at[r.begin];
    }
    append(out, begin, end, full ? Cover::kFull : Cover::kPartial, r.S);
  }
};

/// Flags over positions, one row of them per sequence, and where they are set.
struct Flags {
  Flags(const bool* data, int batch, int n)
      : batch_(batch), n_(n), flags_(data, data + int64_t{batch} * n) {
    for (int b = 0; b < batch; ++b) {
      Segments runs;
      for (int i = 0; i < n; ++i) {
        if (at(b, i)) append(runs, i, i + 1, Cover::kFull, n);
      }
      runs_.push_back(std::move(runs));
    }
  }
  ATTZOO_ALWAYS_INLINE bool at(int b, int i) const {
    return flags_[static_cast<size_t>(row(b) * n_ + i)] != 0;
  }
  /// The set positions as intervals; scattered ones as one partial interval, which is cheaper to
  /// visit than hundreds of single keys.
  void reach(int b, Segments& out, int S) const {
    const auto& runs = runs_[static_cast<size_t>(row(b))];
    if (runs.size() > 16 && runs.size() > static_cast<size_t>(n_ / 16)) {
      append(out, runs.front().begin, runs.back().end, Cover::kPartial, S);
    } else {
      out.insert(out.end(), runs.begin(), runs.end());
    }
  }
  /// How much of [begin, end) is set.
  Cover cover(int b, int begin, int end) const {
    int set = 0;
    for (int i = begin; i < end; ++i) set += at(b, i);
    return set == 0 ? Cover::kEmpty : set == end - begin ? Cover::kFull : Cover::kPartial;
  }

 private:
  ATTZOO_ALWAYS_INLINE int64_t row(int b) const { return batch_ == 1 ? 0 : b; }
  int batch_, n_;
  std::vector<uint8_t> flags_;
  std::vector<Segments> runs_;
};

struct GlobalTokens {
  int shift;
  std::shared_ptr<const Flags> flags;
  bool queries, keys;
  ATTZOO_ALWAYS_INLINE bool operator()(int b, int, int q, int kv) const {
    return (queries && flags->at(b, q + shift)) || (keys && flags->at(b, kv));
  }
  void reach(const Rows& r, Segments& out) const {
    Segments rows, columns;
    if (queries) {
      append(rows, 0, r.S, flags->cover(r.b, r.begin + shift, r.end + shift), r.S);
    }
    if (keys) flags->reach(r.b, columns, r.S);
    out = unite(rows, columns, r.S);
  }
};

/// A bool tensor [B, H, L, S] by strides. `keys` is set where all queries and
/// heads have the same keys. `owner`: of the memory.
struct DenseMask {
  const bool* data;
  int64_t b, h, q, kv;
  std::shared_ptr<const Flags> keys = nullptr;
  std::shared_ptr<const void> owner = nullptr;
  ATTZOO_ALWAYS_INLINE bool operator()(int ib, int ih, int iq, int ikv) const {
    return data[ib * b + ih * h + iq * q + ikv * kv];
  }
  void reach(const Rows& r, Segments& out) const {
    if (keys) return keys->reach(r.b, out, r.S);
    append(out, 0, r.S, Cover::kPartial, r.S);
  }
};

/// An interval of keys for every query: [begin, end) at [(b * H + h) * L + q]. Intervals of later
/// queries neither begin nor end earlier than those of earlier ones, but for empty ones.
struct Bands {
  const int* begin;
  const int* end;
  int64_t b, h;
  std::shared_ptr<const void> owner = nullptr;  // of the memory
  ATTZOO_ALWAYS_INLINE bool operator()(int ib, int ih, int iq, int ikv) const {
    const int64_t at = ib * b + ih * h + iq;
    return (ikv >= begin[at]) & (ikv < end[at]);
  }
  void reach(const Rows& r, Segments& out) const {
    const int64_t at = r.b * b + r.h * h;
    int any_begin = r.S, any_end = 0, full_begin = 0, full_end = r.S;
    for (int q = r.begin; q < r.end; ++q) {
      full_begin = std::max(full_begin, begin[at + q]);
      full_end = std::min(full_end, end[at + q]);
      if (begin[at + q] >= end[at + q]) continue;
      any_begin = std::min(any_begin, begin[at + q]);
      any_end = std::max(any_end, end[at + q]);
    }
    if (any_begin < any_end) append_nested(out, any_begin, full_begin, full_end, any_end, r.S);
  }
};

/// Where each token stands: the number of its block, one row of tokens per sequence, and the extent
/// of every block, whose tokens lie together.
struct BlockTable {
  int batch, n, blocks;
  std::vector<int> of;
  std::vector<std::pair<int, int>> extents;  // [batch, blocks]

  BlockTable(const int* numbers, int batch_, int n_, int blocks_)
      : batch(batch_),
        n(n_),
        blocks(blocks_),
        of(numbers, numbers + int64_t{batch_} * n_),
        extents(static_cast<size_t>(batch_) * static_cast<size_t>(blocks_)) {
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < n; ++i) {
        const int block = of[static_cast<size_t>(int64_t{b} * n + i)];
        auto& extent = extents[static_cast<size_t>(int64_t{b} * blocks + block)];
        if (extent.second == 0) extent.first = i;
        extent.second = i + 1;
      }
    }
  }
  int64_t row(int b) const { return batch == 1 ? 0 : b; }
};

/// Blocks of keys for each block of queries, as bits [batches, heads, rows, words]: bit c % 32 of
/// word c / 32 stands for block c. Without tables blocks have one size, and rows are those of the
/// queries' places among the keys, of which the first `skipped` are not there; `group` heads share
/// one table.
struct ChosenBlocks {
  const int* bits;
  int64_t b, h, words;
  int shift, skipped, group, query_block, key_block;
  std::shared_ptr<const void> owner = nullptr;  // of the memory
  std::shared_ptr<const BlockTable> queries = nullptr, keys = nullptr;

  ATTZOO_ALWAYS_INLINE int row(int ib, int q) const {
    if (queries) return queries->of[static_cast<size_t>(queries->row(ib) * queries->n + q)];
    // A product in double, exact for 31 bits.
    return static_cast<int>((q + shift + 0.5) * (1.0 / query_block)) - skipped;
  }
  ATTZOO_ALWAYS_INLINE int column(int ib, int kv) const {
    if (keys) return keys->of[static_cast<size_t>(keys->row(ib) * keys->n + kv)];
    return kv / key_block;
  }
  const int* table(int ib, int ih) const { return bits + ib * b + ih / group * h; }
  ATTZOO_ALWAYS_INLINE bool operator()(int ib, int ih, int iq, int ikv) const {
    const int c = column(ib, ikv);
    return (table(ib, ih)[row(ib, iq) * words + c / 32] >> (c % 32)) & 1;
  }
  void reach(const Rows& r, Segments& out) const {
    const int* const rows = table(r.b, r.h);
    for (int64_t w = 0; w < words; ++w) {
      unsigned any = 0, all = ~0U;
      for (int q = r.begin, last = -1; q < r.end; q += r.stride) {
        const int i = row(r.b, q);
        if (i == last) continue;
        last = i;
        const auto word = static_cast<unsigned>(rows[i * words + w]);
        any |= word;
        all &= word;
      }
      for (; any != 0; any &= any - 1) {
        const int bit = std::countr_zero(any);
        const auto [begin, end] = extent(r.b, w * 32 + bit);
        const bool full = (all >> bit) & 1;
        // A tile for a few keys costs more than those between them.
        constexpr int kNear = 16;
        if (!out.empty() && begin > out.back().end && begin - out.back().end < kNear) {
          append(out, out.back().end, begin, Cover::kPartial, r.S);
        }
        append(out, begin, end, full ? Cover::kFull : Cover::kPartial, r.S);
      }
    }
  }

 private:
  std::pair<int64_t, int64_t> extent(int ib, int64_t c) const {
    if (!keys) return {c * key_block, (c + 1) * key_block};
    if (c >= keys->blocks) return {0, 0};
    return keys->extents[static_cast<size_t>(keys->row(ib) * keys->blocks + c)];
  }
};

#ifdef ATTZOO_COMPILED
#define ATTZOO_NAMED_MASK(F) extern template Mask make_mask(CallableMask<F>);
ATTZOO_NAMED_MASKS(ATTZOO_NAMED_MASK)
#undef ATTZOO_NAMED_MASK
extern template Mask make_mask(Documents);
extern template Mask make_mask(GlobalTokens);
extern template Mask make_mask(DenseMask);
extern template Mask make_mask(Bands);
extern template Mask make_mask(ChosenBlocks);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/modifier/make_modifier.hpp>
#endif
