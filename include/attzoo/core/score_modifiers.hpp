#pragma once
/// \file
/// The score modifiers that modifiers.hpp names: their meaning on tensors, and their form for the
/// kernel.

#include <attzoo/core/mask_modifiers.hpp>
#include <attzoo/kernel/scores.hpp>

#include <array>
#include <cmath>

namespace attzoo::core {

/// The numbers of a captured tensor in the type that the kernel computes in; a copy, where there
/// must be one, lives in `keep`, whose last entry is the tensor pointed to.
template <class T>
const T* pointer(const torch::Tensor& t, Captured& keep) {
  keep.push_back(plain(t.detach()).to(c10::CppTypeToScalarType<T>::value));
  return keep.back().template const_data_ptr<T>();
}

/// A tensor that gradients may flow to, and which of its dimensions are B, H, L, S (-1: none).
struct Learnable {
  torch::Tensor tensor;
  std::array<int, 4> dims;
  bool learns() const { return tensor.defined() && tensor.requires_grad(); }
};

/// The tensors of a score modifier, in the order of its parts; an undefined one keeps its place.
template <class M>
void learnable(const M& m, std::vector<Learnable>& out) {
  if constexpr (requires { m.learnable(out); }) m.learnable(out);
}

/// Those of them that require gradients.
template <class M>
std::vector<torch::Tensor> learning_tensors(const M& m) {
  std::vector<Learnable> all;
  std::vector<torch::Tensor> learning;
  learnable(m, all);
  for (const auto& l : all) {
    if (l.learns()) learning.push_back(l.tensor);
  }
  return learning;
}

/// The form of a modifier that meets this problem: learnable tensors as the kernel reads them.
template <class M>
auto resolve(const M& m, const Shape& n) {
  if constexpr (requires { m.resolve(n); }) {
    return m.resolve(n);
  } else {
    return m;
  }
}

/// The logits in the softmax denominator, if the modifier has any; else an undefined tensor.
template <class M>
torch::Tensor sink_of(const M& m) {
  if constexpr (requires { m.sink(); }) {
    return m.sink();
  } else {
    return {};
  }
}

struct IdentityScore {
  static constexpr bool is_score = true;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
  template <class T>
  kernel::IdentityScore bind(const Shape&, Captured&) const {
    return {};
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
      call(torch::zeros({1, 1, 1, 1}, torch::dtype(torch::kFloat32).device(device)), g);
    });
  }
  void tensors(Captured& out) const { tensors_of_tables(f, out); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return call(s, g).to(s.scalar_type()).expand_as(s);
  }
  ScoreFunction resolve(const Shape&) const {
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
  template <class T>
  kernel::ScoreFunction<F> bind(const Shape& n, Captured&) const {
    return {bind_tables(f), aligned ? shift(n) : 0};
  }
  void learnable(std::vector<Learnable>& out) const {
    if constexpr (kernel::kTensors < kernel::ScoreFunction < F >>> 0) {
      out.push_back({learning, {-1, -1, -1, -1}});
    }
  }

 private:
  torch::Tensor call(const torch::Tensor& s, const Grid& g) const {
    return TensorLane(f(TensorLane(s), TensorLane(g.b), TensorLane(g.h),
                        TensorLane(aligned ? aligned_query(g) : g.q), TensorLane(g.kv)))
        .t;
  }
};

struct AlibiScore {
  static constexpr bool is_score = true;
  torch::Tensor slopes;  // [H]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(slopes, {n.H}, device, "alibi", "[H]", n);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    const auto distance = (aligned_query(g) - g.kv).abs().to(s.scalar_type());
    return s - slopes.to(s.scalar_type()).view({1, -1, 1, 1}) * distance;
  }
  template <class T>
  kernel::Alibi<T> bind(const Shape& n, Captured& keep) const {
    return {shift(n), pointer<T>(slopes, keep), step(keep.back(), 0)};
  }
  void tensors(Captured& out) const { out.push_back(slopes); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({slopes, {-1, 0, -1, -1}}); }
};

struct SoftcapScore {
  static constexpr bool is_score = true;
  double cap;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const {
    return torch::tanh(s / cap) * cap;
  }
  template <class T>
  kernel::Softcap bind(const Shape&, Captured&) const {
    return {cap};
  }
};

struct TensorBias {
  static constexpr bool is_score = true;
  torch::Tensor bias;  // floating, rank 4, broadcastable; undefined: nothing is added
  void check(const Shape& n, const torch::Device& device) const {
    if (!bias.defined()) return;
    check_captured(bias, {n.B, n.H, n.L, n.S}, device, "bias_tensor",
                   "[L, S], [B, L, S] or [B, H, L, S]", n);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return bias.defined() ? s + grid_rows(bias, g).to(s.scalar_type()) : s;
  }
  template <class T>
  kernel::Bias<T> bind(const Shape&, Captured& keep) const {
    if (!bias.defined()) return {};
    const T* data = pointer<T>(bias, keep);
    const auto& t = keep.back();
    return {data, step(t, 0), step(t, 1), step(t, 2), step(t, 3)};
  }
  void tensors(Captured& out) const { out.push_back(bias); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({bias, {0, 1, 2, 3}}); }
};

/// A bias [H, L + S - 1] over the distances kv - q = -(L - 1) ... S - 1.
struct DistanceScore {
  static constexpr bool is_score = true;
  torch::Tensor values;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    const auto place = (g.kv - g.q + (g.shape.L - 1)).flatten();  // [rows * S]
    const auto bias = values.index_select(1, place).view({1, -1, g.q.numel(), g.kv.numel()});
    return s + bias.to(s.scalar_type());
  }
  template <class T>
  kernel::DistanceBias<T> bind(const Shape& n, Captured& keep) const {
    const T* data = pointer<T>(values.contiguous(), keep);
    return {data, step(keep.back(), 0), static_cast<int>(n.L) - 1};
  }
  void tensors(Captured& out) const { out.push_back(values); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({values, {-1, 0, -1, 1}}); }
};

struct RelativeBiasScore {
  static constexpr bool is_score = true;
  torch::Tensor table;  // [buckets, H]
  bool bidirectional;
  int64_t max_distance;

  void check(const Shape& n, const torch::Device& device) const {
    check_captured(table, {table.size(0), n.H}, device, "relative_bias", "[buckets, H]", n);
  }
  /// T5's bucket of a distance kv - q: exact for near ones, logarithmic beyond, one for all far
  /// ones.
  torch::Tensor bucket(const torch::Tensor& distance) const {
    int64_t buckets = table.size(0);
    auto offset = torch::zeros_like(distance);
    torch::Tensor n;
    if (bidirectional) {
      buckets /= 2;
      offset = (distance > 0).to(torch::kInt64) * buckets;
      n = distance.abs();
    } else {
      n = (-distance).clamp_min(0);
    }
    const int64_t exact = buckets / 2;
    const double base = std::log(static_cast<double>(max_distance) / static_cast<double>(exact));
    const auto far = torch::log(n.clamp_min(1).to(torch::kFloat64) / exact) / base;
    const auto large = exact + (far * (buckets - exact)).to(torch::kInt64);
    return offset + torch::where(n < exact, n, large.clamp_max(buckets - 1));
  }
  void tensors(Captured& out) const { out.push_back(table); }
  DistanceScore resolve(const Shape& n) const {
    // kv - q of equal places is S - L apart.
    const auto options = torch::dtype(torch::kInt64).device(table.device());
    const auto distance = torch::arange(-(n.L - 1), n.S, options) - (n.S - n.L);
    return {table.index_select(0, bucket(distance)).t()};
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return resolve(g.shape).evaluate(s, g);
  }
  template <class T>
  auto bind(const Shape& n, Captured& keep) const {
    return resolve(n).template bind<T>(n, keep);
  }
};

/// Logits in the denominator; attention() takes them into account after the softmax.
struct SinkScore {
  static constexpr bool is_score = true;
  torch::Tensor logits;  // [H]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(logits, {n.H}, device, "sink", "[H]", n);
  }
  torch::Tensor sink() const { return logits; }
  IdentityScore resolve(const Shape&) const { return {}; }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
  template <class T>
  kernel::IdentityScore bind(const Shape&, Captured&) const {
    return {};
  }
};

template <ScoreMod A, ScoreMod B>
struct ChainScore {
  static constexpr bool is_score = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return b.evaluate(a.evaluate(s, g), g);
  }
  template <class T>
  auto bind(const Shape& n, Captured& keep) const {
    auto first = a.template bind<T>(n, keep);
    return kernel::Chain{first, b.template bind<T>(n, keep)};
  }
  void tensors(Captured& out) const {
    held_tensors(a, out);
    held_tensors(b, out);
  }
  void learnable(std::vector<Learnable>& out) const {
    core::learnable(a, out);
    core::learnable(b, out);
  }
  auto resolve(const Shape& n) const {
    return ChainScore<decltype(core::resolve(a, n)), decltype(core::resolve(b, n))>{
        core::resolve(a, n), core::resolve(b, n)};
  }
  torch::Tensor sink() const {
    const auto first = sink_of(a), second = sink_of(b);
    TORCH_CHECK_VALUE(!first.defined() || !second.defined(), "sink: given twice");
    return first.defined() ? first : second;
  }
};

template <ScoreMod A, ScoreMod B>
auto operator+(A a, B b) {
  if constexpr (std::is_same_v<A, IdentityScore>) {
    return b;
  } else if constexpr (std::is_same_v<B, IdentityScore>) {
    return a;
  } else {
    return ChainScore<A, B>{std::move(a), std::move(b)};
  }
}

}  // namespace attzoo::core

namespace attzoo {
using core::operator+;
}
