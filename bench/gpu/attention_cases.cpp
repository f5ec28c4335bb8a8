#include <limits>
#include <utility>

#include "gpu/attention_case.hpp"
#include "support/random_modifiers.hpp"

namespace bench {
namespace {
using namespace attzoo;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Collects the cases; by `plain` they begin.
struct Cases {
  bool quick;
  Case plain = {};
  std::vector<Case> all = {};

  Case with(std::string name, Make make) const {
    auto c = plain;
    c.name = std::move(name);
    c.make = std::move(make);
    return c;
  }
  void add(Case c, const std::vector<torch::ScalarType>& dtypes = {kBf16, kF32}) {
    for (const auto dtype : dtypes) {
      c.dtype = dtype;
      all.push_back(c);
    }
  }
  void add(std::string name, Make make) { add(with(std::move(name), std::move(make))); }

  void add_masks();
  void add_scores();
  void add_callables();
  void add_sizes();
  void add_layouts();
  void add_few_queries();
  void add_special_numbers();
  void add_empty_rows();
  void add_random();
  void add_long();
};

auto own_causal() {
  return mask_mod([](auto, auto, auto q, auto kv) { return kv <= q; });
}
auto capped() {
  return score_mod(
      [](auto s, auto, auto, auto q, auto kv) { return 20 * tanh(s / 20) - 0.01 * abs(q - kv); });
}

void Cases::add_masks() {
  torch::manual_seed(1);
  const int64_t B = plain.B, L = plain.L, S = plain.S;
  const auto ids = torch::arange(S).div(S / 4, "floor").expand({B, S});
  const auto global = torch::rand({B, S}) < 0.1;
  const auto bits = torch::rand({B, 1, L, S}) < 0.5;
  const auto on_device = [](auto of) -> Make {
    return [=](Setting& at) { return Modifiers{of(at.device), {}}; };
  };
  add("no mask", constant({}));
  add("causal", constant(causal()));
  add("causal from the top left", constant(causal(CausalAlignment::kTopLeft)));
  add("causal by a callable", constant(own_causal()));
  add("window", constant(window(50, 20)));
  add("window of the past", constant(window(40, 0)));
  add("dilated", constant(dilated(3)));
  add("dilated window", constant(dilated(2) && window(100, 100)));
  add("blocks", constant(blocks(50)));
  add("prefix or causal", constant(causal() || prefix(70)));
  add("not causal", constant(!causal(CausalAlignment::kTopLeft)));
  add("documents",
      on_device([=](auto& d) { return AnyMask(documents({.ids = ids.to(d)}) && causal()); }));
  add("global tokens",
      on_device([=](auto& d) { return AnyMask(global_tokens(global.to(d)) || window(9, 9)); }));
  add("mask tensor", on_device([=](auto& d) { return AnyMask(mask_tensor(bits.to(d))); }));
  add("block mask", on_device([=](auto& d) {
        const auto t = table(ids[0].contiguous().to(d));
        return AnyMask(
            block_mask(mask_mod([=](auto, auto, auto q, auto kv) { return t(q) <= t(kv); }), L, S));
      }));
}

void Cases::add_scores() {
  torch::manual_seed(2);
  const int64_t H = plain.H;
  const auto slopes = torch::rand({H}), bias = torch::randn({1, H, plain.L, plain.S}),
             buckets = torch::randn({32, H}), sinks = torch::randn({H});
  const auto learns = [](const torch::Tensor& t, auto of) -> Make {
    return [=](Setting& at) { return Modifiers{causal(), of(at.learn_wide(t))}; };
  };
  add("softcap", constant(causal(), softcap(5)));
  add("alibi", learns(slopes, [](const torch::Tensor& t) { return AnyScore(alibi(t)); }));
  add("bias", learns(bias, [](const torch::Tensor& t) { return AnyScore(bias_tensor(t)); }));
  add("bias for all heads",
      learns(bias.slice(1, 0, 1), [](const torch::Tensor& t) { return AnyScore(bias_tensor(t)); }));
  add("relative bias",
      learns(buckets, [](const torch::Tensor& t) { return AnyScore(relative_bias(t)); }));
  add("sink", [=](Setting& at) { return Modifiers{causal(), sink(at.learn(sinks))}; });
  add("a chain",
      learns(slopes, [](const torch::Tensor& t) { return softcap(4) + alibi(t) + softcap(30); }));
}

void Cases::add_callables() {
  torch::manual_seed(3);
  const auto places = torch::randn({plain.H, 40}), heads = torch::randn({plain.H}),
             whole = torch::randint(3, {plain.S});
  add("lambdas", constant(mask_mod([](auto, auto h, auto q, auto kv) {
                            return kv <= q && q - kv < 100 + 30 * h;
                          }),
                          capped()));
  add("tables that learn", [=](Setting& at) {
    const auto a = table(at.learn_wide(places)), b = table(at.learn(heads)),
               c = table(whole.to(at.device));
    return Modifiers{mask_mod([=](auto, auto, auto q, auto kv) { return c(q) != c(kv); }),
                     score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                       return s * b(h) + a(h, clamp(abs(q - kv), 0, 39)) * b(h);
                     })};
  });
  for (const double scale : {0.0, -0.5, 3.0}) {
    auto c = with("scale " + std::to_string(scale), constant(causal()));
    c.options.scale = scale;
    add(c);
  }
  for (const int64_t L : {int64_t{2}, plain.L}) {
    auto c = with("dropout, L " + std::to_string(L), constant(causal()));
    c.L = L;
    c.options = {.dropout = 0.3, .seed = 0x123456789abcdefull};
    add(c);
  }
}

void Cases::add_sizes() {
  for (const int64_t D :
       quick ? std::vector<int64_t>{24, 64}
             : std::vector<int64_t>{1, 8, 24, 32, 40, 64, 72, 96, 128, 160, 192, 256}) {
    auto c = with("D " + std::to_string(D), constant(causal(), capped()));
    c.D = D;
    c.E = D % 16 == 8 ? D + 8 : D;
    add(c, {kBf16, kF16, kF32, kF64});
  }
}

void Cases::add_layouts() {
  using Layout = std::function<torch::Tensor(const torch::Tensor&)>;
  for (const auto& [name, layout] : std::vector<std::pair<std::string, Layout>>{
           {"heads in tokens",
            [](auto& t) { return t.transpose(1, 2).contiguous().transpose(1, 2); }},
           {"features first",
            [](auto& t) { return t.transpose(1, 3).contiguous().transpose(1, 3); }},
           {"not at 16 bytes", [](auto& t) {
              return torch::cat({t.slice(3, 0, 1), t}, 3).slice(3, 1);
            }}}) {
    auto c = with(name, constant(causal()));
    c.layout = layout;
    add(c);
  }
}

void Cases::add_few_queries() {
  for (const int64_t L : {1, 3, 20}) {
    for (const bool one_group : {false, true}) {
      auto c = with("decoding, L " + std::to_string(L) + (one_group ? ", one key head" : ""),
                    constant(causal(), one_group ? AnyScore() : AnyScore(capped())));
      c.H = 6, c.Hkv = one_group ? 1 : 2, c.L = L, c.S = quick ? 900 : 5000;
      add(c);
    }
  }
  auto c = with("masks of heads", constant(mask_mod([](auto, auto h, auto q, auto kv) {
                  return kv % 4 == h || kv < 64 * h + q;
                })));
  c.Hkv = 1, c.L = 5, c.S = 900;
  add(c);
}

void Cases::add_special_numbers() {
  auto c = with("no numbers in hidden keys", constant(prefix(plain.S - 30)));
  c.spoil = [S = plain.S](auto&, auto& k, auto& v) {
    k.slice(2, S - 20).fill_(kNan);
    v.slice(2, S - 25).fill_(kInf);
  };
  add(c);
  c = with("no numbers in a hidden key of a part",
           constant(mask_mod([](auto, auto, auto, auto kv) { return kv != 700; })));
  c.L = 3, c.S = 1200;
  c.spoil = [](auto&, auto&, auto& v) { v.slice(2, 700, 701).fill_(kInf); };
  add(c);
  c = with("no numbers in later values", constant(causal()));
  c.L = c.S;
  c.spoil = [n = c.L](auto& q, auto& k, auto& v) {
    v.slice(2, n / 2, n / 2 + 1).fill_(kNan);
    k.slice(2, n - 30, n - 29).fill_(kInf);
    q.slice(2, n / 3, n / 3 + 1).fill_(kNan);
  };
  add(c);
}

void Cases::add_empty_rows() {
  auto c = with("more queries than keys", constant(causal()));
  std::swap(c.L, c.S);
  add(c);
  add("holes",
      constant(mask_mod([](auto, auto, auto q, auto kv) { return q % 3 != 0 && kv > q; })));
  add("nobody", constant(!(causal() || !causal())));
}

/// Masks and scores of random operators, half of them with a table that learns.
void Cases::add_random() {
  torch::manual_seed(4);
  for (unsigned seed = 0; seed < (quick ? 6 : 60); ++seed) {
    testing::RandomTrees trees(seed);
    const auto truth = trees.truth(1 + static_cast<int>(seed % 4));
    const auto score = trees.score(1 + static_cast<int>(seed % 3));
    const auto place = trees.whole(2);
    const auto entries = torch::randn({plain.H, 19});
    add(with("random " + std::to_string(seed),
             [=](Setting& at) {
               testing::RandomScore changed{score};
               if (seed % 2 == 0) changed = {score, at.learn_wide(entries), place};
               return Modifiers{testing::RandomMask{truth}, changed + softcap(9)};
             }),
        {seed % 3 == 0 ? kF32 : kBf16});
  }
}

void Cases::add_long() {
  const auto slopes = torch::rand({8});
  for (const auto& [name, make] : std::vector<std::pair<std::string, Make>>{
           {"long", constant({})},
           {"long causal", constant(causal())},
           {"long causal by a callable", constant(own_causal())},
           {"long window", constant(window(500, 0))},
           {"long alibi", [=](Setting& at) {
              return Modifiers{causal(), alibi(at.learn_wide(slopes))};
            }}}) {
    for (const int64_t D : {64, 128}) {
      auto c = with(name + ", D " + std::to_string(D), make);
      c.B = 1, c.H = 8, c.L = 2100, c.S = 2100, c.D = c.E = D;
      add(c, {kBf16, kF16, kF32});
    }
  }
}

}  // namespace

std::vector<Case> attention_cases(bool quick) {
  Cases cases{quick};
  if (quick) {
    auto& c = cases.plain;
    c.B = 2, c.H = 2, c.Hkv = 1, c.L = 70, c.S = 130, c.D = c.E = 16;
  }
  cases.add_masks();
  cases.add_scores();
  cases.add_callables();
  cases.add_sizes();
  cases.add_layouts();
  cases.add_few_queries();
  cases.add_special_numbers();
  cases.add_empty_rows();
  cases.add_random();
  if (!quick) cases.add_long();
  return std::move(cases.all);
}

}  // namespace bench
