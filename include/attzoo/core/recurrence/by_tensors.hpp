#pragma once
/// \file
/// Linear recurrences by definition, and by chunks of tensors on any device.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/recurrence/backend.hpp>

#include <ATen/ops/linalg_solve_triangular.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo::core::by_tensors {

/// The tokens [begin, end), behind `state`.
inline Recurrence part(const Recurrence& x, int64_t begin, int64_t end,
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
inline Recurrence spelt_out(const Recurrence& x) {
  const auto dtype = compute_dtype(x.v);
  const int64_t heads = x.v.size(1);
  const auto own = [&](const torch::Tensor& t) {
    if (!t.defined()) return t;
    const auto wide = t.to(dtype);
    return t.size(1) == heads ? wide : wide.repeat_interleave(heads / t.size(1), 1);
  };
  Recurrence y{.q = own(x.q) * x.scale, .k = own(x.k), .v = own(x.v), .decay = own(x.decay)};
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

inline torch::Tensor first_state(const Recurrence& x) {
  if (x.state.defined()) return x.state;
  return torch::zeros({x.v.size(0), x.v.size(1), x.q.size(3), x.v.size(3)},
                      x.v.options().dtype(compute_dtype(x.v)));
}

/// Token by token: the definition.
inline Recurred run_by_tokens(const Recurrence& any_x) {
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
  Decays(const Recurrence& x, const torch::Tensor& document) {
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
    visible_ = torch::logical_and(visible_, run.unsqueeze(-1) == run.unsqueeze(-2));
    goes_on_ = (run == document.view({-1, 1, 1})).unsqueeze(-1);
    stays_ = (run == run.slice(2, C - 1)).unsqueeze(-1);
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
      products = pair_products(left, right, hidden.logical_not());
      if (decays.defined()) products = products * decays.squeeze(-1);
    }
    return products.masked_fill(hidden, 0);
  }
  /// The sums over r <= s, or of `before` r < s, of products [.., C, C] and what r writes. What is
  /// no number in a token that is not among them has no effect, although 0 times it is not 0.
  torch::Tensor sums(const torch::Tensor& products, const torch::Tensor& values,
                     bool before = false) const {
    return sum_over_pairs(products, values, before ? visible_.tril(-1) : visible_);
  }
  /// state^T t_s, times what the tokens until s leave of the state before.
  torch::Tensor of_state(const torch::Tensor& t, const torch::Tensor& state,
                         bool before = false) const {
    const auto left = times(t, before ? a_row_later(begin_, 1) : begin_);
    return where(goes_on_, torch::matmul(left, state));
  }
  /// The sum of t_r values_r^T, times what is left of it behind the chunk.
  torch::Tensor to_end(const torch::Tensor& t, const torch::Tensor& values) const {
    const auto left = pairs_.defined() ? t * pairs_.select(2, pairs_.size(2) - 1) : t;
    return torch::matmul(where(stays_, left).mT(), where(stays_, values));
  }
  /// w_s = known_s + the sum over r < s of products_sr w_r. What is no number in a document stays
  /// in that, and has no gradient.
  torch::Tensor solve(torch::Tensor products, torch::Tensor known) const {
    torch::Tensor spoilt;
    if (goes_on_.defined()) {
      const auto whole = [](const torch::Tensor& t) { return torch::isfinite(t).all(-1, true); };
      const auto bad = torch::logical_and(whole(products), whole(known)).logical_not();
      spoilt = torch::logical_and(visible_, bad.mT()).any(-1, /*keepdim=*/true);
      products = products.masked_fill(bad, 0);
      known = known.masked_fill(bad, 0);
    }
    const auto w = at::linalg_solve_triangular(-products, known, /*upper=*/false, /*left=*/true,
                                               /*unitriangular=*/true);
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    return spoilt.defined() ? w.masked_fill(spoilt, kNaN) : w;
  }
  /// What is left of the state [B, H, F, E] behind the chunk.
  torch::Tensor through(const torch::Tensor& state) const {
    const auto left = begin_.defined() ? state * last(begin_).mT() : state;
    return where(goes_on_.defined() ? last(goes_on_) : goes_on_, left);
  }

 private:
  static torch::Tensor last(const torch::Tensor& t) { return t.slice(2, t.size(2) - 1); }
  static torch::Tensor times(const torch::Tensor& t, const torch::Tensor& by) {
    return by.defined() ? t * by : t;
  }
  /// What another document says of t, even what is no number, becomes 0.
  static torch::Tensor where(const torch::Tensor& same, const torch::Tensor& t) {
    return same.defined() ? torch::where(same, t, torch::zeros({}, t.options())) : t;
  }
  /// Each row of dimension 2 in the place of the next one, the first one full of `value`.
  static torch::Tensor a_row_later(const torch::Tensor& t, double value) {
    if (!t.defined()) return t;
    const auto first = torch::full_like(t.slice(2, 0, 1), value);
    return torch::cat({first, t.slice(2, 0, t.size(2) - 1)}, 2);
  }

  torch::Tensor visible_;          // bool [.., C, C]
  torch::Tensor pairs_;            // of s and r, [B, H, C, C, F or 1]
  torch::Tensor begin_;            // of the tokens until s, [B, H, C, F or 1]
  torch::Tensor goes_on_, stays_;  // bool [1 or B, 1, C, 1]: the document of the state before, and
                                   // that of the state behind
};

/// All tokens of a chunk at once. With w_t = a_t^T S_{t-1}, which are found from each other, first
/// to last, a token writes k_t v_t^T + b_t w_t^T (the WY form: Yang et al., "Parallelizing Linear
/// Transformers with the Delta Rule over Sequence Length", 2024, arXiv:2406.06484).
inline Recurred chunk(const Recurrence& any_x, const torch::Tensor& document) {
  const auto x = spelt_out(any_x);
  const Decays decays(x, document);
  Recurred y;
  y.out = decays.of_state(x.q, x.state) + decays.sums(decays.products(x.q, x.k), x.v);
  y.state = decays.through(x.state) + decays.to_end(x.k, x.v);
  if (!x.a.defined()) return y;
  const auto known = decays.of_state(x.a, x.state, /*before=*/true) +
                     decays.sums(decays.products(x.a, x.k, /*before=*/true), x.v, /*before=*/true);
  const auto w = decays.solve(decays.products(x.a, x.b, /*before=*/true), known);
  y.out = y.out + decays.sums(decays.products(x.q, x.b), w);
  y.state = y.state + decays.to_end(x.b, w);
  return y;
}

/// The chunks of x, each with what comes before it.
class Chunks {
 public:
  explicit Chunks(const Recurrence& x) : x_(x) {
    // A decay of each channel makes a factor of each pair and channel.
    const bool of_channels = x.decay.defined() && x.decay.size(3) > 1;
    size_ = of_channels ? 32 : 64;
  }
  int64_t size() const { return size_; }
  int64_t count() const { return (x_.q.size(2) + size_ - 1) / size_; }
  Recurrence of(int64_t i, const torch::Tensor& state) const {
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
  const Recurrence& x_;
  int64_t size_;
};

}  // namespace attzoo::core::by_tensors
