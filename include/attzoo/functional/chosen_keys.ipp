#pragma once
// Definitions of chosen_keys.hpp.

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/chosen.hpp>
#include <attzoo/core/row_lists.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/sorted_blocks.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace attzoo {
namespace core {

/// Attention to chosen keys, some rows at a time: on the CPU in the order of blocks, where many
/// queries choose each, or by a kernel, which reads keys where they lie; or else each row as a head
/// of its own whose queries are those of the heads that share its keys.
class ChosenAttention final : public Differentiable {
 public:
  ChosenAttention(const Qkv& t, ChosenKeys chosen, AnyMask mask, AnyScore score,
                  const AttentionOptions& how)
      : chosen_(std::move(chosen)),
        mask_(std::move(mask)),
        score_(std::move(score)),
        how_(how),
        n_(t.shape()),
        kv_heads_(t.k.size(1)),
        step_(1) {
    std::vector<Learnable> tensors;
    score_.learnable(tensors);
    for (const auto& l : tensors) {
      if (l.learns()) learning_.push_back(l.tensor);
    }
    const int64_t C = chosen_.index.size(1), M = chosen_.index.size(3) * chosen_.block_size;
    if (!mask_.is_full() && n_.L > 0) {  // whether it is another one for other heads
      of_heads_ = mask_.evaluate(Grid(n_, 0, 1, chosen_.index.device())).size(1) != 1;
    }
    const bool apart = (C != 1 && C != kv_heads_) || !score_.is_identity() || of_heads_;
    units_ = apart ? n_.H : kv_heads_;
    constexpr int64_t kMost = int64_t{1} << 20;       // numbers of keys and values at a time
    constexpr int64_t kMostPairs = int64_t{1} << 18;  // for the kernel
    const int64_t row = std::max<int64_t>(1, n_.B * units_ * M * (t.k.size(3) + t.v.size(3)));
    step_ = std::clamp<int64_t>(kMost / row, 1, std::max<int64_t>(1, n_.L));
    by_kernel_ = !eager_reference() && score_.is_identity() && how_.dropout == 0 &&
                 chosen_on_cpu_takes(t, M);
    const int64_t pairs = std::max<int64_t>(1, n_.B * n_.H * M);
    kernel_step_ = std::clamp<int64_t>(kMostPairs / pairs, 1, std::max<int64_t>(1, n_.L));
    if (by_kernel_) blocks_ = {t, chosen_.index, chosen_.block_size, mask_, *how_.scale};
    Captured held{chosen_.index};
    mask_.tensors(held);
    score_.tensors(held);
    unchanged_ = Unchanged(held);
  }

  const std::vector<torch::Tensor>& learning() const { return learning_; }

  /// x is q, k, v, and what learns.
  Tensors forward(const Tensors& x) override {
    if (!blocks_.pay()) return by_kernel_ ? by_kernel(x) : by_rows(x);
    const auto r = blocks_.forward({x[0], x[1], x[2]});
    return {r.output, r.lse, r.softmax};
  }
  bool saves_outputs() const override { return blocks_.pay(); }

  Tensors backward(const Tensors& saved, const Tensors& grads) override {
    unchanged_.check("chosen_attention");
    const auto outputs = saved.begin() + 3 + static_cast<int64_t>(learning_.size());
    const Tensors x(saved.begin(), outputs);
    Tensors sums(x.size());
    if (is_empty() || (!grads[0].defined() && !grads[1].defined())) return sums;
    const bool again = torch::GradMode::is_enabled();
    if (blocks_.pay() && !again) {
      return blocks_.gradients({x[0], x[1], x[2]}, {outputs[0], outputs[1], outputs[2]},
                               {grads[0], grads[1]});
    }
    if (by_kernel_ && !again) return gradients_by_kernel(x, grads);
    torch::AutoGradMode enable(true);
    if (again) return whole_backward(x, grads);
    const auto dtype = compute_dtype(x[0]);
    const auto zeros = [&](const torch::Tensor& t) {
      return torch::zeros(t.sizes(), t.options().dtype(dtype));
    };
    sums[0] = torch::empty(x[0].sizes(), x[0].options());
    sums[1] = zeros(x[1]);
    sums[2] = zeros(x[2]);
    for_each_chunk(step_, [&](int64_t begin, int64_t end) {
      const auto part = this->part(begin, end);
      const auto leaf = [](const torch::Tensor& t) { return t.detach().requires_grad_(); };
      Tensors leaves{leaf(x[0].slice(2, begin, end)), leaf(part.keys(x[1].detach())),
                     leaf(part.keys(x[2].detach()))};
      const auto r = attend(leaves[0], leaves[1], leaves[2], part);
      leaves.insert(leaves.end(), learning_.begin(), learning_.end());
      const auto got = gradients(join(r.output), join(r.lse.unsqueeze(3)).squeeze(3), leaves, grads,
                                 begin, end, /*create_graph=*/false);
      const torch::NoGradGuard no_grad;
      sums[0].slice(2, begin, end).copy_(got[0].defined() ? got[0] : torch::zeros_like(leaves[0]));
      for (size_t i : {size_t{1}, size_t{2}}) {
        if (got[i].defined()) part.add(sums[i], got[i]);
      }
      for (size_t i = 3; i < got.size(); ++i) {
        if (got[i].defined()) sums[i] = sums[i].defined() ? sums[i] + got[i] : got[i];
      }
    });
    for (size_t i : {size_t{1}, size_t{2}}) sums[i] = sums[i].to(x[i].scalar_type());
    return sums;
  }

  /// The weights of the queries [begin, end): [B, H, rows, S].
  torch::Tensor weights(const torch::Tensor& q, const torch::Tensor& k, int64_t begin,
                        int64_t end) const {
    unchanged_.check("LazyWeights");
    std::vector<torch::Tensor> rows;
    if (is_empty() || begin == end) return q.new_zeros({n_.B, n_.H, end - begin, n_.S});
    const int64_t first = begin / step_ * step_;  // whole chunks, which drop the same weights
    for (int64_t at = first; at < end; at += step_) {
      const int64_t last = std::min(n_.L, at + step_);
      const auto part = this->part(at, last);
      const auto keys = part.keys(k);
      const auto w =
          attend(q.slice(2, at, last), keys, keys, part).weights.tensor();  // [B, U R, G, M]
      const int64_t G = w.size(2), M = w.size(3);
      const auto index = part.index.unsqueeze(3).expand({-1, -1, -1, G, -1});
      const auto all = torch::zeros({n_.B, units_, part.rows, G, n_.S}, w.options());
      rows.push_back(
          join(all.scatter_add(4, index, w.view({n_.B, units_, part.rows, G, M})).flatten(1, 2)));
    }
    return torch::cat(rows, 2).slice(2, begin - first, end - first);
  }

 private:
  bool is_empty() const { return n_.B == 0 || n_.L == 0; }

  /// Some rows and their keys.
  struct Part {
    int64_t begin, rows, kv_heads, S;
    torch::Tensor index;    // int64 [B, U, R, M]
    torch::Tensor visible;  // bool [B, U * R, 1, M]

    /// The rows of t [B, Hkv, S, features] by index: [B, U * R, M, features].
    torch::Tensor keys(const torch::Tensor& t) const { return take_rows(t, index).flatten(1, 2); }
    /// Adds what belongs to keys() to sum [B, Hkv, S, features].
    void add(torch::Tensor& sum, const torch::Tensor& t) const {
      add_rows(sum, index, t.view({index.size(0), index.size(1), rows, index.size(3), t.size(3)}));
    }
  };

  template <class F>
  void for_each_chunk(int64_t step, const F& f) const {
    for (int64_t at = 0; at == 0 || at < n_.L; at += step) f(at, std::min(n_.L, at + step));
  }

  /// Keys by number, -1 for none: int64 [1 or B, C, rows, M].
  torch::Tensor numbers(int64_t begin, int64_t end) const {
    auto index = chosen_.index.slice(2, begin, end).to(torch::kInt64);
    if (chosen_.block_size == 1) return index;
    const auto inside = torch::arange(chosen_.block_size, index.options());
    const auto first = index.unsqueeze(4) * chosen_.block_size;
    return torch::where(index.unsqueeze(4) < 0, first, first + inside).flatten(3);
  }
  /// The pairs of rows as the mask numbers them.
  Grid grid(int64_t begin, int64_t end) const {
    Grid g(n_, Places(begin, end, chosen_.index.device()), Places(0, 0, chosen_.index.device()));
    g.rows = g.columns = Places();
    g.kv = numbers(begin, end).clamp(0, std::max<int64_t>(0, n_.S - 1));
    if (!of_heads_) g.h = torch::zeros_like(g.h.slice(1, 0, 1));
    if (of_heads_ && g.kv.size(1) > 1) {
      g.kv = g.kv.repeat_interleave(n_.H / g.kv.size(1), 1);
    }
    return g;
  }

  /// t of 1, Hkv or H heads, of 1 or one for each unit.
  torch::Tensor of_units(const torch::Tensor& t) const {
    const int64_t heads = t.size(1);
    return heads == 1 || heads == units_ ? t : t.repeat_interleave(units_ / heads, 1);
  }
  /// The keys of rows, -1 for those that are hidden, too: int64 [1 or B, 1 or U, rows, M].
  torch::Tensor visible_numbers(int64_t begin, int64_t end) const {
    const torch::NoGradGuard no_grad;
    const auto number = of_units(numbers(begin, end));
    auto visible = number < n_.S;
    if (!mask_.is_full()) {
      visible = torch::logical_and(visible, of_units(mask_.evaluate(grid(begin, end))));
    }
    return torch::where(visible, number, -1);
  }

  Part part(int64_t begin, int64_t end) const {
    const torch::NoGradGuard no_grad;
    const auto number = visible_numbers(begin, end);
    const int64_t R = end - begin, M = number.size(3);
    const auto index = number.expand({n_.B, units_, R, M});
    return {begin,
            R,
            kv_heads_,
            n_.S,
            index.clamp(0, std::max<int64_t>(0, n_.S - 1)).contiguous(),
            (index >= 0).reshape({n_.B, units_ * R, 1, M})};
  }

  /// q [B, H, R, D] and the keys of a part -> [B, U * R, G, ..].
  AttentionResult attend(const torch::Tensor& q, const torch::Tensor& keys,
                         const torch::Tensor& values, const Part& part) const {
    const int64_t R = part.rows, G = n_.H / units_;
    const auto queries = q.reshape({n_.B, units_, G, R, q.size(3)})
                             .transpose(2, 3)
                             .reshape({n_.B, units_ * R, G, q.size(3)});
    auto how = how_;
    if (how.seed) *how.seed += static_cast<uint64_t>(part.begin) * 0x9E3779B97F4A7C15u;
    AnyScore score;
    if (!score_.is_identity()) {
      const auto place = torch::arange(part.begin, part.begin + R, part.index.options());
      const PairNumbers numbers{n_, (place + (n_.S - n_.L)).repeat({n_.H}).view({1, n_.H * R, 1}),
                                part.index.flatten(1, 2), R};
      score = score_.at(numbers);
    }
    return attention(queries, keys, values, TensorMask{part.visible}, score, how,
                     /*private_qk=*/true);
  }
  /// [B, U * R, G, E] -> [B, H, R, E].
  torch::Tensor join(const torch::Tensor& t) const {
    const int64_t R = t.size(1) / units_;
    return t.view({n_.B, units_, R, t.size(2), t.size(3)})
        .transpose(2, 3)
        .reshape({n_.B, n_.H, R, t.size(3)});
  }

  Tensors by_kernel(const Tensors& x) const {
    std::vector<torch::Tensor> outputs, lse;
    for_each_chunk(kernel_step_, [&](int64_t begin, int64_t end) {
      const auto r = attend_chosen_on_cpu({x[0].slice(2, begin, end), x[1], x[2]},
                                          visible_numbers(begin, end), *how_.scale);
      outputs.push_back(r.output);
      lse.push_back(r.lse);
    });
    return {torch::cat(outputs, 2), torch::cat(lse, 2)};
  }
  Tensors gradients_by_kernel(const Tensors& x, const Tensors& grads) const {
    std::vector<torch::Tensor> grad_q;
    const auto sum_k = accumulator(x[1]), sum_v = accumulator(x[2]);
    for_each_chunk(kernel_step_, [&](int64_t begin, int64_t end) {
      const auto rows = [&](const torch::Tensor& t) {
        return t.defined() ? t.slice(2, begin, end) : t;
      };
      grad_q.push_back(chosen_gradients_on_cpu({rows(x[0]), x[1], x[2]},
                                               visible_numbers(begin, end), *how_.scale,
                                               {rows(grads[0]), rows(grads[1])}, sum_k, sum_v));
    });
    return {torch::cat(grad_q, 2), sum_k.slice(3, 0, x[1].size(3)).to(x[1].scalar_type()),
            sum_v.slice(3, 0, x[2].size(3)).to(x[2].scalar_type())};
  }

  /// Differentiable where autograd records.
  Tensors by_rows(const Tensors& x) const {
    std::vector<torch::Tensor> outputs, lse;
    if (is_empty()) {
      return {x[0].new_zeros({n_.B, n_.H, n_.L, features_of(x[2])}),
              torch::zeros({n_.B, n_.H, n_.L}, x[0].options().dtype(compute_dtype(x[0])))};
    }
    for_each_chunk(step_, [&](int64_t begin, int64_t end) {
      const auto part = this->part(begin, end);
      const auto r = attend(x[0].slice(2, begin, end), part.keys(x[1]), part.keys(x[2]), part);
      outputs.push_back(join(r.output));
      lse.push_back(join(r.lse.unsqueeze(3)).squeeze(3));
    });
    return {torch::cat(outputs, 2), torch::cat(lse, 2)};
  }

  Tensors gradients(const torch::Tensor& output, const torch::Tensor& lse, const Tensors& leaves,
                    const Tensors& grads, int64_t begin, int64_t end, bool create_graph) const {
    Tensors outputs, cotangents;
    if (grads[0].defined()) {
      outputs.push_back(output);
      cotangents.push_back(grads[0].slice(2, begin, end));
    }
    if (grads[1].defined() && lse.requires_grad()) {
      outputs.push_back(lse);
      cotangents.push_back(grads[1].slice(2, begin, end));
    }
    if (outputs.empty()) return Tensors(leaves.size());
    return torch::autograd::grad(outputs, leaves, cotangents, std::nullopt, create_graph,
                                 /*allow_unused=*/true);
  }
  /// Differentiable again: everything gathered at once.
  Tensors whole_backward(Tensors x, const Tensors& grads) {
    for (size_t i = 0; i < 3; ++i) {
      if (!x[i].requires_grad()) x[i] = x[i].detach().requires_grad_();
    }
    const auto r = by_rows(x);
    return gradients(r[0], r[1], x, grads, 0, n_.L, /*create_graph=*/true);
  }

  ChosenKeys chosen_;
  AnyMask mask_;
  AnyScore score_;
  AttentionOptions how_;
  Shape n_;
  int64_t kv_heads_, units_ = 1;    // units: heads that gather keys of their own
  int64_t step_, kernel_step_ = 1;  // rows at a time
  bool by_kernel_ = false;          // the CPU's
  SortedBlocks blocks_;
  bool of_heads_ = false;  // the mask
  std::vector<torch::Tensor> learning_;
  Unchanged unchanged_;
};

ATTZOO_API void check_chosen(const ChosenKeys& chosen, const Shape& n, int64_t kv_heads,
                             const torch::Device& device) {
  constexpr const char* kWho = "chosen_attention";
  const auto& t = chosen.index;
  check_dense(t, kWho, "index");
  TORCH_CHECK_TYPE(torch::isIntegralType(t.scalar_type(), /*includeBool=*/false), kWho,
                   ": index must be integers, got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == device, kWho, ": index must be on ", device, ", got ",
                    t.device());
  TORCH_CHECK_VALUE(chosen.block_size > 0 && chosen.block_size <= kUnbounded, kWho,
                    ": block_size must be > 0 and at most 2^30, got ", chosen.block_size);
  TORCH_CHECK_VALUE(t.dim() == 4 && (t.size(0) == 1 || t.size(0) == n.B) &&
                        (t.size(1) == 1 || t.size(1) == kv_heads || t.size(1) == n.H) &&
                        t.size(2) == n.L,
                    kWho, ": index must have shape [1 or B, 1 or Hkv or H, L, M] with B=", n.B,
                    " Hkv=", kv_heads, " H=", n.H, " L=", n.L, ", got ", t.sizes());
  if (t.numel() == 0) return;
  const int64_t blocks = n.S == 0 ? 0 : 1 + (n.S - 1) / chosen.block_size;
  const auto [least, most] = t.aminmax();
  TORCH_CHECK_VALUE(least.item<int64_t>() >= -1 && most.item<int64_t>() < blocks, kWho,
                    ": index must be in [-1, ", blocks, "), got ", least.item<int64_t>(), " ... ",
                    most.item<int64_t>());
}

ATTZOO_API AttentionResult chosen_attention(const torch::Tensor& q_in, const torch::Tensor& k_in,
                                            const torch::Tensor& v_in, const ChosenKeys& chosen,
                                            const AnyMask& mask, const AnyScore& score,
                                            const AttentionOptions& options, bool private_qk) {
  const auto task = attention_task(q_in, k_in, v_in, mask, score, options);
  const bool learns = is_differentiated(task.tensors.q) ||
                      (torch::GradMode::is_enabled() && !Call(task.rule).learning().empty());
  const auto t = learns ? dequantized(task.tensors) : task.tensors;
  const auto n = t.shape();
  check_chosen(chosen, n, t.k.size(1), t.q.device());
  TORCH_CHECK_VALUE(!score.sink().defined(),
                    "chosen_attention: score must bring no sink, which has no key to choose");
  auto how = options;
  how.scale = task.rule.scale;
  if (how.dropout > 0) how.seed = task.rule.dropout.seed;
  const auto f =
      c10::make_intrusive<ChosenAttention>(t, chosen, task.rule.mask, task.rule.score, how);
  Tensors inputs{t.q, t.k, t.v};
  inputs.insert(inputs.end(), f->learning().begin(), f->learning().end());
  const auto result = differentiable(f, inputs);
  const Captured read = private_qk ? Captured() : Captured{t.q, t.k};
  return {
      result[0],
      LazyWeights({n.B, n.H, n.L, n.S},
                  [f, q = t.q, k = t.k, unchanged = Unchanged(read)](int64_t begin, int64_t end) {
                    unchanged.check("LazyWeights");
                    return f->weights(q, k, begin, end);
                  }),
      result[1]};
}

}  // namespace core

ATTZOO_API AttentionResult chosen_attention(const torch::Tensor& q, const torch::Tensor& k,
                                            const torch::Tensor& v, const ChosenKeys& chosen,
                                            const core::AnyMask& mask, const core::AnyScore& score,
                                            const AttentionOptions& options) {
  return core::chosen_attention(q, k, v, chosen, mask, score, options, /*private_qk=*/false);
}

}  // namespace attzoo
