// What does not compile, and what the first line of the error must say: `// CASE n: words`, which
// check.cmake reads. -DCASE=n compiles one of them, -DCASE=-1 all that are not alone; case 0
// compiles.

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/local.hpp>
#include <attzoo/module/stack.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

using namespace attzoo;

#define TOGETHER(n) (CASE == (n) || CASE == -1)
#define ALONE(n) (CASE == (n))  // behind the error of another case the compiler says something else

#define RUN(n)                                                   \
  torch::Tensor run_##n([[maybe_unused]] const torch::Tensor& q, \
                        [[maybe_unused]] const torch::Tensor& t, \
                        [[maybe_unused]] const std::vector<int>& v)

template <class Modifier>
torch::Tensor use(const Modifier& modifier) {
  return attention({}, {}, {}, modifier).output;
}

// attend() of a mechanism.
template <class... Modifiers>
class AttendsImpl : public LocalSelfAttentionImpl {
 public:
  using LocalSelfAttentionImpl::LocalSelfAttentionImpl;
  torch::Tensor run(const Heads& heads, const Modifiers&... modifiers) const {
    return attend(heads, {}, modifiers...).output;
  }
};
template <class... Modifiers>
torch::Tensor attend_by(const Modifiers&... modifiers) {
  return AttendsImpl<Modifiers...>(LocalSelfAttentionOptions{.d_model = 64}).run({}, modifiers...);
}

#if ALONE(0)
RUN(attend) {
  return attend_by() + attend_by(window(3, 0)) + attend_by(softcap(30.0)) +
         attend_by(causal() & prefix(4), softcap(30.0));
}
RUN(0) {
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
}
#endif

#if TOGETHER(1)  // CASE 1: four auto parameters
RUN(1) {
  return use(mask_mod([](auto b, auto h, auto q) { return q > b + h; }));
}
#endif

#if TOGETHER(2)  // CASE 2: five auto parameters
RUN(2) {
  return use(score_mod([](auto b, auto h, auto q, auto kv) { return q + kv + b + h; }));
}
#endif

#if TOGETHER(3)  // CASE 3: four auto parameters
RUN(3) {
  return use(mask_mod([](int, int, int q, int kv) { return q > kv; }));
}
#endif

#if TOGETHER(4)  // CASE 4: five auto parameters
RUN(4) {
  return use(score_mod([](float s, int, int, int q, int kv) { return s + float(q - kv); }));
}
#endif

#if TOGETHER(5)  // CASE 5: write exp\(s\)
RUN(5) {
  return use(score_mod([](auto s, auto, auto, auto, auto) { return std::exp(s); }));
}
#endif

#if ALONE(6)  // CASE 6: without std::
RUN(6) {
  return use(score_mod([](auto s, auto, auto, auto, auto) { return 20 * std::tanh(s / 20); }));
}
#endif

#if TOGETHER(7)  // CASE 7: write min\(a, b\) without std::
RUN(7) {
  return use(
      score_mod([](auto s, auto, auto, auto q, auto kv) { return s + std::min(q - kv, 8); }));
}
#endif

#if TOGETHER(8)  // CASE 8: min, max and clamp without std::
RUN(8) {
  return use(mask_mod([](auto, auto, auto q, auto kv) { return std::max(q, kv) > 3; }));
}
#endif

#if TOGETHER(9)  // CASE 9: attzoo::table
RUN(9) {
  return use(score_mod([=](auto s, auto, auto h, auto, auto) { return s + t[h]; }));
}
#endif

#if TOGETHER(10)  // CASE 10: attzoo::table
RUN(10) {
  return use(mask_mod([=](auto, auto, auto q, auto kv) { return t[q] == t[kv]; }));
}
#endif

#if TOGETHER(11)  // CASE 11: attzoo::table
RUN(11) {
  return use(mask_mod([=](auto, auto, auto q, auto kv) { return v[q] == v[kv]; }));
}
#endif

#if ALONE(12)  // CASE 12: where\(condition, a, b\)
RUN(12) {
  return use(score_mod([](auto s, auto, auto, auto q, auto kv) { return q > kv ? s : -s; }));
}
#endif

#if TOGETHER(13)  // CASE 13: mask_tensor\(tensor\)
RUN(13) {
  return use(mask_mod([=](auto, auto, auto, auto) { return t; }));
}
#endif

#if TOGETHER(14)  // CASE 14: bias_tensor\(tensor\)
RUN(14) {
  return use(score_mod([=](auto, auto, auto, auto, auto) { return t; }));
}
#endif

#if TOGETHER(15)  // CASE 15: write t\(0 \* h\)
RUN(15) {
  const auto u = table(t);
  return use(score_mod([=](auto s, auto, auto, auto, auto) { return s + u(0); }));
}
#endif

#if TOGETHER(16)  // CASE 16: must be a whole number
RUN(16) {
  const auto u = table(t);
  return use(score_mod([=](auto s, auto, auto, auto q, auto) { return s + u(q / 2.0); }));
}
#endif

#if TOGETHER(17)  // CASE 17: write mask_mod\(f\) or score_mod\(f\)
RUN(17) {
  return use([](auto, auto, auto q, auto kv) { return q >= kv; });
}
#endif

#if TOGETHER(18)  // CASE 18: mask_tensor\(t\) or bias_tensor\(t\)
RUN(18) { return use(t); }
#endif

#if TOGETHER(19)  // CASE 19: in this order
RUN(19) { return attention(q, q, q, softcap(3.0), causal()).output; }
#endif

#if TOGETHER(20)  // CASE 20: joined by &&
RUN(20) { return attention(q, q, q, causal(), window(3, 0)).output; }
#endif

#if TOGETHER(21)  // CASE 21: write score_mod\(f\)
RUN(21) {
  return attention(q, q, q, causal(), [](auto s, auto, auto, auto, auto) { return 2 * s; }).output;
}
#endif

#if TOGETHER(22)  // CASE 22: bias_tensor\(t\) for a tensor t
RUN(22) { return attention(q, q, q, causal(), t).output; }
#endif

#if TOGETHER(23)  // CASE 23: named inputs
RUN(23) {
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, t).output;
}
#endif

#if TOGETHER(24)  // CASE 24: attention\(q, k, v\)
RUN(24) {
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, q, q).output;
}
#endif

#if TOGETHER(25)  // CASE 25: write abs\(x\) without std::
RUN(25) {
  return use(mask_mod([](auto, auto, auto q, auto kv) { return std::abs(q - kv) < 8; }));
}
#endif

#if ALONE(26)  // CASE 26: write auto ok = q == kv
RUN(26) {
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    const bool ok = q == kv;
    return ok;
  }));
}
#endif

#if ALONE(27)  // CASE 27: write auto d = q - kv
RUN(27) {
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    const int64_t d = q - kv;
    return d > 3;
  }));
}
#endif

#if ALONE(28)  // CASE 28: write auto for double
RUN(28) {
  return use(
      mask_mod([](auto, auto, auto q, auto kv) { return static_cast<double>(q) > 0.1 * kv; }));
}
#endif

#if TOGETHER(29)  // CASE 29: write auto for double
RUN(29) {
  return use(
      mask_mod([](auto, auto, auto q, auto kv) { return static_cast<float>(q) > 0.1 * kv; }));
}
#endif

#if TOGETHER(30)  // CASE 30: causal\(\) for causal
RUN(30) { return attention(q, q, q, causal).output; }
#endif

#if TOGETHER(31)  // CASE 31: softcap\(30.0\) for softcap
RUN(31) { return attention(q, q, q, causal(), softcap).output; }
#endif

#if TOGETHER(32)  // CASE 32: a whole number remains one
RUN(32) {
  return use(mask_mod([](auto, auto, auto q, auto kv) {
    auto d = q - kv;
    d += 0.5;
    return d > 3;
  }));
}
#endif

#if TOGETHER(33)  // CASE 33: what takes up a score begins with one
RUN(33) {
  return use(score_mod([](auto s, auto, auto, auto q, auto) {
    auto x = 0.1 * q;
    x += s;
    return x;
  }));
}
#endif

#if TOGETHER(34)  // CASE 34: a truth value takes &=, \|= and \^=
RUN(34) {
  return use(mask_mod([](auto, auto h, auto q, auto kv) {
    auto n = q > kv;
    n += h == 1;
    return n > 1;
  }));
}
#endif

#if TOGETHER(35)  // CASE 35: write !x
RUN(35) {
  const auto u = table(t);
  return use(mask_mod([=](auto, auto, auto q, auto) { return ~u(q); }));
}
#endif

#if TOGETHER(36)  // CASE 36: for causal\(\) write .causal = true
RUN(36) {
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = causal()}).output;
}
#endif

#if ALONE(37)  // CASE 37: .pattern = mask_mod\(f\)
RUN(37) {
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = [](auto, auto, auto q, auto kv) { return q >= kv; }}).output;
}
#endif

#if ALONE(38)  // CASE 38: Inputs are .mask, .key_padding_mask
RUN(38) {
  MultiHeadSelfAttention attn(64, 8);
  return attn(q, {.mask = t, .is_causal = true}).output;
}
#endif

#if TOGETHER(39)  // CASE 39: Options are d_model, num_heads
RUN(39) {
  MultiHeadSelfAttention attn({.d_model = 64, .heads = 8});
  return attn(q).output;
}
#endif

#if TOGETHER(40)  // CASE 40: write the type before the brace
RUN(40) {
  LocalSelfAttention attn({.d_model = 64, .n_heads = 8, .window_size = 8, .causal = true});
  return attn(q).output;
}
#endif

#if TOGETHER(41)  // CASE 41: heads
RUN(41) {
  MultiHeadSelfAttention attn(MultiHeadSelfAttentionOptions{.d_model = 64, .heads = 8});
  return attn(q).output;
}
#endif

#if TOGETHER(42)  // CASE 42: options are .mlp_hidden
RUN(42) { return transformer_block(MultiHeadSelfAttention(64, 8), {.mlp_dim = 64})(q).output; }
#endif

#if ALONE(43)  // CASE 43: a block needs AttentionResult forward
RUN(43) { return Stack(MultiHeadSelfAttention(64, 8), torch::nn::Linear(64, 64))(q).output; }
#endif

#if ALONE(44)  // CASE 44: the options of a mechanism need .*input_dim
struct FewOptions {
  int64_t d_model = 0;
  double dropout = 0;
  bool bias = true, causal = false;
};
class FewImpl : public SelfAttention<FewImpl, FewOptions> {};
#endif

#if TOGETHER(45)  // CASE 45: attend\(heads, inputs\) takes a mask, .* mask_mod\(f\)
RUN(45) {
  return attend_by([](auto, auto, auto q, auto kv) { return q >= kv; });
}
#endif

#if TOGETHER(46)  // CASE 46: takes a mask, a score modifier or both in this order
RUN(46) { return attend_by(softcap(30.0), causal()); }
#endif

#if TOGETHER(47)  // CASE 47: takes a mask, a score modifier or both
RUN(47) { return attend_by(causal); }
#endif
