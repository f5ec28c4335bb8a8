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
#include <attzoo/core/modifier/symbol.hpp>
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
        ((kernel::Lane<I> || std::same_as<I, TensorLane> || std::same_as<I, Interval> ||
          std::same_as<I, Symbol>) ||
         ...),
        "attzoo: one index of a table at least must come from b, h, q or kv: write t(0 * h) "
        "for t(0)");
    if constexpr ((std::same_as<I, TensorLane> || ...)) {
      return gather({TensorLane(index)...});
    } else if constexpr ((std::same_as<I, Symbol> || ...)) {
      return SymbolGraph::current()->entry(tensor_, {Symbol(index)...});
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

#ifdef ATTZOO_DEFINE_CORE

namespace attzoo::core {

ATTZOO_API void Table::check_rank(size_t indices) const {
  TORCH_CHECK_VALUE(static_cast<int64_t>(indices) == tensor_.dim(), "table: a tensor ",
                    tensor_.sizes(), " needs ", tensor_.dim(), " indices, got ", indices);
}

ATTZOO_API void check_whole(bool whole, int64_t d) {
  TORCH_CHECK_VALUE(whole, "table: index ", d, " must be a whole number, got a floating one");
}

ATTZOO_API TensorLane Table::gather(const std::vector<TensorLane>& index) const {
  check_rank(index.size());
  c10::List<std::optional<torch::Tensor>> places;
  for (size_t i = 0; i < index.size(); ++i) {
    const auto d = static_cast<int64_t>(i);
    check_whole(index[i].whole, d);
    const auto place = index[i].t.detach().to(torch::kInt64).to(tensor_.device());
    if (place.numel() > 0) {
      const int64_t low = place.min().item<int64_t>(), high = place.max().item<int64_t>();
      TORCH_CHECK_INDEX(low >= 0 && high < tensor_.size(d), "table: index ", d, " must lie in [0, ",
                        tensor_.size(d), ") of the tensor ", tensor_.sizes(), ", got ",
                        low < 0 ? low : high,
                        "; pairs that a mask forbids count too: write clamp(i, 0, ",
                        tensor_.size(d) - 1, ") for an index i");
    }
    places.push_back(place);
  }
  const auto entries = torch::index(tensor_, places).to(torch::kFloat64);
  return {grid_ ? grid_->counted(entries) : entries, is_whole()};
}

ATTZOO_API void Table::note(std::vector<Interval> index) const {
  uses()->push_back({this, std::move(index)});
}

ATTZOO_API Interval Table::bounds() const {
  if (bounds_) return *bounds_;
  if (!is_whole() || tensor_.numel() == 0) return Interval::any({is_whole(), true});
  const auto values = tensor_.detach().to(torch::kFloat64);
  const double low = values.min().item<double>(), high = values.max().item<double>();
  constexpr double kExact = 9007199254740992.0;  // 2^53
  TORCH_CHECK_VALUE(low >= -kExact && high <= kExact,
                    "table: integers must lie within +-2^53, where doubles hold them, got ",
                    -low > high ? low : high);
  return {low, high, {true, true}};
}

ATTZOO_API void Table::bind() {
  visited_ = true;
  bounds_.emplace(bounds());
  data_ = tensor_.detach().resolve_neg().to(torch::kFloat64).contiguous();
  view_.data = data_.const_data_ptr<double>();
  view_.whole = is_whole();
  for (int64_t d = 0; d < data_.dim(); ++d) {
    view_.size[d] = static_cast<int32_t>(data_.size(d));
    view_.stride[d] = static_cast<int32_t>(data_.stride(d));
  }
}

ATTZOO_API bool Table::holds(const TableUse& use, const torch::Device& device) const {
  TORCH_CHECK_VALUE(visited_,
                    "table: a modifier must hold its tables by value: capture with [=], "
                    "not with [&], and no static or global one");
  check_rank(use.index.size());
  TORCH_CHECK_VALUE(tensor_.device() == device, "table: the tensor must be on ", device, ", got ",
                    tensor_.device());
  bool within = true;
  for (size_t d = 0; d < use.index.size(); ++d) {
    check_whole(use.index[d].kind.whole, static_cast<int64_t>(d));
    within &= use.index[d].low >= 0 &&
              use.index[d].high < static_cast<double>(tensor_.size(static_cast<int64_t>(d)));
  }
  return within;
}

ATTZOO_API void check_table(const torch::Tensor& t) {
  TORCH_CHECK_VALUE(t.defined(), "table: expected a tensor, got an undefined one");
  TORCH_CHECK_TYPE(!t.is_nested(), "table: expected a dense tensor, got a nested one");
  TORCH_CHECK_TYPE(is_supported_float(t.scalar_type()) ||
                       torch::isIntegralType(t.scalar_type(), /*includeBool=*/true),
                   "table: expected integers or floats of 16, 32 or 64 bits, got ",
                   t.scalar_type());
  TORCH_CHECK_VALUE(t.layout() == torch::kStrided && !t.is_meta(),
                    "table: expected a dense tensor with storage, got layout ", t.layout(), " on ",
                    t.device());
  TORCH_CHECK_VALUE(t.dim() >= 1 && t.dim() <= 4, "table: expected rank 1 to 4, got ", t.sizes());
  TORCH_CHECK_VALUE(t.numel() < (int64_t{1} << 31), "table: expected fewer than 2^31 entries, got ",
                    t.sizes());
}

}  // namespace attzoo::core

#endif
