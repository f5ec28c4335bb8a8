#pragma once
/// \file
/// Masks and score modifiers made of a user's callable.

#include <attzoo/core/modifier/any_score.hpp>
#include <attzoo/core/modifier/callables.hpp>
#include <attzoo/core/modifier/interval.hpp>
#include <attzoo/kernel/modifier/callable_forms.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>

#include <utility>
#include <vector>

namespace attzoo::core {

/// A mask's callable, bound to a problem, and which keys it reaches, as far as bounds tell.
template <class F>
struct ReachingCallable {
  F f;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B b, H h, Q q, K kv) const {
    return f(b, h, q, kv);
  }
  void reach(const kernel::Rows& r, kernel::Segments& out) const { halve(r, 0, r.S, out); }

 private:
  kernel::Cover cover(const kernel::Rows& r, int begin, int end) const {
    const auto range = [](int from, int to) { return Interval(from, to - 1, true); };
    const Interval may = f(Interval(r.b), Interval(r.h), range(r.begin, r.end), range(begin, end));
    return may.always()  ? kernel::Cover::kFull
           : may.never() ? kernel::Cover::kEmpty
                         : kernel::Cover::kPartial;
  }
  /// Keys that bounds do not decide are asked by halves; few, where neither half is decided, no
  /// more.
  void halve(const kernel::Rows& r, int begin, int end, kernel::Segments& out) const {
    constexpr int kFew = 64, kFewest = 16;
    using kernel::Cover;
    const Cover all = cover(r, begin, end);
    if (all != Cover::kPartial || end - begin <= kFewest) {
      return kernel::append(out, begin, end, all, r.S);
    }
    const int middle = begin + (end - begin + 2 * kFewest - 1) / (2 * kFewest) * kFewest;
    if (end - begin <= kFew && cover(r, begin, middle) == Cover::kPartial &&
        cover(r, middle, end) == Cover::kPartial) {
      return kernel::append(out, begin, end, Cover::kPartial, r.S);
    }
    halve(r, begin, middle, out);
    halve(r, middle, end, out);
  }
};

/// A mask made of a callable on indices.
template <class F>
struct MaskFunction : MaskCallable<F> {
  static constexpr bool is_mask = true;
  F f;
  bool aligned;

  MaskFunction(F callable, bool q_among_keys) : f(std::move(callable)), aligned(q_among_keys) {}
  void check(const Shape& n, const torch::Device& device) const {
    check_callable(f, n, device, aligned, [&](const Grid& g) { evaluate(g); });
  }
  bool is_raw() const { return !aligned; }
  void tensors(Captured& out) const { tensors_of_tables(f, out); }
  torch::Tensor evaluate(const Grid& g) const {
    return TensorLane(f(TensorLane(g.b), TensorLane(g.h), TensorLane(aligned ? g.aligned_q() : g.q),
                        TensorLane(g.kv)))
        .t.to(torch::kBool);
  }
  Symbol symbol(const SymbolPair& p) const {
    return f(p.b, p.h, aligned ? p.aligned_q() : p.q, p.kv);
  }
  /// On numbers, one pair at a time.
  kernel::CallableMask<ReachingCallable<F>> bind(const Shape& n) const {
    return {{bind_tables(f)}, aligned ? shift(n) : 0};
  }
};

/// A score modifier made of a callable. Its tables that learn are views of one tensor, `learning`,
/// once it is resolved.
template <class F>
struct ScoreFunction : ScoreCallable<F> {
  static constexpr bool is_score = true;
  F f;
  bool aligned;
  torch::Tensor learning = {};

  ScoreFunction(F callable, bool q_among_keys, torch::Tensor tables = {})
      : f(std::move(callable)), aligned(q_among_keys), learning(std::move(tables)) {}
  void check(const Shape& n, const torch::Device& device) const {
    check_callable(f, n, device, aligned, [&](const Grid& g) {
      call(f, torch::zeros({1, 1, 1, 1}, torch::dtype(torch::kFloat32).device(device)), g);
    });
  }
  bool is_raw() const { return !aligned; }
  void tensors(Captured& out) const { tensors_of_tables(f, out); }
  void learnable(std::vector<Learnable>& out) const {
    if constexpr (kHoldsTables) out.push_back({learning, {-1, -1, -1, -1}});
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    const auto result = g.without_weight.defined() && kHoldsTables
                            ? call(copy_with_tables(f, [&](Table& t) { t.look_up_on(g); }), s, g)
                            : call(f, s, g);
    return result.to(s.scalar_type()).expand_as(s);
  }
  Symbol symbol(const Symbol& s, const SymbolPair& p) const {
    return f(s, p.b, p.h, aligned ? p.aligned_q() : p.q, p.kv);
  }
  ScoreFunction resolve(const Shape&) const {
    if constexpr (!kHoldsTables) return *this;
    std::vector<torch::Tensor> parts;
    copy_with_tables(f, [&](Table& t) {
      if (t.learns()) parts.push_back(t.tensor().to(torch::kFloat64).flatten());
    });
    if (parts.empty()) return *this;
    const auto all = torch::cat(parts);
    int64_t at = 0;
    F views = copy_with_tables(f, [&](Table& t) {
      if (!t.learns()) return;
      const int64_t size = t.tensor().numel();
      t.replace(all.slice(0, at, at + size).view(t.tensor().sizes()), at);
      at += size;
    });
    return {std::move(views), aligned, all};
  }
  /// On numbers, one score at a time.
  template <class T = double>
  kernel::CallableScore<F> bind(const Shape& n) const {
    return {bind_tables(f), aligned ? shift(n) : 0};
  }

 private:
  /// A callable without captures holds no table.
  static constexpr bool kHoldsTables = kernel::kTensors<kernel::CallableScore<F>> != 0;

  torch::Tensor call(const F& with, const torch::Tensor& s, const Grid& g) const {
    return TensorLane(with(TensorLane(s), TensorLane(g.b), TensorLane(g.h),
                           TensorLane(aligned ? g.aligned_q() : g.q), TensorLane(g.kv)))
        .t;
  }
};

}  // namespace attzoo::core
