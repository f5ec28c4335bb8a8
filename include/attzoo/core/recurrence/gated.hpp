#pragma once
/// \file
/// Linear recurrences that forget, gate and rewrite their state: by definition, and by chunks of
/// tensors on any device.

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/backend.hpp>

namespace attzoo::core {

/// Differentiable any number of times: O(n F E) time and O(n (F + E)) memory, the states inside of
/// chunks computed again for the gradients. By definition while eager_reference() holds. Sums and
/// states are float32, of float64 tensors float64; the output has v's dtype. The state is that
/// behind the last token.
ATTZOO_API Recurred recur_gated(const GatedRecurrence& x);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/gated.hpp>

#include <ATen/ops/linalg_solve_triangular.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace attzoo::core {

namespace gated {

/// The tokens [begin, end), behind `state`.
inline GatedRecurrence part(const GatedRecurrence& x, int64_t begin, int64_t end,
                            const torch::Tensor& state) {
  auto its = x;
  for (auto* t : {&its.q, &its.k, &its.v, &its.decay, &its.p, &its.beta, &its.a, &its.b}) {
    if (t->defined()) *t = t->slice(2, begin, end);
  }
  its.state = state;
  if (x.run.defined()) its.run = x.run.slice(1, begin, end);
  return its;
}

/// The same recurrence in the dtype of the sums, without a scale, every head with rows of its own,
/// and a delta rule as an a and a b: k u^T = k (beta v)^T - beta k (p^T diag(exp(d)) S).
inline GatedRecurrence spelt_out(const GatedRecurrence& x) {
  const auto dtype = compute_dtype(x.v);
  const int64_t heads = x.v.size(1);
  const auto own = [&](const torch::Tensor& t) {
    if (!t.defined()) return t;
    const auto wide = t.to(dtype);
    return t.size(1) == heads ? wide : wide.repeat_interleave(heads / t.size(1), 1);
  };
  GatedRecurrence y{.q = own(x.q) * x.scale, .k = own(x.k), .v = own(x.v), .decay = own(x.decay)};
  y.state = x.state;
  y.run = x.run;
  y.a = own(x.a);
  y.b = own(x.b);
  if (!x.delta) return y;
  const auto p = x.p.defined() ? own(x.p) : y.k;
  y.a = y.decay.defined() ? p * y.decay.exp() : p;
  y.b = -y.k;
  if (!x.beta.defined()) return y;
  const auto beta = own(x.beta);
  y.b = y.b * beta;
  y.v = y.v * beta;
  return y;
}

inline torch::Tensor first_state(const GatedRecurrence& x) {
  if (x.state.defined()) return x.state;
  return torch::zeros({x.v.size(0), x.v.size(1), x.q.size(3), x.v.size(3)},
                      x.v.options().dtype(compute_dtype(x.v)));
}

/// Token by token: the definition.
inline Recurred by_tokens(const GatedRecurrence& any_x) {
  const auto x = spelt_out(any_x);
  auto state = first_state(x);
  std::vector<torch::Tensor> out;
  for (int64_t t = 0; t < x.q.size(2); ++t) {
    const auto column = [&](const torch::Tensor& all) { return all.select(2, t).unsqueeze(-1); };
    const auto row = [&](const torch::Tensor& all) { return all.select(2, t).unsqueeze(-2); };
    if (x.run.defined() && t > 0) {
      const auto goes_on = x.run.select(1, t) == x.run.select(1, t - 1);
      state = torch::where(goes_on.view({-1, 1, 1, 1}), state, torch::zeros({}, state.options()));
    }
    auto next = column(x.k) * row(x.v);
    if (x.a.defined()) next = next + column(x.b) * torch::matmul(row(x.a), state);
    state = (x.decay.defined() ? column(x.decay).exp() * state : state) + next;
    out.push_back(torch::matmul(row(x.q), state));
  }
  return {out.empty() ? torch::zeros_like(x.v) : torch::cat(out, 2), state};
}

/// What is left of what a token writes when a later one reads it, in a chunk of C tokens: exp of
/// sums of decays. Each sum is made of its own terms, never as a difference of two, so small decays
/// behind large ones keep their digits, and -inf is a decay as any other. `document`: int64
/// [1 or B], that of the state before; undefined without documents.
class Decays {
 public:
  Decays(const GatedRecurrence& x, const torch::Tensor& document) {
    const int64_t C = x.q.size(2);
    visible_ = torch::ones({C, C}, x.q.options().dtype(torch::kBool)).tril();
    if (x.decay.defined()) {
      const auto until = x.decay.unsqueeze(3)
                             .masked_fill(visible_.tril(-1).logical_not().unsqueeze(-1), 0)
                             .cumsum(2);  // over s, from r + 1 on
      pairs_ = until.exp();
      begin_ = x.decay.cumsum(2).exp();
    }
    if (!x.run.defined()) return;
    const auto run = x.run.unsqueeze(1);  // [1 or B, 1, C]
    const auto as_rows = [&](const torch::Tensor& of) {
      return (run == of).unsqueeze(-1).to(x.q.scalar_type());
    };
    visible_ = torch::logical_and(visible_, run.unsqueeze(-1) == run.unsqueeze(-2));
    of_state_ = as_rows(document.view({-1, 1, 1}));
    of_last_ = as_rows(run.slice(2, C - 1));
  }

  /// left_s . right_r of all r <= s, times the decays of r + 1 ... s; `before` the token's own: of
  /// r < s, and r + 1 ... s - 1. [.., C, C]
  torch::Tensor products(const torch::Tensor& left, const torch::Tensor& right,
                         bool before = false) const {
    const auto hidden = (before ? visible_.tril(-1) : visible_).logical_not();
    const auto decays = before ? a_row_later(pairs_, 0) : pairs_;
    torch::Tensor products;
    if (decays.defined() && decays.size(-1) > 1) {
      products = (left.unsqueeze(3) * decays * right.unsqueeze(2)).sum(-1);
    } else {
      products = torch::matmul(left, right.mT());
      if (decays.defined()) products = products * decays.squeeze(-1);
    }
    return products.masked_fill(hidden, 0);
  }
  /// t_s, times what the tokens until s leave of the state before.
  torch::Tensor from_state(const torch::Tensor& t, bool before = false) const {
    return times(times(t, before ? a_row_later(begin_, 1) : begin_), of_state_);
  }
  /// t_r, times what is left of it behind the chunk.
  torch::Tensor to_end(const torch::Tensor& t) const {
    return times(pairs_.defined() ? t * pairs_.select(2, pairs_.size(2) - 1) : t, of_last_);
  }
  /// What is left of the state [B, H, F, E] behind the chunk.
  torch::Tensor through(const torch::Tensor& state) const {
    const auto left = begin_.defined() ? state * last(begin_).mT() : state;
    return of_state_.defined() ? left * last(of_state_) : left;
  }

 private:
  static torch::Tensor last(const torch::Tensor& t) { return t.slice(2, t.size(2) - 1); }
  static torch::Tensor times(const torch::Tensor& t, const torch::Tensor& by) {
    return by.defined() ? t * by : t;
  }
  /// Each row of dimension 2 in the place of the next one, the first one full of `value`.
  static torch::Tensor a_row_later(const torch::Tensor& t, double value) {
    if (!t.defined()) return t;
    const auto first = torch::full_like(t.slice(2, 0, 1), value);
    return torch::cat({first, t.slice(2, 0, t.size(2) - 1)}, 2);
  }

  torch::Tensor visible_;             // bool [.., C, C]
  torch::Tensor pairs_;               // of s and r, [B, H, C, C, F or 1]
  torch::Tensor begin_;               // of the tokens until s, [B, H, C, F or 1]
  torch::Tensor of_state_, of_last_;  // 1 or 0, [1 or B, 1, C, 1]
};

/// All tokens of a chunk at once. With w_t = a_t^T S_{t-1}, which are found from each other, first
/// to last, a token writes k_t v_t^T + b_t w_t^T (the WY form: Yang et al., "Parallelizing Linear
/// Transformers with the Delta Rule over Sequence Length", 2024, arXiv:2406.06484).
inline Recurred chunk(const GatedRecurrence& any_x, const torch::Tensor& document) {
  const auto x = spelt_out(any_x);
  const Decays decays(x, document);
  Recurred y;
  y.out = torch::matmul(decays.from_state(x.q), x.state) +
          torch::matmul(decays.products(x.q, x.k), x.v);
  y.state = decays.through(x.state) + torch::matmul(decays.to_end(x.k).mT(), x.v);
  if (!x.a.defined()) return y;
  const auto known = torch::matmul(decays.from_state(x.a, /*before=*/true), x.state) +
                     torch::matmul(decays.products(x.a, x.k, /*before=*/true), x.v);
  const auto w = at::linalg_solve_triangular(-decays.products(x.a, x.b, /*before=*/true), known,
                                             /*upper=*/false, /*left=*/true,
                                             /*unitriangular=*/true);
  y.out = y.out + torch::matmul(decays.products(x.q, x.b), w);
  y.state = y.state + torch::matmul(decays.to_end(x.b).mT(), w);
  return y;
}

/// The chunks of x, each with what comes before it.
class Chunks {
 public:
  explicit Chunks(const GatedRecurrence& x) : x_(x) {
    // A decay of each channel makes a factor of each pair and channel.
    const bool of_channels = x.decay.defined() && x.decay.size(3) > 1;
    size_ = of_channels ? 32 : 64;
  }
  int64_t size() const { return size_; }
  int64_t count() const { return (x_.q.size(2) + size_ - 1) / size_; }
  GatedRecurrence of(int64_t i, const torch::Tensor& state) const {
    return part(x_, i * size_, std::min((i + 1) * size_, x_.q.size(2)), state);
  }
  /// The document of the state before.
  torch::Tensor document(int64_t i) const {
    if (!x_.run.defined()) return {};
    return x_.run.select(1, std::max<int64_t>(0, i * size_ - 1));
  }
  /// One after the other; `states`: those before each, if anybody asks.
  Recurred run(std::vector<torch::Tensor>* states = nullptr) const {
    auto state = first_state(x_);
    std::vector<torch::Tensor> out;
    for (int64_t i = 0; i < count(); ++i) {
      if (states) states->push_back(state);
      auto y = chunk(of(i, state), document(i));
      out.push_back(std::move(y.out));
      state = std::move(y.state);
    }
    return {torch::cat(out, 2), state};
  }

 private:
  const GatedRecurrence& x_;
  int64_t size_;
};

/// Inputs q, k, v and the state, then those of decay, p, beta, a and b that there are.
class RecurInChunks final : public Differentiable {
 public:
  explicit RecurInChunks(const GatedRecurrence& x) : like_(x) {
    like_.state = x.v;  // there is always one
    for (auto* t : tensors(like_)) *t = t->defined() ? torch::empty({0}) : torch::Tensor();
  }
  static Tensors inputs(GatedRecurrence x) {
    x.state = first_state(x);
    return inputs_of(x);
  }

  Tensors forward(const Tensors& tensors) override {
    const auto x = of(tensors);
    if (CpuGated::takes(x)) {
      auto y = CpuGated::run(x);
      return {y.out, y.state};
    }
    const auto y = Chunks(x).run(&states_);
    return {y.out.to(x.v.scalar_type()), y.state};
  }

  Tensors backward(const Tensors& tensors, const Tensors& grads) override {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    if (!grads[0].defined() && !grads[1].defined()) return Tensors(tensors.size());
    const auto x = of(tensors);
    if (is_recorded({})) return gradients(Chunks(x).run(), grads, tensors, /*recorded=*/true);
    if (CpuGated::takes(x)) return inputs_of(CpuGated::run_backward(x, {grads[0], grads[1]}));
    const Chunks chunks(x);
    if (states_.empty()) chunks.run(&states_);
    std::vector<Tensors> parts(tensors.size());  // of each input, the last chunk first
    auto of_state = grads[1];
    for (int64_t i = chunks.count() - 1; i >= 0; --i) {
      const torch::AutoGradMode recording(true);
      auto leaves = inputs(chunks.of(i, states_[static_cast<size_t>(i)]));
      for (auto& t : leaves) t = t.detach().requires_grad_();
      auto its = of(leaves);
      its.run = chunks.of(i, {}).run;
      const auto y = chunk(its, chunks.document(i));
      const int64_t begin = i * chunks.size();
      const auto of_out =
          grads[0].defined() ? grads[0].slice(2, begin, begin + y.out.size(2)) : grads[0];
      const auto d = gradients(y, {of_out, of_state}, leaves, /*recorded=*/false);
      for (size_t input = 0; input < d.size(); ++input) parts[input].push_back(d[input]);
      of_state = d[kState];
    }
    Tensors result;
    for (auto& of_chunks : parts) {
      std::reverse(of_chunks.begin(), of_chunks.end());
      result.push_back(torch::cat(of_chunks, 2));
    }
    result[kState] = of_state;
    return result;
  }

 private:
  static constexpr size_t kState = 3;

  static std::array<torch::Tensor*, 9> tensors(GatedRecurrence& x) {
    return {&x.q, &x.k, &x.v, &x.state, &x.decay, &x.p, &x.beta, &x.a, &x.b};
  }
  static Tensors inputs_of(GatedRecurrence x) {
    Tensors all;
    for (const auto* t : tensors(x)) {
      if (t->defined()) all.push_back(*t);
    }
    return all;
  }
  GatedRecurrence of(const Tensors& from) const {
    auto x = like_;
    size_t next = 0;
    for (auto* t : tensors(x)) {
      if (t->defined()) *t = from[next++];
    }
    return x;
  }
  /// Of all inputs, zeros where nothing depends on one.
  static Tensors gradients(const Recurred& y, const Tensors& grads, const Tensors& inputs,
                           bool recorded) {
    Tensors outputs, of_outputs, wanted;
    for (const auto& [t, g] : {std::pair{y.out, grads[0]}, {y.state, grads[1]}}) {
      if (!g.defined()) continue;
      outputs.push_back(t.to(g.scalar_type()));
      of_outputs.push_back(g);
    }
    for (const auto& t : inputs) {
      if (t.requires_grad()) wanted.push_back(t);
    }
    const auto found = torch::autograd::grad(outputs, wanted, of_outputs, std::nullopt, recorded,
                                             /*allow_unused=*/true);
    Tensors all;
    size_t next = 0;
    for (const auto& t : inputs) {
      auto g = t.requires_grad() ? found[next++] : torch::Tensor();
      all.push_back(g.defined() ? g : torch::zeros_like(t));
    }
    return all;
  }

  GatedRecurrence like_;  // which tensors there are, and all that is none of them
  std::vector<torch::Tensor> states_;
};

}  // namespace gated

ATTZOO_API Recurred recur_gated(const GatedRecurrence& x) {
  constexpr int64_t kFew = 4;
  const bool few = x.q.size(2) <= kFew && !CpuGated::takes(x);
  if (eager_reference() || few || x.q.numel() == 0 || x.v.numel() == 0) {
    const auto y = gated::by_tokens(x);
    return {y.out.to(x.v.scalar_type()), y.state};
  }
  const auto y =
      differentiable(c10::make_intrusive<gated::RecurInChunks>(x), gated::RecurInChunks::inputs(x));
  return {y[0], y[1]};
}

}  // namespace attzoo::core

#endif
