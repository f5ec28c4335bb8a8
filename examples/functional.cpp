// The functional core: a mask and a change of scores are ordinary C++ callables.

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

int main() {
  const auto q = torch::randn({2, 8, 256, 32}), k = torch::randn({2, 8, 256, 32}),
             v = torch::randn({2, 8, 256, 32});
  const auto slopes = alibi_slopes(8);
  auto o = attention(q, k, v);
  auto a = attention(q, k, v, causal());
  auto b = attention(q, k, v, causal() && window(255, 0));
  auto c = attention(q, k, v, causal(), alibi(slopes) + softcap(30.0));
  auto d =
      attention(q, k, v, mask_mod([](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; }));
  auto e = attention(q, k, v, causal(), score_mod([](auto s, auto, auto, auto, auto) {
                       using std::tanh;
                       return 20.0 * tanh(s / 20.0);
                     }));
  std::cout << o.output.sizes() << o.lse.sizes() << o.weights.sizes() << '\n';

  // Every one is what its definition says.
  const auto scores = torch::matmul(q, k.transpose(-2, -1)) / std::sqrt(32.0);
  const auto causal_scores = scores.masked_fill(create_causal_mask(256).logical_not(), -INFINITY);
  const auto error = [](const AttentionResult& r, const torch::Tensor& s, const torch::Tensor& v) {
    return (r.output - torch::matmul(torch::softmax(s, -1), v)).abs().max().item<double>();
  };
  const auto capped = (20.0 * torch::tanh(scores / 20.0))
                          .masked_fill(create_causal_mask(256).logical_not(), -INFINITY);
  const auto third = scores.masked_fill(create_dilated_mask(256, 3).logical_not(), -INFINITY);
  const double errors[] = {error(o, scores, v), error(a, causal_scores, v),
                           error(b, causal_scores, v), error(d, third, v), error(e, capped, v)};
  for (const double x : errors) std::cout << "error against the definition: " << x << '\n';
  return *std::max_element(std::begin(errors), std::end(errors)) < 1e-4 &&
                 c.output.isfinite().all().item<bool>()
             ? 0
             : 1;
}
