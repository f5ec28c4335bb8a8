#pragma once
// Definitions of table.hpp.

#include <attzoo/core/modifier/table.hpp>

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
