#pragma once
/// \file
/// The named score modifiers (functional/scores.hpp) as values: what describes them, and what they
/// mean on tensors. cpu/forms.hpp makes the CPU's form of them.

#include <attzoo/core/modifier/grid.hpp>

#include <array>
#include <concepts>
#include <vector>

namespace attzoo {

/// Changes scores before the softmax. `evaluate` is its meaning on scores that broadcast to [B, H,
/// rows, columns] of the grid. Optional members: `check(shape, device)` and `tensors(out)` as those
/// of a mask; `learnable(out)`: tensors that gradients may flow to; `resolve(shape)`: the modifier
/// that takes its place in a problem; `sink()`: logits [H] in the softmax's denominator. With a
/// free function `cpu_form(score, shape, T())` found beside its type it runs in the fused kernels.
template <class M>
concept ScoreMod = std::copy_constructible<M> && M::is_score &&
    requires(const M& m, const torch::Tensor& s, const core::Grid& g) {
  { m.evaluate(s, g) } -> std::same_as<torch::Tensor>;
};

namespace core {

/// A tensor that gradients may flow to, and which of its dimensions are B, H, L, S (-1: none).
struct Learnable {
  torch::Tensor tensor;
  std::array<int, 4> dims;
  bool learns() const { return tensor.defined() && tensor.requires_grad(); }
};

struct IdentityScore {
  static constexpr bool is_score = true;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
};

struct AlibiScore {
  static constexpr bool is_score = true;
  torch::Tensor slopes;  // [H]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(slopes, {n.H}, device, "alibi", "[H]", n);
  }
  void tensors(Captured& out) const { out.push_back(slopes); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({slopes, {-1, 0, -1, -1}}); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
};

struct SoftcapScore {
  static constexpr bool is_score = true;
  double cap;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
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
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
};

/// A bias [H, L + S - 1] over the distances kv - q = -(L - 1) ... S - 1.
struct DistanceScore {
  static constexpr bool is_score = true;
  torch::Tensor values;
  void tensors(Captured& out) const { out.push_back(values); }
  void learnable(std::vector<Learnable>& out) const { out.push_back({values, {-1, 0, -1, 1}}); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const;
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
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return resolve(g.shape).evaluate(s, g);
  }

 private:
  torch::Tensor bucket(const torch::Tensor& distance) const;
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
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/score_values.ipp>
#endif
