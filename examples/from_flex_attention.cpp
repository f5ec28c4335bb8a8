// FlexAttention's examples, each compared with its definition (docs/from_flex_attention.md).

#include <torch/autograd.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

namespace {

const int64_t n = 192;
torch::Tensor queries, keys, values;  // [2, 4, n, 32]
bool right = true;

/// The output and all gradients in a row.
torch::Tensor run(const AnyMask& mask, const AnyScore& score) {
  const auto y = attention(queries, keys, values, mask, score).output;
  auto all = torch::autograd::grad({y.square().sum()}, {queries, keys, values});
  all.push_back(y);
  return torch::stack(all);
}

void compare(const char* name, const AnyMask& mask, const AnyScore& score = {}) {
  const auto fused = run(mask, score);
  EagerReferenceGuard eager;
  const double error = (fused - run(mask, score)).abs().max().item<double>();
  std::cout << name << ": differs from its definition by " << error << '\n';
  right = right && error < 1e-10;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto leaf = torch::dtype(torch::kFloat64).requires_grad(true);
  for (auto* t : {&queries, &keys, &values}) *t = torch::randn({2, 4, n, 32}, leaf);

  // [causal]
  auto earlier = mask_mod([](auto, auto, auto q, auto kv) { return q >= kv; });
  auto y = attention(queries, keys, values, earlier).output;
  auto same = attention(queries, keys, values, causal()).output;  // and skips what is above
  // [/causal]
  right = right && torch::allclose(y, same);
  compare("causal", earlier);

  // [relative]
  auto relative = score_mod([](auto s, auto, auto, auto q, auto kv) { return s + (q - kv); });
  // [/relative]
  compare("relative position", causal(), relative);

  // [alibi]
  auto slopes = alibi_slopes(4).to(torch::kFloat64);  // [H]; may be a parameter that learns
  auto slope = table(slopes);
  auto far = score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    return s + slope(h) * (kv - q);  // by name alibi(slopes): s - slope |q - kv|
  });
  // [/alibi]
  compare("ALiBi", causal(), far);
  compare("ALiBi by name", causal(), alibi(slopes));

  // [softcap]
  auto capped = score_mod(
      [](auto s, auto, auto, auto, auto) { return 20.0 * tanh(s / 20.0); });  // softcap(20.0)
  // [/softcap]
  compare("softcap", causal(), capped);

  // [window]
  auto near = mask_mod([](auto, auto, auto q, auto kv) { return q - kv <= 64; });
  auto sliding = causal() && near;  // by name causal() && window(64, 0), which visits nothing else
  // [/window]
  compare("sliding window", sliding);

  // [prefix]
  auto length = table(torch::tensor({20, 50}));  // [B]
  auto prefix_lm =
      causal() || mask_mod([=](auto b, auto, auto, auto kv) { return kv < length(b); });
  // [/prefix]
  compare("prefix LM", prefix_lm);

  // [documents]
  auto ids = torch::arange(n).ge(100).to(torch::kInt64);  // [S] or [B, S]: 100 tokens, and the rest
  auto doc = table(ids);
  auto own = mask_mod([=](auto, auto, auto q, auto kv) { return doc(q) == doc(kv); });
  auto packed = causal() && own;  // by name causal() && documents({.ids = ids})
  // [/documents]
  compare("documents", packed);
  compare("documents by name", causal() && documents({.ids = ids}));

  // [inner]
  auto ten_first = [](auto, auto, auto q, auto kv) { return q >= kv || kv < 10; };
  auto prefixes = documents({.ids = ids}) && mask_mod(ten_first, in_document);
  // [/inner]
  compare("a prefix LM in each document", prefixes);

  // [natten]
  const int64_t width = 16, height = n / width, r = 2;  // 5 x 5 pixels, also at the borders
  auto natten = mask_mod([=](auto, auto, auto q, auto kv) {
    auto x = clamp(q % width, r, width - 1 - r), y = clamp(q / width, r, height - 1 - r);
    return abs(x - kv % width) <= r && abs(y - kv / width) <= r;
  });
  auto tiles = block_mask(natten, n, n);  // create_block_mask(natten, None, None, n, n)
  // [/natten]
  compare("NATTEN", natten);
  compare("NATTEN, tiles looked at once", tiles && causal());

  // [gqa]
  auto few_keys = keys.slice(1, 0, 2), few_values = values.slice(1, 0, 2);  // 4 heads share 2
  auto result = attention(queries, few_keys, few_values, causal(), {.scale = 0.125});
  auto output = result.output, lse = result.lse;
  // [/gqa]
  const auto k = few_keys.repeat_interleave(2, 1), v = few_values.repeat_interleave(2, 1);
  const auto whole = attention(queries, k, v, causal(), {.scale = 0.125});
  return right && output.allclose(whole.output) && lse.allclose(whole.lse) ? 0 : 1;
}
