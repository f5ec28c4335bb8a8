#pragma once
/// \file
/// Attention by its definition, a few query rows at a time, recomputed in the backward pass: any
/// device, any modifier, O(rows * S) memory beyond the inputs.

#include <attzoo/core/autograd.hpp>

#include <algorithm>

namespace attzoo::core {

/// Rows of one chunk: scores of all heads stay below 64 MiB in float32, where 16 rows do.
inline int64_t chunk_rows(const Shape& n) {
  constexpr int64_t kScores = int64_t{1} << 24;
  return std::max<int64_t>(16, kScores / std::max<int64_t>(1, n.B * n.H * n.S));
}

template <MaskMod Mask, ScoreMod Score>
class ChunkedKernel final : public AttentionKernel {
 public:
  ChunkedKernel(Mask mask, Score score, double scale, Dropout dropout, int64_t chunk_rows)
      : mask_(std::move(mask)),
        score_(std::move(score)),
        scale_(scale),
        dropout_(dropout),
        chunk_rows_(chunk_rows) {}

  torch::autograd::variable_list learnable() const override { return learning_tensors(score_); }

  OutputAndLse forward(const torch::Tensor& q, const torch::Tensor& k,
                       const torch::Tensor& v) const override {
    std::vector<torch::Tensor> outputs, lse;
    for_each_chunk(q, k, [&](const Grid& grid) {
      const auto r = rows(grid, q.slice(2, grid.q_begin, grid.q_end), k, v);
      outputs.push_back(r.output);
      lse.push_back(r.lse);
    });
    return {torch::cat(outputs, 2), torch::cat(lse, 2)};
  }

  torch::autograd::variable_list backward(const torch::Tensor& q, const torch::Tensor& k,
                                          const torch::Tensor& v, const OutputAndLse&,
                                          const torch::Tensor& grad_output,
                                          const torch::Tensor& grad_lse) const override {
    torch::AutoGradMode enable(true);
    const auto leaf = [](const torch::Tensor& t) { return t.detach().requires_grad_(); };
    const auto keys = leaf(k), values = leaf(v);
    const auto tensors = learnable();
    std::vector<torch::Tensor> grad_q;
    torch::autograd::variable_list sums(2 + tensors.size());  // of keys, values, tensors
    for_each_chunk(q, k, [&](const Grid& grid) {
      const auto part = [&](const torch::Tensor& t) {
        return t.slice(2, grid.q_begin, grid.q_end);
      };
      torch::autograd::variable_list inputs{leaf(part(q)), keys, values};
      inputs.insert(inputs.end(), tensors.begin(), tensors.end());
      const auto r = rows(grid, inputs[0], keys, values);
      torch::autograd::variable_list outputs{r.output}, cotangents{part(grad_output)};
      if (grad_lse.defined()) {
        outputs.push_back(r.lse);
        cotangents.push_back(part(grad_lse));
      }
      const auto grads = torch::autograd::grad(outputs, inputs, cotangents, std::nullopt, false,
                                               /*allow_unused=*/true);
      grad_q.push_back(grads[0]);
      for (size_t i = 0; i < sums.size(); ++i) {
        if (!grads[i + 1].defined()) continue;
        sums[i] = sums[i].defined() ? sums[i] + grads[i + 1] : grads[i + 1];
      }
    });
    sums.insert(sums.begin(), torch::cat(grad_q, 2));
    return sums;
  }

  OutputAndLse reference(const torch::Tensor& q, const torch::Tensor& k,
                         const torch::Tensor& v) const override {
    return core::reference(q, k, v, mask_, score_, scale_, dropout_);
  }

 private:
  template <class F>
  void for_each_chunk(const torch::Tensor& q, const torch::Tensor& k, F&& f) const {
    const Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
    for (int64_t begin = 0; begin < n.L; begin += chunk_rows_) {
      f(Grid(n, begin, std::min(n.L, begin + chunk_rows_), q.device()));
    }
  }

  OutputAndLse rows(const Grid& grid, const torch::Tensor& q_rows, const torch::Tensor& k,
                    const torch::Tensor& v) const {
    const auto r = grid_weights(grid, q_rows, k, mask_, score_, scale_, dropout_);
    return {grouped_matmul(r.weights, v.to(r.weights.scalar_type())).to(v.scalar_type()), r.lse};
  }

  Mask mask_;
  Score score_;
  double scale_;
  Dropout dropout_;
  int64_t chunk_rows_;
};

}  // namespace attzoo::core
