#pragma once
/// \file
/// Lists of keys by their numbers: those of the greatest scores, and copies and sums of their rows.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// The `count` greatest of each row [.., S], later ones first among equals; -1 for those of -inf.
ATTZOO_API torch::Tensor greatest(const torch::Tensor& scores, int64_t count);

/// The rows of t [B, H, S, D] by index int64 [B, U, R, M], where U is a multiple of H: of head
/// u / (U / H). [B, U, R, M, D]; differentiable.
ATTZOO_API torch::Tensor take_rows(const torch::Tensor& t, const torch::Tensor& index);

/// The reverse: adds rows [B, U, R, M, D] to those of sum [B, H, S, D], contiguous and of a type
/// that rows can be converted to.
ATTZOO_API void add_rows(torch::Tensor& sum, const torch::Tensor& index, const torch::Tensor& rows);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace attzoo::core {

ATTZOO_API torch::Tensor greatest(const torch::Tensor& scores, int64_t count) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const int64_t S = scores.size(-1);
  if (!scores.device().is_cpu()) {
    const auto [values, places] =
        torch::sort(scores.flip(-1), /*stable=*/true, /*dim=*/-1, /*descending=*/true);
    return (S - 1 - places.slice(-1, 0, count))
        .masked_fill(values.slice(-1, 0, count) == -kInf, -1);
  }
  const auto rows = scores.contiguous();
  auto sizes = scores.sizes().vec();
  sizes.back() = count;
  const auto found = torch::empty(sizes, torch::kInt64);
  auto* out = found.mutable_data_ptr<int64_t>();
  const auto choose = [&]<class T>(T) {
    const T* all = rows.const_data_ptr<T>();
    at::parallel_for(0, rows.numel() / S, 1 + 4096 / S, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> order(static_cast<size_t>(S));
      for (int64_t row = begin; row < end; ++row) {
        const T* score = all + row * S;
        order.clear();
        for (int64_t j = 0; j < S; ++j) {
          if (score[j] > -std::numeric_limits<T>::infinity()) order.push_back(j);
        }
        const auto size = static_cast<int64_t>(order.size());
        if (size > count) {
          std::nth_element(order.begin(), order.begin() + count, order.end(),
                           [score](int64_t a, int64_t b) {
                             return score[a] > score[b] || (score[a] == score[b] && a > b);
                           });
        }
        for (int64_t j = 0; j < count; ++j) {
          out[row * count + j] = j < size ? order[static_cast<size_t>(j)] : -1;
        }
      }
    });
  };
  if (found.numel() > 0) rows.scalar_type() == torch::kFloat64 ? choose(double()) : choose(float());
  return found;
}

/// Where the rows of heads begin, counted in rows: int64 [B, U, 1, 1].
ATTZOO_API torch::Tensor first_rows(const torch::Tensor& index, int64_t H, int64_t of_batch,
                                    int64_t of_head) {
  const int64_t B = index.size(0), U = index.size(1);
  const auto b = torch::arange(B, index.options()).view({B, 1, 1, 1}) * of_batch;
  const auto h = torch::div(torch::arange(U, index.options()), U / H, "floor").view({1, U, 1, 1});
  return b + h * of_head;
}

ATTZOO_API torch::Tensor take_rows(const torch::Tensor& t, const torch::Tensor& index) {
  const int64_t H = t.size(1), S = t.size(2), D = t.size(3);
  auto sizes = index.sizes().vec();
  sizes.push_back(D);
  const bool learns = torch::GradMode::is_enabled() && t.requires_grad();
  if (index.numel() == 0 || S == 0 || learns || !t.device().is_cpu()) {
    const auto flat = t.reshape({-1, D});
    if (flat.size(0) == 0) return t.new_zeros(sizes) + 0 * t.sum();
    const auto at = index + first_rows(index, H, H * S, S);
    return flat.index_select(0, at.flatten()).view(sizes);
  }
  const auto from = t.stride(3) == 1 || D == 1 ? t : t.contiguous();
  const auto rows = torch::empty(sizes, t.options());
  const auto bytes = static_cast<size_t>(D) * static_cast<size_t>(t.element_size());
  const auto element = static_cast<int64_t>(t.element_size());
  const int64_t U = index.size(1), each = index.size(2) * index.size(3);
  const auto numbers = index.contiguous();
  const auto* number = numbers.const_data_ptr<int64_t>();
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(rows.mutable_data_ptr());
  at::parallel_for(
      0, index.numel(), 1 + 32768 / std::max<int64_t>(1, D * element),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t u = i / each % U, b = i / each / U;
          const int64_t at =
              b * from.stride(0) + u / (U / H) * from.stride(1) + number[i] * from.stride(2);
          std::memcpy(target + static_cast<size_t>(i) * bytes, source + at * element, bytes);
        }
      });
  return rows;
}

ATTZOO_API void add_rows(torch::Tensor& sum, const torch::Tensor& index,
                         const torch::Tensor& rows_in) {
  const auto rows = rows_in.to(sum.scalar_type()).contiguous();
  const int64_t B = sum.size(0), H = sum.size(1), S = sum.size(2), D = sum.size(3);
  if (index.numel() == 0 || D == 0) return;
  if (!sum.device().is_cpu()) {
    const auto at = index + first_rows(index, H, H * S, S);
    sum.view({-1, D}).index_add_(0, at.flatten(), rows.view({-1, D}));
    return;
  }
  const auto numbers = index.contiguous();
  const auto* number = numbers.const_data_ptr<int64_t>();
  const int64_t each = index.numel() / (B * H);
  // Threads have heads of their own, or columns of them.
  const int64_t threads = at::get_num_threads();
  const int64_t pieces = std::clamp<int64_t>((threads + B * H - 1) / (B * H), 1, 1 + (D - 1) / 16);
  const int64_t width = (D + pieces - 1) / pieces;
  const auto add = [&]<class T>(T) {
    const T* from = rows.const_data_ptr<T>();
    T* to = sum.mutable_data_ptr<T>();
    at::parallel_for(0, B * H * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / pieces, first = task % pieces * width;
        const int64_t last = std::min(D, first + width);
        for (int64_t i = head * each; i < (head + 1) * each; ++i) {
          const T* r = from + i * D;
          T* s = to + (head * S + number[i]) * D;
          for (int64_t d = first; d < last; ++d) s[d] += r[d];
        }
      }
    });
  };
  sum.scalar_type() == torch::kFloat64 ? add(double()) : add(float());
}

}  // namespace attzoo::core

#endif
