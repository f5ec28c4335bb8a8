#pragma once
// Definitions of alibi.hpp.

#include <attzoo/alibi.hpp>

namespace attzoo {

ATTZOO_API torch::Tensor alibi_slopes(int64_t num_heads, bool python_rule) {
  TORCH_CHECK_VALUE(num_heads > 0 && num_heads <= int64_t{1} << 24,
                    "alibi_slopes: num_heads must be > 0 and at most 2^24, got ", num_heads);
  const auto geometric = [](int64_t heads) {
    return torch::exp2(torch::arange(1, heads + 1, torch::kFloat64) *
                       (-8.0 / static_cast<double>(heads)));
  };
  int64_t power = 1;
  while (power * 2 <= num_heads) power *= 2;
  auto slopes = geometric(power);
  if (python_rule && num_heads == 1) slopes = torch::ones(1, torch::kFloat64);
  if (power < num_heads) {
    const auto more = python_rule ? slopes : geometric(2 * power).slice(0, 0, 2 * power, 2);
    slopes = torch::cat({slopes, more.slice(0, 0, num_heads - power)});
  }
  return slopes.to(torch::kFloat32);
}

}  // namespace attzoo
