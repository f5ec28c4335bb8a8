#pragma once
/// \file
/// Attention by its definition, a few query rows at a time, recomputed in the backward pass: any
/// device, any modifier, O(rows * S) memory beyond the inputs.

#include <attzoo/core/autograd.hpp>

#include <algorithm>

namespace attzoo::core {

/// Rows of one chunk: scores of all heads stay below 64 MiB in float32, where 16 rows do.
inline int64_t chunk_rows(const Shape& n) {
  constexpr int64_t kScores = int64_t{1} << 24, kLeast = 16;
  if (!product_at_most({n.B, n.H, n.S}, kScores / kLeast)) return kLeast;
  return kScores / std::max<int64_t>(1, n.B * n.H * n.S);
}

template <MaskMod Mask, ScoreMod Score>
class ChunkedKernel final : public AttentionKernel {
 public:
  ChunkedKernel(Mask mask, Score score, double scale, Dropout dropout, int64_t chunk_rows)
      : mask_(std::move(mask)),
        score_(std::move(score)),
        scale_(scale),
        dropout_(dropout),
        chunk_rows_(chunk_rows),
        learning_(learning_tensors(score_)) {}

  torch::autograd::variable_list learnable() const override { return learning_; }

  Captured held() const override {
    Captured all;
    held_tensors(mask_, all);
    held_tensors(score_, all);
    return all;
  }

  OutputAndLse forward(const torch::Tensor& q, const torch::Tensor& k,
                       const torch::Tensor& v) const override {
    // Whole at once, so that what does not fit is known before anything is computed.
    const auto output = torch::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
    const auto lse =
        torch::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(compute_dtype(q)));
    for_each_chunk(q, k, [&](const Grid& grid) {
      const auto r = rows(grid, q.slice(2, grid.q_begin, grid.q_end), k, v);
      output.slice(2, grid.q_begin, grid.q_end).copy_(r.output);
      lse.slice(2, grid.q_begin, grid.q_end).copy_(r.lse);
    });
    return {output, lse};
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
      torch::autograd::variable_list outputs, cotangents;
      if (grad_output.defined()) {
        outputs.push_back(r.output);
        cotangents.push_back(part(grad_output));
      }
      if (grad_lse.defined() && r.lse.requires_grad()) {  // scores may ignore q k^T
        outputs.push_back(r.lse);
        cotangents.push_back(part(grad_lse));
      }
      const auto grads = outputs.empty()
                             ? torch::autograd::variable_list(inputs.size())
                             : torch::autograd::grad(outputs, inputs, cotangents, std::nullopt,
                                                     false, /*allow_unused=*/true);
      grad_q.push_back(grads[0].defined() ? grads[0] : torch::zeros_like(inputs[0]));
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
    return {weighted_values(r, v).to(v.scalar_type()), r.lse};
  }

  Mask mask_;
  Score score_;
  double scale_;
  Dropout dropout_;
  int64_t chunk_rows_;
  torch::autograd::variable_list learning_;
};

}  // namespace attzoo::core
