#pragma once
/// \file
/// Several attentions of the same queries as one: rounds of hashing, families of blocks.

#include <attzoo/functional/result.hpp>

#include <limits>
#include <utility>
#include <vector>

namespace attzoo::core {

/// The softmax over all parts' keys together: what each part has of it, exp(lse) over their sum
/// [parts, B, H, L], and its lse [B, H, L]. Where no part has a key these are 0 and -inf, with
/// gradients of 0.
struct JointSoftmax {
  torch::Tensor shares, lse;
};
inline JointSoftmax join_softmaxes(const std::vector<AttentionResult>& parts) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  std::vector<torch::Tensor> each;
  for (const auto& part : parts) each.push_back(part.lse);
  const auto lse = torch::stack(each);
  auto max = std::get<0>(lse.detach().max(0));
  max = max.masked_fill(max == -kInf, 0.0);
  const auto exponentials = torch::exp(lse - max);
  auto sum = exponentials.sum(0);
  const auto none = sum == 0;
  sum = sum.masked_fill(none, 1.0);
  return {exponentials / sum, (torch::log(sum) + max).masked_fill(none, -kInf)};
}

/// The sum of the parts' outputs and weights, each times its share: `shares` [parts, ..., L]
/// broadcasts to [parts, B, H, L]. Dtypes are those of the parts; `lse` is passed on.
inline AttentionResult blend(const std::vector<AttentionResult>& parts, const torch::Tensor& shares,
                             const torch::Tensor& lse) {
  const auto add = [](torch::Tensor& sum, const torch::Tensor& part, const torch::Tensor& share) {
    const auto scaled = part * share.unsqueeze(-1);
    sum = sum.defined() ? sum + scaled : scaled;
  };
  torch::Tensor output;
  std::vector<LazyWeights> weights;
  for (const auto& part : parts) {
    add(output, part.output, shares[static_cast<int64_t>(weights.size())]);
    weights.push_back(part.weights);
  }
  const auto dtype = parts[0].output.scalar_type();
  LazyWeights blended(weights[0].sizes().vec(), [=](int64_t begin, int64_t end) {
    torch::Tensor rows;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto share = shares[static_cast<int64_t>(i)].slice(-1, begin, end);
      add(rows, weights[i].rows(begin, end), share);
    }
    return rows.to(dtype);
  });
  return {output.to(dtype), std::move(blended), lse};
}

}  // namespace attzoo::core
