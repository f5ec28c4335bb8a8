// A mechanism of your own: its options and its mask; the base does the rest.

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

// [strided]
struct StridedOptions {
  int64_t d_model = 0, num_heads = 8, stride = 16;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0;
  bool bias = false, causal = false;
};

/// The tokens nearby and every stride-th one (Child et al., 2019, arXiv:1904.10509).
class StridedImpl : public SelfAttention<StridedImpl, StridedOptions> {
 public:
  static constexpr const char* kName = "Strided";
  explicit StridedImpl(const StridedOptions& o) : SelfAttention(o) {
    check_positive("stride", o.stride);
    reset();
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
    const int64_t s = options.stride;
    return finish(attend(project(x, in), in, window(s, s) || dilated(s)));
  }
};
using Strided = Holder<StridedImpl>;
// [/strided]

// [fixed]
/// Stretches of `stride` tokens, and the last token of each.
class FixedImpl : public SelfAttention<FixedImpl, StridedOptions> {
 public:
  static constexpr const char* kName = "Fixed";
  explicit FixedImpl(const StridedOptions& o) : SelfAttention(o) {
    check_positive("stride", o.stride);
    reset();
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
    const auto fixed = [s = options.stride](auto, auto, auto q, auto kv) {
      return q / s == kv / s || kv % s == s - 1;
    };
    return finish(attend(project(x, in), in, mask_mod(fixed, in_document)));
  }
};
using Fixed = Holder<FixedImpl>;
// [/fixed]

int main() {
  auto block = transformer_block(Strided({.d_model = 64, .stride = 4, .causal = true}));
  block->eval();  // no dropout
  const auto x = torch::randn({2, 100, 64});
  const auto [y, weights] = block(x, {.documents = {.offsets = torch::tensor({0, 37, 100})}});
  const auto row = weights.rows(60, 61)[0][0][0];
  std::cout << block << y.sizes() << "\ntoken 60 attends to " << row.nonzero().flatten() << '\n';
  Fixed fixed({.d_model = 64, .stride = 5, .causal = true});
  fixed->eval();
  const auto packed = fixed(x, {.documents = {.offsets = torch::tensor({0, 37, 100})}}).output;
  const auto alone = fixed(x.slice(1, 37)).output;                // as if it began at 0
  const bool right = row.count_nonzero().item<int64_t>() == 9 &&  // 40, 44, 48, 52, 56, ..., 60
                     torch::allclose(packed.slice(1, 37), alone, 1e-4, 1e-5);
  return right ? 0 : 1;
}
