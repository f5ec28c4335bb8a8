#pragma once
// Neighborhood attention over the pixels of an image, a mechanism of one's own: Hassani et al.,
// "Neighborhood Attention Transformer", 2022, arXiv:2204.07143. At the borders a pixel has fewer
// neighbours here; the paper moves its neighborhood inwards.

#include <attzoo/attzoo.hpp>

namespace example {

// [module]
struct NeighborhoodOptions {
  int64_t d_model = 0, num_heads = 4, side = 0, radius = 1;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0;
  bool bias = false;
  attzoo::Rope rope = false;
  bool causal = false;
};

/// Over the pixels of a square image, line by line: each attends to those at most `radius` lines
/// and columns away.
class NeighborhoodImpl : public attzoo::SelfAttention<NeighborhoodImpl, NeighborhoodOptions> {
 public:
  static constexpr const char* kName = "Neighborhood";
  explicit NeighborhoodImpl(const NeighborhoodOptions& o) : SelfAttention(o) {
    check_positive("side", o.side);
    reset();
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    const auto near = [side = options.side, r = options.radius](auto, auto, auto q, auto kv) {
      return abs(q / side - kv / side) <= r && abs(q % side - kv % side) <= r;
    };
    // Images in a packed batch begin anywhere.
    return finish(attend(project(x, in), in, attzoo::mask_mod(near, attzoo::in_document)));
  }
};
using Neighborhood = attzoo::Holder<NeighborhoodImpl>;
// [/module]

}  // namespace example
