#pragma once
// Definitions of grid.hpp.

#include <attzoo/core/modifier/grid.hpp>

#include <algorithm>

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
