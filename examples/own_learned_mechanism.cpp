// A mechanism of your own with a parameter that learns: how fast each head forgets
// (docs/own_mechanism.md).

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

// [mechanism]
struct DecayOptions {
  int64_t d_model = 0, num_heads = 8, window_size = 64;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0;
  bool bias = false;
  Rope rope = false;
  bool causal = false;
};

/// softmax_j(q_i . k_j / sqrt(d_head) - exp(rate_h) |i - j|) v_j within a window.
class DecayImpl : public SelfAttention<DecayImpl, DecayOptions> {
 public:
  static constexpr const char* kName = "Decay";
  explicit DecayImpl(const DecayOptions& o) : SelfAttention(o) {
    check_positive("window_size", o.window_size);
    reset();
  }
  void reset() override {
    SelfAttention::reset();  // the projections
    rate = register_parameter("rate", torch::linspace(-4, 0, options.num_heads));
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
    const auto heads = project(x, in);
    const auto rates = table(rate.exp());
    const auto decay = score_mod(
        [=](auto s, auto, auto h, auto q, auto kv) { return s - rates(h) * abs(q - kv); }, aligned);
    return finish(attend(heads, in, window(options.window_size, options.window_size), decay));
  }
  torch::Tensor rate;  ///< [H]

 protected:
  Keeps keeps() const override { return {.reach = options.window_size}; }  // for caches
};
using Decay = Holder<DecayImpl>;
// [/mechanism]

int main() {
  torch::manual_seed(0);
  // [use]
  Decay attn({.d_model = 64, .num_heads = 4, .window_size = 16, .causal = true});
  auto x = torch::randn({1, 200, 64});
  attn(x).output.square().sum().backward();  // attn->rate.grad() is there

  torch::NoGradGuard no_grad;
  auto whole = attn(x).output;
  auto packed = attn(x, {.documents = {.offsets = torch::tensor({0, 80, 200})}}).output;

  auto cache = attn->make_cache(/*batch=*/1);  // without end: 16 tokens and some are kept
  std::vector<torch::Tensor> steps;
  for (int64_t i = 0; i < 200; ++i)
    steps.push_back(attn(x.slice(1, i, i + 1), {.cache = cache}).output);

  Decay copy(attn->get_config());
  load_state_dict(*copy, state_dict(*attn));  // "rate" is one of its names
  auto block = transformer_block(gated(copy));
  // [/use]
  std::cout << attn << "\ncache: " << cache.bytes() << " bytes\n";
  EagerReferenceGuard eager;  // by definition
  const auto by_definition = attn(x).output;
  const auto near = [](const torch::Tensor& a, const torch::Tensor& b) {
    return torch::allclose(a, b, 1e-4, 1e-5);
  };
  const bool right = near(whole, by_definition) && near(torch::cat(steps, 1), whole) &&
                     near(packed.slice(1, 80), attn(x.slice(1, 80)).output) &&
                     near(copy(x).output, whole) &&
                     attn->rate.grad().abs().min().item<float>() > 0 &&
                     block(x).output.isfinite().all().item<bool>();
  return right ? 0 : 1;
}
