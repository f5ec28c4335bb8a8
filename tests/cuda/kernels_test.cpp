// Attention by kernels that are compiled at run time.

#include <cstdio>

#include "cuda/cuda_case.hpp"

namespace attzoo::testing {
namespace {

auto capped() {
  return score_mod(
      [](auto s, auto, auto, auto q, auto kv) { return 20 * tanh(s / 20) - 0.01 * abs(q - kv); });
}

TEST_F(CudaKernels, RunNamedMasks) {
  const auto mask = [](auto of) -> Make {
    return [=](Setting& at) { return Modifiers{of(at.device), {}}; };
  };
  const auto ids = torch::arange(330).div(90, "floor").expand({2, 330});
  const auto global = torch::rand({2, 330}) < 0.1;
  const auto bits = torch::rand({2, 1, 330, 330}) < 0.5;
  const auto chosen = torch::rand({2, 1, 9, 11}) < 0.4;
  for (const auto& [name, make] : std::vector<std::pair<std::string, Make>>{
           {"none", constant({})},
           {"causal", constant(causal())},
           {"window", constant(window(50, 20))},
           {"window of the past", constant(window(40, 0))},
           {"dilated", constant(dilated(3))},
           {"dilated window", constant(dilated(2) && window(100, 100))},
           {"blocks", constant(blocks(50))},
           {"prefix", constant(prefix(100))},
           {"neighborhood", constant(neighborhood({11, 30}, {5, 7}, {1, 2}))},
           {"not causal", constant(!causal())},
           {"causal or prefix", constant(causal() || prefix(70))},
           {"documents",
            mask([=](auto& d) { return AnyMask(documents({.ids = ids.to(d)}) && causal()); })},
           {"global tokens",
            mask([=](auto& d) { return AnyMask(global_tokens(global.to(d)) || window(9, 9)); })},
           {"chosen blocks", mask([=](auto& d) {
              return AnyMask(chosen_blocks(chosen.to(d), 40, 30) && causal());
            })},
           {"tensor", mask([=](auto& d) { return AnyMask(mask_tensor(bits.to(d))); })},
       }) {
    for (const auto dtype : {kBf16, kF32}) {
      expect_attention({.name = name, .dtype = dtype, .B = 2, .L = 330, .make = make});
    }
  }
}

TEST_F(CudaKernels, RunNamedScores) {
  attzoo_compile_quickly(true);
  torch::manual_seed(1);
  const auto slopes = torch::rand({2}), bias = torch::randn({1, 2, 130, 330}),
             buckets = torch::randn({32, 2}), sinks = torch::randn({2});
  const auto learns = [](const torch::Tensor& t, auto of) -> Make {
    return [=](Setting& at) { return Modifiers{causal(), of(at.learn_wide(t))}; };
  };
  for (const auto& [name, make] : std::vector<std::pair<std::string, Make>>{
           {"softcap", constant(causal(), softcap(5))},
           {"alibi", learns(slopes, [](const torch::Tensor& t) { return AnyScore(alibi(t)); })},
           {"bias", learns(bias, [](const torch::Tensor& t) { return AnyScore(bias_tensor(t)); })},
           {"bias for all heads",
            learns(bias.slice(1, 0, 1),
                   [](const torch::Tensor& t) { return AnyScore(bias_tensor(t)); })},
           {"relative bias",
            learns(buckets, [](const torch::Tensor& t) { return AnyScore(relative_bias(t)); })},
           {"sink",
            [=](Setting& at) {
              return Modifiers{causal(), sink(at.learn(sinks))};
            }},
           {"a chain",
            learns(slopes,
                   [](const torch::Tensor& t) { return softcap(4) + alibi(t) + softcap(30); })},
       }) {
    for (const auto dtype : {kBf16, kF32})
      expect_attention({.name = name, .dtype = dtype, .make = make});
  }
}

TEST_F(CudaKernels, RunCallables) {
  torch::manual_seed(2);
  const auto places = torch::randn({2, 40}), heads = torch::randn({2}),
             whole = torch::randint(3, {330});
  expect_attention({.name = "lambdas",
                    .L = 330,
                    .make = constant(mask_mod([](auto, auto h, auto q, auto kv) {
                                       return kv <= q && q - kv < 100 + 30 * h;
                                     }),
                                     capped())});
  expect_attention({.name = "tables", .dtype = kF32, .B = 2, .make = [=](Setting& at) {
                      const auto a = table(at.learn_wide(places)), b = table(at.learn(heads)),
                                 c = table(whole.to(at.device));
                      return Modifiers{
                          mask_mod([=](auto, auto, auto q, auto kv) { return c(q) != c(kv); }),
                          score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                            return s * b(h) + a(h, clamp(abs(q - kv), 0, 39)) * b(h);
                          })};
                    }});
}

TEST_F(CudaKernels, RunAllHeadSizesAndTypes) {
  for (const auto dtype : {kBf16, kF16, kF32}) {
    for (const int64_t D : {1, 8, 16, 24, 32, 40, 64, 72, 96, 128, 160, 192, 256}) {
      const int64_t E = D % 16 == 8 ? D + 8 : D;
      expect_attention({.name = c10::str(dtype, " ", D, " ", E),
                        .dtype = dtype,
                        .H = 2,
                        .Hkv = 1,
                        .L = 70,
                        .S = D > 64 && dtype == kF32 ? 170 : 330,
                        .D = D,
                        .E = E,
                        .make = constant(causal(), capped())});
    }
  }
}

TEST_F(CudaKernels, ReadAnyLayout) {
  using Layout = std::function<torch::Tensor(const torch::Tensor&)>;
  for (const auto& [name, layout] : std::vector<std::pair<std::string, Layout>>{
           {"heads in tokens",
            [](auto& t) { return t.transpose(1, 2).contiguous().transpose(1, 2); }},
           {"features first",
            [](auto& t) { return t.transpose(1, 3).contiguous().transpose(1, 3); }},
           {"not at 16 bytes",
            [](auto& t) {
              return torch::cat({t.slice(3, 0, 1), t}, 3).slice(3, 1);
            }},
           {"every second",
            [](auto& t) {
              return torch::stack({t, t}, 3).flatten(2, 3).slice(2, 0, std::nullopt, 2);
            }},
       }) {
    for (const auto dtype : {kBf16, kF32}) {
      expect_attention(
          {.name = name, .dtype = dtype, .B = 2, .make = constant(causal()), .layout = layout});
    }
  }
}

TEST_F(CudaKernels, ShareKeysAndSplitThem) {
  for (const auto dtype : {kBf16, kF32}) {
    for (const int64_t L : {1, 3, 20}) {
      expect_attention({.name = "few queries",
                        .dtype = dtype,
                        .B = 2,
                        .H = 6,
                        .Hkv = 2,
                        .L = L,
                        .S = 900,
                        .make = constant(causal(), capped())});
    }
  }
  expect_attention({.name = "masks of heads",
                    .H = 4,
                    .Hkv = 1,
                    .L = 5,
                    .S = 900,
                    .make = constant(mask_mod([](auto, auto h, auto q, auto kv) {
                      return kv % 4 == h || kv < 64 * h + q;
                    }))});
  expect_attention(
      {.name = "groups", .B = 2, .H = 6, .Hkv = 2, .L = 150, .make = constant(causal())});
}

TEST_F(CudaKernels, DropTheSameWeightsAsTheCpu) {
  for (const auto dtype : {kBf16, kF32}) {
    for (const int64_t L : {2, 130}) {
      expect_attention({.name = "dropout",
                        .dtype = dtype,
                        .B = 2,
                        .L = L,
                        .make = constant(causal()),
                        .options = {.dropout = 0.3, .seed = 0x123456789abcdefull}});
    }
  }
  expect_attention({.name = "all are dropped", .options = {.dropout = 1.0, .seed = 3}});
}

TEST_F(CudaKernels, TakeAnyScale) {
  for (const double scale : {0.0, -0.5, 3.0}) {
    expect_attention({.name = "scale", .make = constant(causal()), .options = {.scale = scale}});
  }
}

TEST_F(CudaKernels, TakeAScaleThatIsNearlyNothing) {
  const auto q = torch::randn({1, 2, 130, 16}), v = torch::randn({1, 2, 330, 16});
  const auto at = [&](const torch::Device& d) {
    const auto k = v.to(d);
    return attention(q.to(d), k, k, causal(), {.scale = 1e-40});
  };
  const auto got = at(torch::Device(torch::kCUDA, 0)), want = at(torch::kCPU);
  EXPECT_TRUE(launched("forward")) << attzoo_error();
  EXPECT_TRUE(torch::allclose(got.lse.cpu(), want.lse));
  EXPECT_TRUE(torch::allclose(got.output.cpu(), want.output, 1e-5, 1e-6));
}

TEST_F(CudaKernels, KeepWhatIsNoNumberWhereItIs) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const auto dtype : {kBf16, kF32}) {
    expect_attention({.name = "hidden keys",
                      .dtype = dtype,
                      .make = constant(prefix(300)),
                      .spoil = [&](auto&, auto& k, auto& v) {
                        k.slice(2, 310).fill_(kNan);
                        v.slice(2, 305).fill_(kInf);
                      }});
    expect_attention(
        {.name = "a hidden key of a part",
         .dtype = dtype,
         .H = 4,
         .L = 3,
         .S = 1200,
         .make = constant(mask_mod([](auto, auto, auto, auto kv) { return kv != 700; })),
         .spoil = [&](auto&, auto&, auto& v) { v.slice(2, 700, 701).fill_(kInf); }});
    expect_attention({.name = "later values",
                      .dtype = dtype,
                      .L = 330,
                      .make = constant(causal()),
                      .spoil = [&](auto& q, auto& k, auto& v) {
                        v.slice(2, 200, 201).fill_(kNan);
                        k.slice(2, 300, 301).fill_(kInf);
                        q.slice(2, 100, 101).fill_(kNan);
                      }});
  }
}

TEST_F(CudaKernels, GiveRowsWithoutKeysNothing) {
  for (const auto dtype : {kBf16, kF32}) {
    expect_attention({.name = "more queries than keys",
                      .dtype = dtype,
                      .L = 330,
                      .S = 100,
                      .make = constant(causal())});
    expect_attention({.name = "holes",
                      .dtype = dtype,
                      .make = constant(mask_mod(
                          [](auto, auto, auto q, auto kv) { return q % 3 != 0 && kv > q; }))});
    expect_attention(
        {.name = "nobody", .dtype = dtype, .make = constant(!(causal() || !causal()))});
  }
}

TEST_F(CudaKernels, GiveTheSameBitsEachTime) {
  const Case c{.name = "again",
               .B = 2,
               .L = 200,
               .make = constant(causal(), capped()),
               .options = {.dropout = 0.2, .seed = 5}};
  const auto first = run(c, c.dtype, torch::Device(torch::kCUDA, 0));
  const auto second = run(c, c.dtype, torch::Device(torch::kCUDA, 0));
  EXPECT_TRUE(torch::equal(first.output, second.output));
  for (size_t i = 0; i < first.grads.size(); ++i) {
    EXPECT_TRUE(torch::equal(first.grads[i], second.grads[i])) << i;
  }
}

// The work around the tensor cores: rows of 2048 keys, so that beginnings and ends count little
// (but for keys, of 128 queries).
TEST_F(CudaKernels, TakeFewInstructions) {
  const auto least = [](int64_t D, double forward, double queries, double keys) {
    run({.name = "plain", .H = 4, .Hkv = 4, .L = 128, .S = 2048, .D = D, .E = D}, kBf16,
        torch::Device(torch::kCUDA, 0));
    ASSERT_EQ(attzoo_launches(), 3) << attzoo_error();
    for (int i = 0; i < 3; ++i) {
      const auto launch = attzoo_launch(i);
      const double each =
          static_cast<double>(launch.instructions) / static_cast<double>(launch.products);
      std::printf("D %d %s: %.2f instructions for each product\n", static_cast<int>(D),
                  launch.kernel, each);
      EXPECT_LE(each, i == 0 ? forward : i == 1 ? queries : keys) << launch.kernel;
      EXPECT_EQ(launch.conflicts, 1) << launch.kernel;
    }
    attzoo_reset();
  };
  attzoo_reset();
  least(128, 5, 5.5, 8);
  least(64, 7, 6.7, 10);
}

}  // namespace
}  // namespace attzoo::testing
