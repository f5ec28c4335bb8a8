#pragma once
/// \file
/// Tensors that a modifier's callable looks things up in: what `table(tensor)` gives.
///
/// A callable holds its tables by value, and they tell each other apart from plain copies by this:
/// copied within copy_with_tables(), a table hands itself to a visitor. So a callable is bound to a
/// problem by copying it, nothing that it shares with others changes, and it may run on any number
/// of threads at once.

#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/interval.hpp>
#include <attzoo/core/modifier/tensor_lane.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

#include <array>
#include <functional>
#include <optional>
#include <vector>

namespace attzoo::core {

class Table;

/// An entry that a callable reads: of which table, and between which bounds its indices lie.
struct TableUse {
  const Table* table;
  std::vector<Interval> index;
};

class Table {
 public:
  explicit Table(torch::Tensor tensor) : tensor_(std::move(tensor)) {}
  Table(const Table& other)
      : tensor_(other.tensor_),
        data_(other.data_),
        view_(other.view_),
        grid_(other.grid_),
        bounds_(other.bounds_),
        visited_(other.visited_) {
    if (visitor() && *visitor()) (*visitor())(*this);
  }
  Table(Table&&) = default;
  Table& operator=(const Table&) = default;
  Table& operator=(Table&&) = default;
  ~Table() = default;

  /// The entry at these indices, one for each dimension.
  template <class... I>
  ATTZOO_ALWAYS_INLINE auto operator()(const I&... index) const {
    static_assert(sizeof...(I) >= 1 && sizeof...(I) <= 4,
                  "attzoo: a table has one index for each of its 1 to 4 dimensions");
    static_assert(
        ((kernel::Lane<I> || std::same_as<I, TensorLane> || std::same_as<I, Interval>) || ...),
        "attzoo: one index of a table at least must come from b, h, q or kv: write t(0 * h) "
        "for t(0)");
    if constexpr ((std::same_as<I, TensorLane> || ...)) {
      return gather({TensorLane(index)...});
    } else if constexpr ((std::same_as<I, Interval> || ...)) {
      if (uses()) note({Interval(index)...});
      return bounds();
    } else {
      static_assert((kIsIndex<I> && ...), "attzoo: an index of a table must be a whole number");
      return view_.at(index...);
    }
  }

  const torch::Tensor& tensor() const { return tensor_; }
  bool is_whole() const { return !tensor_.is_floating_point(); }
  bool learns() const { return torch::GradMode::is_enabled() && tensor_.requires_grad(); }

  /// Another tensor of the same sizes, whose gradient begins at `place` among others.
  void replace(torch::Tensor tensor, int64_t place) {
    tensor_ = std::move(tensor);
    view_.gradient = place;
  }
  /// Makes the table readable for the kernel.
  void bind();
  void mark() { visited_ = true; }
  /// Makes the gradients of entries end where those of scores do (Grid::counted). The grid must
  /// outlive the table's use.
  void look_up_on(const Grid& grid) { grid_ = &grid; }

  /// Whether all that `use` reads lies within; throws where the indices do not suit the table at
  /// all.
  bool holds(const TableUse& use, const torch::Device& device) const;

  using Visitor = std::function<void(Table&)>;
  static Visitor*& visitor() {
    static thread_local Visitor* current = nullptr;
    return current;
  }
  static std::vector<TableUse>*& uses() {
    static thread_local std::vector<TableUse>* current = nullptr;
    return current;
  }

 private:
  template <class I>
  static constexpr bool kIsIndex = kernel::LaneTraits<kernel::Lifted<I>>::kInteger ||
                                   kernel::LaneTraits<kernel::Lifted<I>>::kEntry;

  TensorLane gather(const std::vector<TensorLane>& index) const;
  void note(std::vector<Interval> index) const;
  /// Between which its entries lie.
  Interval bounds() const;
  void check_rank(size_t indices) const;

  torch::Tensor tensor_;
  torch::Tensor data_;  // what view_ points into
  kernel::TableView view_;
  const Grid* grid_ = nullptr;
  std::optional<Interval> bounds_;  // once it is bound
  bool visited_ = false;
};

/// Throws c10::Error where attzoo::table() does.
ATTZOO_API void check_table(const torch::Tensor& t);

/// A copy of a callable; `visit` gets each table of the copy.
template <class F>
F copy_with_tables(const F& f, Table::Visitor visit) {
  struct Restore {
    Table::Visitor* before = Table::visitor();
    ~Restore() { Table::visitor() = before; }
  };
  const Restore restore;
  Table::visitor() = &visit;
  F copy(f);
  Table::visitor() = nullptr;
  return copy;
}

/// A copy that the kernel can read.
template <class F>
F bind_tables(const F& f) {
  return copy_with_tables(f, [](Table& t) { t.bind(); });
}

/// Appends the tensors of its tables.
template <class F>
void tensors_of_tables(const F& f, std::vector<torch::Tensor>& out) {
  copy_with_tables(f, [&](Table& t) { out.push_back(t.tensor()); });
}

/// Checks the tables of a callable against a problem. `on_intervals` runs it on intervals. True if
/// every index is seen to lie within; where that is not evident, the callable must run on the whole
/// grid, which throws for one that does not.
template <class F, class Run>
bool check_tables(const F& f, const torch::Device& device, Run on_intervals) {
  const F copy = copy_with_tables(f, [](Table& t) { t.mark(); });
  std::vector<TableUse> uses;
  struct Restore {
    ~Restore() { Table::uses() = nullptr; }
  };
  const Restore restore;
  Table::uses() = &uses;
  on_intervals(copy);
  bool within = true;
  for (const auto& use : uses) within &= use.table->holds(use, device);
  return within;
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/table.ipp>
#endif
