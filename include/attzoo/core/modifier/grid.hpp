#pragma once
/// \file
/// A part of the [B, H, L, S] score grid, on which masks and score modifiers say what they mean.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>

#include <functional>
#include <memory>
#include <vector>

namespace attzoo::core {

/// Tensors that modifiers hold.
using Captured = std::vector<torch::Tensor>;

/// Some places of one axis, in order: begin, begin + step, ... or a list of them.
class Places {
 public:
  /// None that is known.
  Places() = default;
  /// The places begin, begin + step, ... before `end`.
  Places(int64_t begin, int64_t end, const torch::Device& device, int64_t step = 1);
  /// int64 [count].
  explicit Places(torch::Tensor list) : index_(std::move(list)) {}

  bool known() const { return index_.defined(); }
  const torch::Tensor& index() const { return index_; }
  int64_t count() const { return index_.size(0); }
  /// The same places counted from `by` earlier.
  Places shifted(int64_t by) const;
  /// The entries of a dimension: a view of a run, a copy by a list.
  torch::Tensor of(const torch::Tensor& t, int64_t dim) const;
  /// The same where a size of 1 broadcasts, and stays.
  torch::Tensor broadcast(const torch::Tensor& t, int64_t dim) const {
    return t.size(dim) == 1 ? t : of(t, dim);
  }
  /// t's entries at these places become, or grow by, those of `values`.
  void assign(torch::Tensor& t, int64_t dim, const torch::Tensor& values) const;
  void add(torch::Tensor& t, int64_t dim, const torch::Tensor& values) const;

 private:
  torch::Tensor index_;
  int64_t begin_ = 0, end_ = 0, step_ = 0;  // 0: a list
};

/// Where the queries and keys of a problem stand in another one, whose indices modifiers count: as
/// tokens that were sorted, or those that a cache still has.
struct PairNumbers {
  Shape of;            ///< the other problem
  torch::Tensor q, k;  ///< int64 [1 or B, 1 or H, L], places among its keys, and [.., S], its keys
  int64_t heads = 1;   ///< of this problem for each one of the other
};

/// The entries of t at these indices, which broadcast; a dimension of size 1 does, too.
ATTZOO_API torch::Tensor scattered(const torch::Tensor& t, const std::vector<torch::Tensor>& index);

/// Queries and keys of the grid: the index of every entry, as tensors that broadcast against each
/// other, and the lengths of the whole.
struct Grid {
  Shape shape;
  Places rows, columns;               // none where indices are scattered
  torch::Tensor b, h, q, kv;          // [B,1,1,1] [1,H,1,1] [1,1,rows,1] [1,1,1,columns], int64;
                                      // scattered: any that broadcast
  torch::Tensor without_weight = {};  // bool [B, H, rows, columns]; undefined: nobody asks

  Grid(const Shape& n, Places rows, Places columns);
  /// The queries [begin, end) and all keys.
  Grid(const Shape& n, int64_t begin, int64_t end, const torch::Device& device)
      : Grid(n, Places(begin, end, device), Places(0, n.S, device)) {}
  /// The same pairs with the indices that they have in another problem, which are scattered there.
  Grid at(const PairNumbers& numbers) const;

  /// The queries as places among the keys: the last query meets the last key.
  torch::Tensor aligned_q() const { return q + (shape.S - shape.L); }
  /// This part of a tensor [1 or B, 1 or H, 1 or L, 1 or S].
  torch::Tensor of(const torch::Tensor& t) const;
  /// What a tensor [1 or B, S] says of the queries, as places among the keys, and of the keys: both
  /// broadcast to this part.
  torch::Tensor of_queries(const torch::Tensor& t) const;
  torch::Tensor of_keys(const torch::Tensor& t) const;
  /// What a tensor [1 or H] says of the heads.
  torch::Tensor of_heads(const torch::Tensor& t) const;
  /// x, and no gradient of it where a pair has weight 0: its score is -inf or far below others, and
  /// its derivative may be infinite or NaN.
  torch::Tensor counted(const torch::Tensor& x) const {
    if (!without_weight.defined() || !x.requires_grad()) return x;
    return torch::where(without_weight, x.detach(), x);
  }
};

/// The entries of a tensor [1 or B, 1 or H, 1 or L, 1 or S] of the other problem for all pairs.
ATTZOO_API torch::Tensor entries_at(const torch::Tensor& t, const PairNumbers& numbers);

/// Runs f on the whole grid, some rows at a time.
ATTZOO_API void for_each_grid(const Shape& n, const torch::Device& device,
                              const std::function<void(const Grid&)>& f);

/// What takes a query to its place among the keys: the last query meets the last key.
inline int shift(const Shape& n) { return static_cast<int>(n.S - n.L); }

/// The stride of a dimension that may broadcast.
inline int64_t step(const torch::Tensor& t, int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); }

/// For who points into a tensor's memory.
inline std::shared_ptr<const void> owner_of(const torch::Tensor& t) {
  return std::make_shared<torch::Tensor>(t);
}

/// A captured tensor against the sizes that the problem asks for; 1 always broadcasts. Throws
/// c10::ValueError.
ATTZOO_API void check_captured(const torch::Tensor& t, const std::vector<int64_t>& sizes,
                               const torch::Device& device, const char* who, const char* shape,
                               const Shape& n);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <ATen/core/List.h>
#include <ATen/ops/index.h>

#include <algorithm>
#include <optional>

namespace attzoo::core {

ATTZOO_API Places::Places(int64_t begin, int64_t end, const torch::Device& device, int64_t step)
    : index_(torch::arange(begin, std::max(begin, end), step,
                           torch::dtype(torch::kInt64).device(device))),
      begin_(begin),
      end_(std::max(begin, end)),
      step_(step) {}

ATTZOO_API Places Places::shifted(int64_t by) const {
  auto moved = *this;
  moved.index_ = index_ + by;
  moved.begin_ += by;
  moved.end_ += by;
  return moved;
}

ATTZOO_API torch::Tensor Places::of(const torch::Tensor& t, int64_t dim) const {
  return step_ > 0 ? t.slice(dim, begin_, end_, step_) : t.index_select(dim, index_);
}

ATTZOO_API void Places::assign(torch::Tensor& t, int64_t dim, const torch::Tensor& values) const {
  if (step_ > 0) {
    of(t, dim).copy_(values);
  } else {
    t.index_copy_(dim, index_, values);
  }
}

ATTZOO_API void Places::add(torch::Tensor& t, int64_t dim, const torch::Tensor& values) const {
  if (step_ > 0) {
    of(t, dim).add_(values);
  } else {
    t.index_add_(dim, index_, values);
  }
}

ATTZOO_API Grid::Grid(const Shape& n, Places rows_of_it, Places columns_of_it)
    : shape(n), rows(std::move(rows_of_it)), columns(std::move(columns_of_it)) {
  const auto options = rows.index().options();
  b = torch::arange(n.B, options).view({n.B, 1, 1, 1});
  h = torch::arange(n.H, options).view({1, n.H, 1, 1});
  q = rows.index().view({1, 1, -1, 1});
  kv = columns.index().view({1, 1, 1, -1});
}

ATTZOO_API Grid Grid::at(const PairNumbers& numbers) const {
  Grid there = *this;
  there.shape = numbers.of;
  there.rows = there.columns = Places();
  if (numbers.heads > 1) there.h = torch::div(h, numbers.heads, "floor");
  there.q = rows.of(numbers.q, 2).unsqueeze(3) - (numbers.of.S - numbers.of.L);
  there.kv = columns.of(numbers.k, 2).unsqueeze(2);
  return there;
}

ATTZOO_API torch::Tensor scattered(const torch::Tensor& t,
                                   const std::vector<torch::Tensor>& index) {
  torch::List<std::optional<torch::Tensor>> all;
  for (size_t d = 0; d < index.size(); ++d) {
    const bool one = t.size(static_cast<int64_t>(d)) == 1;
    all.push_back(one ? index[d].new_zeros({1, 1, 1, 1}) : index[d]);
  }
  return at::index(t, all);
}

ATTZOO_API torch::Tensor entries_at(const torch::Tensor& t, const PairNumbers& numbers) {
  const auto &of = numbers.of,
             n = Shape{of.B, of.H * numbers.heads, numbers.q.size(2), numbers.k.size(2)};
  return Grid(n, 0, n.L, t.device()).at(numbers).of(t);
}

ATTZOO_API torch::Tensor Grid::of(const torch::Tensor& t) const {
  if (!rows.known()) return scattered(t, {b, h, q, kv});
  return columns.broadcast(rows.broadcast(t, 2), 3);
}
ATTZOO_API torch::Tensor Grid::of_queries(const torch::Tensor& t) const {
  if (!rows.known()) return scattered(t, {b, aligned_q()});
  return rows.shifted(shape.S - shape.L).of(t, 1).unsqueeze(1).unsqueeze(3);
}
ATTZOO_API torch::Tensor Grid::of_keys(const torch::Tensor& t) const {
  if (!columns.known()) return scattered(t, {b, kv});
  return columns.of(t, 1).unsqueeze(1).unsqueeze(1);
}
ATTZOO_API torch::Tensor Grid::of_heads(const torch::Tensor& t) const {
  return rows.known() ? t.view({1, -1, 1, 1}) : scattered(t, {h});
}

ATTZOO_API void for_each_grid(const Shape& n, const torch::Device& device,
                              const std::function<void(const Grid&)>& f) {
  torch::NoGradGuard no_grad;
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 22) / n.S);
  for (int64_t begin = 0; begin < n.L; begin += rows) {
    f(Grid(n, begin, std::min(n.L, begin + rows), device));
  }
}

ATTZOO_API void check_captured(const torch::Tensor& t, const std::vector<int64_t>& sizes,
                               const torch::Device& device, const char* who, const char* shape,
                               const Shape& n) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; fits && d < t.dim(); ++d) {
    fits = t.size(d) == sizes[static_cast<size_t>(d)] || t.size(d) == 1;
  }
  TORCH_CHECK_VALUE(fits, who, ": the tensor must have shape ", shape, " with B=", n.B, " H=", n.H,
                    " L=", n.L, " S=", n.S, " (or 1 to broadcast), got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == device, who, ": the tensor must be on ", device, ", got ",
                    t.device());
}

}  // namespace attzoo::core

#endif
