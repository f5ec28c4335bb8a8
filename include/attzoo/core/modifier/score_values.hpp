#pragma once
/// \file
/// The named score modifiers (functional/scores.hpp) as values: what describes them, and what they
/// mean on tensors, and as plain numbers and pointers.

#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/symbol.hpp>
#include <attzoo/kernel/modifier/score_forms.hpp>

#include <array>
#include <concepts>
#include <vector>

namespace attzoo {

/// Changes scores before the softmax. `evaluate` is its meaning on scores that broadcast to [B, H,
/// rows, columns] of the grid. Optional members: `check(shape, device)` and `tensors(out)` as those
/// of a mask; `learnable(out)`: tensors that gradients may flow to; `resolve(shape)`: the modifier
/// that takes its place in a problem; `sink()`: logits [H] in the softmax's denominator. With
/// `bind<T>(shape)`, its form for the kernels (kernel/modifier/form.hpp) in T = float or double, it
/// runs in the fused CPU kernels; with `symbol(s, pair)` it has a source in CUDA C++.
template <class M>
concept ScoreMod = M::is_score && std::copy_constructible<M> &&
    requires(const M& m, const torch::Tensor& s, const core::Grid& g) {
  { m.evaluate(s, g) } -> std::same_as<torch::Tensor>;
};

namespace core {

/// A tensor that gradients may flow to, and which of its dimensions are B, H, L, S (-1: none).
struct Learnable {
  torch::Tensor tensor;
  std::array<int, 4> dims;
  bool learns() const { return tensor.defined() && tensor.requires_grad(); }
  /// Whether its gradient has a place of its own for each query.
  bool is_by_query() const { return dims[2] >= 0 && tensor.size(dims[2]) > 1; }
};

struct IdentityScore {
  static constexpr bool is_score = true;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
  Symbol symbol(const Symbol& s, const SymbolPair&) const { return s; }
};

/// The numbers of a captured tensor in the type that the kernel computes in.
template <class T>
torch::Tensor in_type(const torch::Tensor& t) {
  return plain(t.detach()).to(c10::CppTypeToScalarType<T>::value);
}

struct AlibiScore {
  static constexpr bool is_score = true;
  torch::Tensor slopes;  // [H]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(slopes, {n.H}, device, "alibi", "[H]", n);
  }
  void tensors(Captured& out) const { out.push_back(slopes); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({slopes, {-1, 0, -1, -1}}); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
  Symbol symbol(const Symbol& s, const SymbolPair& p) const;
  template <class T>
  kernel::AlibiOfTensor<T> bind(const Shape& n) const {
    const auto t = in_type<T>(slopes);
    return {{{t.template const_data_ptr<T>(), step(t, 0), owner_of(t)}}, shift(n)};
  }
};

struct SoftcapScore {
  static constexpr bool is_score = true;
  double cap;
  SoftcapScore at(const PairNumbers&) const { return *this; }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
  Symbol symbol(const Symbol& s, const SymbolPair& p) const {
    return kernel::Softcap{cap}(s, p.b, p.h, p.q, p.kv);
  }
  template <class T>
  kernel::Softcap bind(const Shape&) const {
    return {cap};
  }
};

struct TensorBias {
  static constexpr bool is_score = true;
  torch::Tensor bias;  // floating, rank 4, broadcastable
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(bias, {n.B, n.H, n.L, n.S}, device, "bias_tensor",
                   "[L, S], [B, L, S] or [B, H, L, S]", n);
  }
  void tensors(Captured& out) const { out.push_back(bias); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({bias, {0, 1, 2, 3}}); }
  TensorBias at(const PairNumbers& numbers) const { return {entries_at(bias, numbers)}; }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
  Symbol symbol(const Symbol& s, const SymbolPair& p) const;
  template <class T>
  kernel::Bias<T> bind(const Shape&) const {
    const auto t = in_type<T>(bias);
    return {t.template const_data_ptr<T>(),
            step(t, 0),
            step(t, 1),
            step(t, 2),
            step(t, 3),
            owner_of(t)};
  }
};

/// A bias [H, L + S - 1] over the distances kv - q = -(L - 1) ... S - 1.
struct DistanceScore {
  static constexpr bool is_score = true;
  torch::Tensor values;
  void tensors(Captured& out) const { out.push_back(values); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({values, {-1, 0, -1, 1}}); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
  Symbol symbol(const Symbol& s, const SymbolPair& p) const;
  template <class T>
  kernel::DistanceBias<T> bind(const Shape& n) const {
    const auto t = in_type<T>(values.contiguous());
    return {t.template const_data_ptr<T>(), step(t, 0), static_cast<int>(n.L) - 1, owner_of(t)};
  }
};

struct RelativeBiasScore {
  static constexpr bool is_score = true;
  torch::Tensor table;  // [buckets, H]
  bool bidirectional;
  int64_t max_distance;
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(table, {table.size(0), n.H}, device, "relative_bias", "[buckets, H]", n);
  }
  void tensors(Captured& out) const { out.push_back(table); }
  DistanceScore resolve(const Shape& n) const;
  template <class T>
  auto bind(const Shape& n) const {
    return resolve(n).bind<T>(n);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return resolve(g.shape).evaluate(s, g);
  }
  Symbol symbol(const Symbol& s, const SymbolPair& p) const {
    return resolve(p.shape).symbol(s, p);
  }

 private:
  torch::Tensor bucket(const torch::Tensor& distance) const;
};

/// Places of the keys on a scale that falls from token to token: as far as two are apart there, a
/// score is lower.
struct DecayScore {
  static constexpr bool is_score = true;
  torch::Tensor places;  // [B, H, S]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(places, {n.B, n.H, n.S}, device, "decay", "[B, H, S]", n);
    TORCH_CHECK_VALUE(n.L <= n.S, "decay: the queries are the last of the keys, got ", n.L,
                      " queries and ", n.S, " keys");
  }
  void tensors(Captured& out) const { out.push_back(places); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({places, {0, 1, -1, 2}}); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
  Symbol symbol(const Symbol& s, const SymbolPair& p) const;
  template <class T>
  kernel::Decay<T> bind(const Shape& n) const {
    const auto t = in_type<double>(places);
    return {t.template const_data_ptr<double>(),
            step(t, 0),
            step(t, 1),
            step(t, 2),
            shift(n),
            owner_of(t)};
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
  SinkScore at(const PairNumbers&) const { return *this; }
  Symbol symbol(const Symbol& s, const SymbolPair&) const { return s; }
  IdentityScore resolve(const Shape&) const { return {}; }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
};

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/modifier/tensor_lane.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace attzoo::core {

ATTZOO_API torch::Tensor AlibiScore::evaluate(const torch::Tensor& s, const Grid& g) const {
  const TensorLane slope(g.of_heads(slopes.to(s.scalar_type())));
  const auto of_head = [&](const TensorLane&) { return slope; };
  const kernel::Alibi<decltype(of_head)> alibi{of_head};
  return alibi(TensorLane(s), g.b, TensorLane(g.h), TensorLane(g.aligned_q()), TensorLane(g.kv)).t;
}

ATTZOO_API torch::Tensor SoftcapScore::evaluate(const torch::Tensor& s, const Grid& g) const {
  return kernel::Softcap{cap}(TensorLane(s), g.b, g.h, g.q, g.kv).t;
}

ATTZOO_API torch::Tensor TensorBias::evaluate(const torch::Tensor& s, const Grid& g) const {
  const auto added = g.of(bias).to(s.scalar_type());
  return torch::where(added == -std::numeric_limits<double>::infinity(), added, s + added);
}

ATTZOO_API torch::Tensor DistanceScore::evaluate(const torch::Tensor& s, const Grid& g) const {
  const auto place = g.kv - g.q + (g.shape.L - 1);
  const auto bias = g.rows.known() ? values.index_select(1, place.flatten())
                                         .view({1, values.size(0), g.q.numel(), g.kv.numel()})
                                   : scattered(values, {g.h, place});
  return s + bias.to(s.scalar_type());
}

ATTZOO_API Symbol AlibiScore::symbol(const Symbol& s, const SymbolPair& p) const {
  const auto slope = [&](const Symbol& h) { return SymbolPair::of(slopes, {h}); };
  return kernel::Alibi<decltype(slope)>{slope}(s, p.b, p.h, p.aligned_q(), p.kv);
}

ATTZOO_API Symbol TensorBias::symbol(const Symbol& s, const SymbolPair& p) const {
  const auto added = SymbolPair::of(bias, {p.b, p.h, p.q, p.kv});
  return where(added == -std::numeric_limits<double>::infinity(), added, s + added);
}

ATTZOO_API Symbol DistanceScore::symbol(const Symbol& s, const SymbolPair& p) const {
  return s + SymbolPair::of(values, {p.h, p.kv - p.q + (p.shape.L - 1)});
}

ATTZOO_API torch::Tensor DecayScore::evaluate(const torch::Tensor& s, const Grid& g) const {
  const auto q = g.aligned_q();
  const bool known = g.rows.known();
  const auto of_q = known ? g.rows.shifted(g.shape.S - g.shape.L).broadcast(places, 2).unsqueeze(3)
                          : scattered(places, {g.b, g.h, q}),
             of_kv = known ? g.columns.broadcast(places, 2).unsqueeze(2)
                           : scattered(places, {g.b, g.h, g.kv});
  const auto passed = (of_q - of_kv).to(s.scalar_type());
  return s + torch::where(q >= g.kv, passed, -passed);
}

ATTZOO_API Symbol DecayScore::symbol(const Symbol& s, const SymbolPair& p) const {
  const auto q = p.aligned_q();
  const auto passed =
      SymbolPair::of(places, {p.b, p.h, q}) - SymbolPair::of(places, {p.b, p.h, p.kv});
  return s + where(q >= p.kv, passed, -passed);
}

/// T5's bucket of a distance kv - q: exact for near ones, logarithmic beyond, one for all far ones.
ATTZOO_API torch::Tensor RelativeBiasScore::bucket(const torch::Tensor& distance) const {
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

ATTZOO_API DistanceScore RelativeBiasScore::resolve(const Shape& n) const {
  // kv - q of equal places is S - L apart.
  const auto options = torch::dtype(torch::kInt64).device(table.device());
  const auto distance = torch::arange(1 - n.L, std::max(1 - n.L, n.S), options) - (n.S - n.L);
  return {table.index_select(0, bucket(distance)).t()};
}

}  // namespace attzoo::core

#endif
