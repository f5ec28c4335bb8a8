#pragma once
// Which token comes next.

#include <torch/types.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/multinomial.h>

#include <cmath>
#include <cstdint>
#include <optional>

namespace generate {

struct SampleOptions {
  double temperature = 0;  // 0: always the likeliest
  int64_t top_k = 0;       // 0: all
  double top_p = 1;
};

/// Probabilities of the tokens from their logits [vocab]: the softmax of logits / temperature over
/// the top_k largest, and of these over the likeliest that have top_p together (Holtzman et al.,
/// 2020, arXiv:1904.09751); the likeliest one always stays.
inline torch::Tensor probabilities(const torch::Tensor& logits, const SampleOptions& o) {
  const auto wide = logits.to(torch::kCPU, torch::kFloat64);
  auto scores = (wide - wide.max()) / o.temperature;  // <= 0: no temperature makes one infinite
  if (o.top_k > 0 && o.top_k < scores.numel()) {
    const auto least = std::get<0>(scores.topk(o.top_k)).min();
    scores = scores.masked_fill(scores < least, -INFINITY);
  }
  const auto p = scores.softmax(-1);
  if (o.top_p >= 1) return p;
  const auto [sorted, order] = p.sort(/*stable=*/true, -1, /*descending=*/true);
  auto kept = sorted.masked_fill(sorted.cumsum(-1) - sorted >= o.top_p, 0);
  kept[0] = sorted[0];
  return torch::zeros_like(p).scatter_(-1, order, kept / kept.sum());
}

class Sampler {
 public:
  Sampler(const SampleOptions& options, int64_t seed)
      : options_(options),
        generator_(at::detail::createCPUGenerator(static_cast<uint64_t>(seed))) {}

  /// The next token from its logits [vocab].
  int64_t operator()(const torch::Tensor& logits) {
    if (options_.temperature <= 0) return logits.argmax(-1).item<int64_t>();
    return at::multinomial(probabilities(logits, options_), 1, false, generator_).item<int64_t>();
  }

 private:
  SampleOptions options_;
  at::Generator generator_;
};

}  // namespace generate
