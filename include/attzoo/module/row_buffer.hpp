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
  int64_t pins = 0;  ///< so many of them have memory from the beginning

  /// Whether it does without the oldest tokens of a sequence without end. A reach beyond all that
  /// the kernels count to is all.
  bool forgets() const { return reach < int64_t{1} << 31; }
  bool operator==(const Keeps&) const = default;
};

namespace core {

/// Heads of keys and values, and the features of each; d_v = 0: values are made of the keys.
struct KvRows {
  int64_t heads, d_k, d_v;
};

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

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>
#include <attzoo/module/cache.hpp>

#include <algorithm>
#include <cstring>
#include <utility>

namespace attzoo::core {

// Twice the rows that are needed, so that they move once for as many appended ones.
ATTZOO_API int64_t RowBuffer::rows_for(int64_t capacity, const Keeps& keeps) {
  return keeps.reach >= capacity
             ? capacity
             : std::min(capacity, 2 * (keeps.reach + kTakenBack) + keeps.unit + keeps.pins);
}

ATTZOO_API RowBuffer::RowBuffer(std::vector<torch::Tensor> like, int64_t capacity,
                                const Keeps& keeps)
    : memory_(std::move(like)),
      keeps_(keeps),
      pinned_(torch::empty({0}, memory_[0].options().dtype(torch::kInt64))) {
  take_memory(rows_for(capacity, keeps));
}

ATTZOO_API void RowBuffer::take_memory(int64_t rows) {
  const c10::InferenceMode no_inference(false);  // so that it may be written outside of that, too
  size_ = rows;
  for (auto& t : memory_) t = t.new_empty({t.size(0), t.size(1), rows, t.size(3)});
}

ATTZOO_API void RowBuffer::keep(const std::vector<torch::Tensor>& rows) {
  const int64_t length = first_ + rows[0].size(2) - pinned();
  const int64_t needed = std::max<int64_t>(0, length - keeps_.reach - kTakenBack);
  const int64_t first = std::max(first_, needed / keeps_.unit * keeps_.unit);
  const auto behind = torch::arange(first, length, pinned_.options());
  auto kept = behind - first_ + pinned();  // as rows of `rows`
  if (keeps_.pinned >= 0) {
    const auto flags =
        rows[static_cast<size_t>(keeps_.pinned)].slice(2, pinned(), pinned() + first - first_);
    const auto more = flags.any(3).any(1).any(0).nonzero().squeeze(1);
    kept = torch::cat({torch::arange(pinned(), pinned_.options()), more + pinned(), kept});
    pinned_ = torch::cat({pinned_, more + first_});
  }
  std::vector<torch::Tensor> moved;
  for (const auto& t : rows) moved.push_back(t.index_select(2, kept));
  if (const int64_t size = 2 * (length - first) + pinned(); keeps_.pinned >= 0 && size > size_) {
    take_memory(size);
  }
  first_ = first;
  held_ = length - first;
  for (size_t i = 0; i < rows.size(); ++i) this->rows(i).copy_(moved[i]);
}

/// Copies `rows` [B, heads, L, features] to the rows from `first` on of a buffer's memory.
inline void write_rows(const torch::Tensor& memory, int64_t first, torch::Tensor rows) {
  const int64_t L = rows.size(2), features = memory.size(3);
  if (L > 4 || !rows.device().is_cpu() || rows.scalar_type() != memory.scalar_type() ||
      !memory.device().is_cpu() || !memory.is_contiguous() || rows.stride(3) != 1) {
    memory.narrow(2, first, L).copy_(rows);
    return;
  }
  // Few: calls of ATen's operators would take longer than the work.
  rows = plain(rows);
  memory.unsafeGetTensorImpl()->bump_version();
  const auto size = static_cast<size_t>(memory.element_size());
  const auto* from = static_cast<const char*>(rows.const_data_ptr());
  auto* to = static_cast<char*>(memory.mutable_data_ptr());
  for (int64_t i = 0; i < memory.size(0) * memory.size(1) * L; ++i) {
    const int64_t l = i % L, h = i / L % memory.size(1), b = i / L / memory.size(1);
    const auto at =
        static_cast<size_t>(b * rows.stride(0) + h * rows.stride(1) + l * rows.stride(2));
    const auto row = static_cast<size_t>((i / L * memory.size(2) + first + l) * features);
    std::memcpy(to + row * size, from + at * size, static_cast<size_t>(features) * size);
  }
}

ATTZOO_API RowBuffer::View RowBuffer::append(const std::vector<torch::Tensor>& rows, bool whole) {
  const auto all = [&] {
    std::vector<torch::Tensor> kinds;
    for (size_t i = 0; i < memory_.size(); ++i) kinds.push_back(this->rows(i));
    return kinds;
  };
  const int64_t count = rows[0].size(2);
  if (!whole && pinned() + held_ + count > size_) keep(all());
  View view{{}, {pinned_, first_, length() + count}};
  if (pinned() + held_ + count <= size_) {
    for (size_t i = 0; i < rows.size(); ++i) {
      write_rows(memory_[i], pinned() + held_, rows[i]);
    }
    held_ += count;
    view.rows = all();
  } else {  // more at once than the memory has: they are read from a copy
    for (size_t i = 0; i < rows.size(); ++i) {
      view.rows.push_back(torch::cat({this->rows(i), rows[i].to(memory_[i].scalar_type())}, 2));
    }
    keep(view.rows);
  }
  return view;
}

ATTZOO_API int64_t RowBuffer::earliest() const {
  return first_ == 0 ? 1 : std::min(first_ + keeps_.reach, length());
}

ATTZOO_API int64_t RowBuffer::bytes() const {
  int64_t bytes = 0;
  for (const auto& t : memory_) bytes += static_cast<int64_t>(t.nbytes());
  return bytes;
}

ATTZOO_API void RowBuffer::truncate(int64_t n) {
  if (n == 0) {
    first_ = 0;
    pinned_ = pinned_.slice(0, 0, 0);
  }
  held_ = n - first_;
}

ATTZOO_API void RowBuffer::reorder(const torch::Tensor& order) {
  for (size_t i = 0; i < memory_.size(); ++i) rows(i).copy_(rows(i).index_select(0, order));
}

ATTZOO_API RowBuffer RowBuffer::clone() const {
  auto copy = *this;
  copy.take_memory(size_);
  for (size_t i = 0; i < memory_.size(); ++i) copy.rows(i).copy_(rows(i));
  return copy;
}

}  // namespace attzoo::core

#endif
