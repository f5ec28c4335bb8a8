#pragma once
// Definitions of score_values.hpp.

#include <attzoo/core/modifier/score_values.hpp>
#include <attzoo/core/modifier/tensor_lane.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace attzoo::core {

ATTZOO_API torch::Tensor AlibiScore::evaluate(const torch::Tensor& s, const Grid& g) const {
  const TensorLane slope(slopes.to(s.scalar_type()).view({1, -1, 1, 1}));
  const kernel::Alibi alibi{[&](const TensorLane&) { return slope; }};
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
  const auto place = (g.kv - g.q + (g.shape.L - 1)).flatten();  // [rows * columns]
  const auto bias = values.index_select(1, place).view({1, -1, g.q.numel(), g.kv.numel()});
  return s + bias.to(s.scalar_type());
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
