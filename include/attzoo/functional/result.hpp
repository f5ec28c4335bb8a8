#pragma once
/// \file
/// What attention returns: the output, and the weights only for those who ask.

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

namespace attzoo {

/// Attention weights that are computed when asked for, not before: the forward pass never holds
/// them. They know their shape ([B, H, L, S], or [B, L, S] for a mechanism without heads), convert
/// to a tensor, and are differentiable. A default constructed object holds nothing: all of it but
/// defined() throws c10::ValueError. Reading throws c10::Error where a tensor that the weights are
/// computed from (q, k, a mask or a bias) has been changed in place since.
/// Example: `torch::Tensor w = attn(x).weights;`
class LazyWeights {
 public:
  /// Computes the rows [begin, end) of the query axis, all other axes whole.
  using Rows = std::function<torch::Tensor(int64_t begin, int64_t end)>;
  /// Makes other rows of the rows [begin, end).
  using Change =
      std::function<torch::Tensor(const torch::Tensor& rows, int64_t begin, int64_t end)>;

  LazyWeights() = default;
  /// Weights of the given sizes [..., L, S]. Throws c10::ValueError if there are fewer than two.
  LazyWeights(std::vector<int64_t> sizes, Rows rows)
      : sizes_(std::move(sizes)), rows_(std::move(rows)) {
    TORCH_CHECK_VALUE(sizes_.size() >= 2, "LazyWeights: expected sizes [..., L, S], got ",
                      torch::IntArrayRef(sizes_));
  }

  /// False for a default constructed object, which has nothing to compute.
  bool defined() const { return static_cast<bool>(rows_); }
  /// [B, H, L, S], or [B, L, S] without heads.
  torch::IntArrayRef sizes() const {
    check_defined();
    return sizes_;
  }
  /// How many sizes there are.
  int64_t dim() const { return static_cast<int64_t>(sizes().size()); }
  /// One of them; a negative dimension counts from the last. Throws c10::IndexError if there is no
  /// such one.
  int64_t size(int64_t d) const {
    TORCH_CHECK_INDEX(-dim() <= d && d < dim(), "LazyWeights::size: dimension must be in [", -dim(),
                      ", ", dim() - 1, "], got ", d);
    return sizes()[static_cast<size_t>(d < 0 ? d + dim() : d)];
  }

  /// All weights, O(L * S) memory.
  torch::Tensor tensor() const { return rows(0, size(-2)); }
  /// The same, so that weights can be passed where a tensor is asked for.
  operator torch::Tensor() const { return tensor(); }  // NOLINT: the conversion is the point

  /// The weights of the queries [begin, end) alone, O((end - begin) * S) memory.
  /// Throws c10::ValueError unless 0 <= begin <= end <= L.
  torch::Tensor rows(int64_t begin, int64_t end) const {
    TORCH_CHECK_VALUE(0 <= begin && begin <= end && end <= size(-2),
                      "LazyWeights::rows: expected 0 <= begin <= end <= ", size(-2),
                      ", got begin=", begin, " end=", end);
    return rows_(begin, end);
  }

  /// The mean over the head axis, [B, L, S]; holds one chunk of rows of all heads at a time.
  torch::Tensor head_mean() const {
    constexpr int64_t kChunk = 128;
    if (dim() < 4) return tensor();
    std::vector<torch::Tensor> parts;
    for (int64_t i = 0; i == 0 || i < size(-2); i += kChunk) {
      parts.push_back(rows(i, std::min(i + kChunk, size(-2))).mean(1));
    }
    return torch::cat(parts, 1);
  }

  /// These weights changed row by row when they are read: w' = change(w, begin, end), of the same
  /// sizes. Example: `weights.map([](auto rows, auto, auto) { return rows / 2; })`
  LazyWeights map(Change change) const { return map(sizes().vec(), std::move(change)); }
  /// The same where the changed weights have other sizes [..., L, S], with the same L.
  LazyWeights map(std::vector<int64_t> sizes, Change change) const {
    check_defined();
    return {std::move(sizes),
            [rows = rows_, change = std::move(change)](int64_t begin, int64_t end) {
              return change(rows(begin, end), begin, end);
            }};
  }

  /// The same weights without the head axis; for mechanisms that have one head and no such axis.
  /// Throws c10::ValueError unless they are [B, 1, L, S].
  LazyWeights without_heads() const {
    TORCH_CHECK_VALUE(dim() == 4 && size(1) == 1,
                      "LazyWeights::without_heads: expected weights [B, 1, L, S], got ", sizes());
    return map({size(0), size(2), size(3)},
               [](const torch::Tensor& rows, int64_t, int64_t) { return rows.squeeze(1); });
  }

 private:
  void check_defined() const {
    TORCH_CHECK_VALUE(defined(), "LazyWeights: this result carries no weights");
  }

  std::vector<int64_t> sizes_;
  Rows rows_;
};

/// Result of every mechanism and of `attention()`. Binds to two names:
/// `auto [output, weights] = attn(x);`
struct AttentionResult {
  torch::Tensor output;  ///< modules: [B, L, d_model]; attention(): [B, H, L, Dv]
  LazyWeights weights;   ///< after dropout, so what produced the output
  /// Natural log of the softmax denominator [B, H, L]; -inf: nothing to attend. With stick_breaking
  /// that of what is left of the stick.
  torch::Tensor lse;
};

template <size_t I, class R>
requires std::is_same_v<std::remove_cvref_t<R>, AttentionResult>
auto&& get(R&& r) {
  static_assert(I < 2);
  if constexpr (I == 0) {
    return std::forward<R>(r).output;
  } else {
    return std::forward<R>(r).weights;
  }
}

}  // namespace attzoo

template <>
struct std::tuple_size<attzoo::AttentionResult> : std::integral_constant<size_t, 2> {};
template <>
struct std::tuple_element<0, attzoo::AttentionResult> {
  using type = torch::Tensor;
};
template <>
struct std::tuple_element<1, attzoo::AttentionResult> {
  using type = attzoo::LazyWeights;
};
