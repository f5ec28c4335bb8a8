// What does not compile, one case at a time (-DCASE=n), and what the first line of the error must
// say. `// CASE n: words` is read by check.cmake; case 0 compiles.

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#if CASE >= 36
#include <attzoo/local.hpp>
#include <attzoo/module/stack.hpp>
#include <attzoo/module/transformer.hpp>
#endif
#if (CASE >= 23 && CASE <= 24) || CASE >= 36
#include <attzoo/multi_head.hpp>
#endif

#include <algorithm>
#include <cmath>
#include <vector>

torch::Tensor run(const torch::Tensor& q, const torch::Tensor& t, const std::vector<int>& v) {
  using namespace attzoo;
  const auto use = [&](const auto& modifier) { return attention(q, q, q, modifier).output; };
#if CASE == 0
  const auto u = table(t);
  use((causal() & window(3, 0)) | ~prefix(4));
  use(mask_mod([=](auto b, auto, auto q, auto kv) {
    auto d = abs(q - kv);
    d *= 2;
    auto ok = d == 4;
    ok |= ~(q > kv);
    return ok && ~d < -b;
  }));
  return use(score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    s += u(h, q - kv);
    return s;
  }));
#elif CASE == 1   // CASE 1: four auto parameters
  return use(mask_mod([](auto b, auto h, auto q) { return q > b + h; }));
#elif CASE == 2   // CASE 2: five auto parameters
  return use(score_mod([](auto b, auto h, auto q, auto kv) { return q + kv + b + h; }));
#elif CASE == 3   // CASE 3: four auto parameters
  return use(mask_mod([](int, int, int q, int kv) { return q > kv; }));
#elif CASE == 4   // CASE 4: five auto parameters
  return use(score_mod([](float s, int, int, int q, int kv) { return s + float(q - kv); }));
#elif CASE == 5   // CASE 5: write exp\(s\)
  return use(score_mod([](auto s, auto, auto, auto, auto) { return std::exp(s); }));
#elif CASE == 6   // CASE 6: without std::
  return use(score_mod([](auto s, auto, auto, auto, auto) { return 20 * std::tanh(s / 20); }));
#elif CASE == 7   // CASE 7: write min\(a, b\) without std::
  return use(
      score_mod([](auto s, auto, auto, auto q, auto kv) { return s + std::min(q - kv, 8); }));
#elif CASE == 8   // CASE 8: min, max and clamp without std::
  return use(mask_mod([](auto, auto, auto q, auto kv) { return std::max(q, kv) > 3; }));
#elif CASE == 9   // CASE 9: attzoo::table
  return use(score_mod([=](auto s, auto, auto h, auto, auto) { return s + t[h]; }));
#elif CASE == 10  // CASE 10: attzoo::table
  return use(mask_mod([=](auto, auto, auto q, auto kv) { return t[q] == t[kv]; }));
#elif CASE == 11  // CASE 11: attzoo::table
  return use(mask_mod([=](auto, auto, auto q, auto kv) { return v[q] == v[kv]; }));
#elif CASE == 12  // CASE 12: where\(condition, a, b\)
  return use(score_mod([](auto s, auto, auto, auto q, auto kv) { return q > kv ? s : -s; }));
#elif CASE == 13  // CASE 13: mask_tensor\(tensor\)
  return use(mask_mod([=](auto, auto, auto, auto) { return t; }));
#elif CASE == 14  // CASE 14: bias_tensor\(tensor\)
  return use(score_mod([=](auto, auto, auto, auto, auto) { return t; }));
#elif CASE == 15  // CASE 15: write t\(0 \* h\)
  const auto u = table(t);
  return use(score_mod([=](auto s, auto, auto, auto, auto) { return s + u(0); }));
#elif CASE == 16  // CASE 16: must be a whole number
  const auto u = table(t);
  return use(score_mod([=](auto s, auto, auto, auto q, auto) { return s + u(q / 2.0); }));
#elif CASE == 17  // CASE 17: write mask_mod\(f\) or score_mod\(f\)
  return use([](auto, auto, auto q, auto kv) { return q >= kv; });
#elif CASE == 18  // CASE 18: mask_tensor\(t\) or bias_tensor\(t\)
  return use(t);
#elif CASE == 19  // CASE 19: in this order
  return attention(q, q, q, softcap(3.0), causal()).output;
#elif CASE == 20  // CASE 20: joined by &&
  return attention(q, q, q, causal(), window(3, 0)).output;
#elif CASE == 21  // CASE 21: write score_mod\(f\)
  return attention(q, q, q, causal(), [](auto s, auto, auto, auto, auto) { return 2 * s; }).output;
#elif CASE == 22  // CASE 22: bias_tensor\(t\) for a tensor t
  return attention(q, q, q, causal(), t).output;
#elif CASE == 23  // CASE 23: named inputs
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, t).output;
#elif CASE == 24  // CASE 24: attention\(q, k, v\)
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, q, q).output;
#elif CASE == 25  // CASE 25: write abs\(x\) without std::
  return use(mask_mod([](auto, auto, auto q, auto kv) { return std::abs(q - kv) < 8; }));
#elif CASE == 26  // CASE 26: write auto ok = q == kv
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    const bool ok = q == kv;
    return ok;
  }));
#elif CASE == 27  // CASE 27: write auto d = q - kv
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    const int64_t d = q - kv;
    return d > 3;
  }));
#elif CASE == 28  // CASE 28: write auto for double
  return use(
      mask_mod([](auto, auto, auto q, auto kv) { return static_cast<double>(q) > 0.1 * kv; }));
#elif CASE == 29  // CASE 29: write auto for double
  return use(
      mask_mod([](auto, auto, auto q, auto kv) { return static_cast<float>(q) > 0.1 * kv; }));
#elif CASE == 30  // CASE 30: causal\(\) for causal
  return attention(q, q, q, causal).output;
#elif CASE == 31  // CASE 31: softcap\(30.0\) for softcap
  return attention(q, q, q, causal(), softcap).output;
#elif CASE == 32  // CASE 32: a whole number remains one
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    auto d = q - kv;
    d += 0.5;
    return d > 3;
  }));
#elif CASE == 33  // CASE 33: what takes up a score begins with one
  return use(score_mod([](auto s, auto, auto, auto q, auto) {
    auto x = 0.1 * q;
    x += s;
    return x;
  }));
#elif CASE == 34  // CASE 34: a truth value takes &=, \|= and \^=
  return use(mask_mod([](auto, auto h, auto q, auto kv) {
    auto n = q > kv;
    n += h == 1;
    return n > 1;
  }));
#elif CASE == 35  // CASE 35: write !x
  const auto u = table(t);
  return use(mask_mod([=](auto, auto, auto q, auto) { return ~u(q); }));
#elif CASE == 36  // CASE 36: for causal\(\) write .causal = true
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = causal()}).output;
#elif CASE == 37  // CASE 37: .pattern = mask_mod\(f\)
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = [](auto, auto, auto q, auto kv) { return q >= kv; }}).output;
#elif CASE == 38  // CASE 38: Inputs are .mask, .key_padding_mask
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = t, .is_causal = true}).output;
#elif CASE == 39  // CASE 39: Options are d_model, num_heads
  MultiHeadSelfAttention attn({.d_model = 64, .heads = 8});
  return attn(q).output;
#elif CASE == 40  // CASE 40: write the type before the brace
  LocalSelfAttention attn({.d_model = 64, .n_heads = 8, .window_size = 8, .causal = true});
  return attn(q).output;
#elif CASE == 41  // CASE 41: heads
  MultiHeadSelfAttention attn(MultiHeadSelfAttentionOptions{.d_model = 64, .heads = 8});
  return attn(q).output;
#elif CASE == 42  // CASE 42: options are .mlp_hidden
  return transformer_block(MultiHeadSelfAttention(64, 8), {.mlp_dim = 64})(q).output;
#elif CASE == 43  // CASE 43: a block needs AttentionResult forward
  return Stack(MultiHeadSelfAttention(64, 8), torch::nn::Linear(64, 64))(q).output;
#endif
}
