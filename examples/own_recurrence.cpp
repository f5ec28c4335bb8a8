// A recurrence of one's own: gates of whole tokens, as a module with all that the zoo's have.

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

// [mechanism]
struct LeakyOptions {
  int64_t d_model = 0, num_heads = 4;
  std::optional<int64_t> head_dim = std::nullopt;
  int64_t conv_size = 4;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0;
  bool bias = false;
};

/// S_t = f_t S_{t-1} + (1 - f_t) k_t v_t^T with a gate f_t = sigmoid(x_t W_f) of each head: what a
/// token writes is what it makes the state forget.
class LeakyImpl : public RecurrentAttention<LeakyImpl, LeakyOptions> {
 public:
  static constexpr const char* kName = "Leaky";
  explicit LeakyImpl(const LeakyOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model())) {
    reset();
  }
  void reset() override {
    RecurrentAttention::reset();
    const int64_t features = heads_.H * heads_.dk;
    w_qkv = make_projection("w_qkv", input_dim(), 3 * features);
    w_f = make_projection("w_f", input_dim(), heads_.H, /*bias=*/true);
    w_o = make_projection("w_o", features, d_model());
    conv = make_convolution("conv", 3 * features, options.conv_size);
    norm = make_norm("norm", heads_.dk, 1e-5);
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
    auto call = begin(x, in);  // call.x: x, with what a cache wants to see again
    const auto qkv = call.convolve(conv, apply_linear(call.x, w_qkv)).chunk(3, -1);
    const auto f = torch::log_sigmoid(apply_linear(call.x, w_f)).transpose(1, 2);  // [B, H, n]
    const auto heads = [&](const torch::Tensor& t) { return core::split_heads(t, heads_.dk); };
    const auto write = -torch::expm1(f).unsqueeze(-1);  // 1 - exp(f)
    const auto o = call.recur(heads(qkv[0]), heads(qkv[1]), heads(qkv[2]) * write, {.decay = f});
    return finish(call, core::join_heads(norm(o)));
  }
  torch::nn::Linear w_qkv{nullptr}, w_f{nullptr};
  ShortConvolution conv{nullptr};
  RMSNorm norm{nullptr};

 private:
  core::RecurrentHeads heads_;
};
using Leaky = Holder<LeakyImpl>;
// [/mechanism]

int main() {
  torch::manual_seed(0);
  // [use]
  Leaky attn({.d_model = 64, .num_heads = 4});
  const auto x = torch::randn({1, 200, 64});
  attn(x).output.square().sum().backward();  // attn->w_f->weight.grad() is there

  const torch::NoGradGuard no_grad;
  const auto whole = attn(x).output;
  const auto packed = attn(x, {.documents = {.offsets = torch::tensor({0, 80, 200})}}).output;

  auto cache = attn->make_cache(/*batch=*/1);
  std::vector<torch::Tensor> steps;
  for (int64_t i = 0; i < 200; ++i)
    steps.push_back(attn(x.slice(1, i, i + 1), {.cache = cache}).output);
  // [/use]

  const auto error = [](const torch::Tensor& a, const torch::Tensor& b) {
    return (a - b).abs().max().item<double>();
  };
  const double of_steps = error(torch::cat(steps, 1), whole);
  const double of_documents = error(packed.slice(1, 80), attn(x.slice(1, 80)).output);
  std::cout << attn << "\nsteps with a cache against the whole pass: " << of_steps
            << "\nthe second document against a sequence of its own: " << of_documents
            << "\nthe cache behind 200 tokens: " << cache.bytes() << " bytes\n";
  const bool learns = attn->w_f->weight.grad().abs().sum().item<double>() > 0;
  return learns && of_steps < 1e-4 && of_documents < 1e-4 ? 0 : 1;
}
