#pragma once
/// \file
/// Rows that are appended in memory taken once, the oldest of which may be forgotten.

#include <attzoo/config.hpp>
#include <attzoo/core/views.hpp>

#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace attzoo {

/// Which tokens a cache keeps: what a mechanism's keeps() returns. By default all.
struct Keeps {
  /// No limit.
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  int64_t reach = kAll;  ///< how many tokens back a query sees: `{.reach = window}`
  int64_t unit = 1;      ///< tokens are forgotten in multiples of this, as blocks need
  /// Which of a cache's tensors, bool, says of tokens that they are never forgotten; -1: none. The
  /// base sets it where there are global tokens.
  int pinned = -1;

  /// Whether it does without the oldest tokens of a sequence without end. A reach beyond all that
  /// the kernels count to is all.
  bool forgets() const { return reach < int64_t{1} << 31; }
  bool operator==(const Keeps&) const = default;
};

namespace core {

/// Which rows a view has, as tensors of numbers that few ask for.
struct RowNumbers {
  torch::Tensor pinned;        ///< int64, those at the begin; undefined: no rows at all
  int64_t first = 0, end = 0;  ///< behind them: first ... end - 1

  int64_t count() const { return pinned.size(0) + end - first; }
  /// int64 [count]
  torch::Tensor tensor() const {
    return torch::cat({pinned, torch::arange(first, end, pinned.options())});
  }
};

/// Several tensors [B, heads, rows, features] that grow together. The rows that are kept lie in
/// order, so that they are plain slices: the pinned ones, and all from a first one on. Where the
/// memory ends, those that are still needed move to its begin, which costs one copy of a row for
/// each that is appended.
class RowBuffer {
 public:
  /// `like`: one tensor [B, heads, 0, features] of each kind.
  RowBuffer(std::vector<torch::Tensor> like, int64_t capacity, const Keeps& keeps);
  /// How many rows it takes memory for.
  static int64_t rows_for(int64_t capacity, const Keeps& keeps);

  /// What the appended rows are read together with.
  struct View {
    std::vector<torch::Tensor> rows;  ///< of each kind, the appended ones last
    RowNumbers numbers;               ///< of the rows
  };
  /// Appends rows of each kind [B, heads, L, features], converted to the kind's dtype. With `whole`
  /// they are read together with all that was kept before.
  View append(const std::vector<torch::Tensor>& rows, bool whole = false);

  int64_t length() const { return first_ + held_; }  ///< rows ever appended, but for truncated ones
  bool whole() const { return first_ == 0; }         ///< whether nothing was forgotten
  bool keeps_all() const { return keeps_.reach == Keeps::kAll; }  ///< whether it never forgets
  int64_t earliest() const;  ///< the least n > 0 for truncate()
  int64_t bytes() const;
  void truncate(int64_t n);
  void reorder(const torch::Tensor& order);
  RowBuffer clone() const;
  /// All kept rows of one kind.
  torch::Tensor rows(size_t kind) const { return view_rows(memory_[kind], 0, pinned() + held_); }

 private:
  int64_t pinned() const { return pinned_.size(0); }
  /// Of `rows`, laid out as the memory is, keeps what the rows after them will need.
  void keep(const std::vector<torch::Tensor>& rows);
  void take_memory(int64_t rows);

  std::vector<torch::Tensor> memory_;
  Keeps keeps_;
  int64_t size_ = 0;              // rows of the memory
  torch::Tensor pinned_;          // int64, the numbers of the rows at the begin of the memory
  int64_t first_ = 0, held_ = 0;  // behind them: rows first_ ... first_ + held_ - 1
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/row_buffer.ipp>
#endif
