#include <attzoo/functional/rope.hpp>
#include <attzoo/module/lora.hpp>
#include <attzoo/multi_head_latent.hpp>

#include <cmath>
#include <optional>
#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::multi_head_latent_test {
namespace {

using Options = MultiHeadLatentAttentionOptions;

torch::Tensor rms(const torch::Tensor& t, const RMSNorm& norm) {
  const auto mean = t.square().mean(-1, /*keepdim=*/true) + norm->options.eps;
  return (t / mean.sqrt() * norm->weight).to(t.scalar_type());
}

/// The paper's equations, for keys and values of every head.
Projected by_definition(MultiHeadLatentAttentionImpl& m, const torch::Tensor& x,
                        const torch::Tensor& context) {
  const auto& o = m.options;
  const int64_t H = o.num_heads, n = *o.head_dim, r = *o.rope_dim, rank = *o.kv_rank;
  auto q = split_heads(o.q_rank ? m.w_q_b(rms(m.w_q_a(x), m.norm_q_a)) : m.w_q(x), H);
  const auto down = m.w_kv_a(context);
  const auto up = split_heads(m.w_kv_b(rms(down.slice(-1, 0, rank), m.norm_kv_a)), H);
  auto k = down.slice(-1, rank).unsqueeze(1).expand({-1, H, -1, -1}).contiguous();
  auto s = q.slice(-1, n).contiguous();
  EXPECT_EQ(k.size(-1), r);
  if (o.rope) s = apply_rope(s, *o.rope.options()), k = apply_rope(k, *o.rope.options());
  return {torch::cat({q.slice(-1, 0, n), s}, -1), torch::cat({up.slice(-1, 0, n), k}, -1),
          up.slice(-1, n)};
}

Options small() {
  return {.d_model = 12,
          .num_heads = 3,
          .head_dim = 5,
          .rope_dim = 4,
          .value_head_dim = 6,
          .kv_rank = 7,
          .dropout = 0};
}

struct Traits : PlainTraits {
  using Module = MultiHeadLatentAttention;
  static Options options() {
    auto o = small();
    o.q_rank = 10;
    o.bias = true;
    return o;
  }
  static Projected project(MultiHeadLatentAttentionImpl& m, const torch::Tensor& x,
                           const torch::Tensor& context) {
    return by_definition(m, x, context);
  }
};
INSTANTIATE_TEST_SUITE_P(Latent, MechanismContract, mechanism<Traits>());

/// Everything in the absorbed form, and queries of one matrix.
struct AbsorbedTraits : Traits {
  static Options options() {
    auto o = small();
    o.absorb = true;
    return o;
  }
};
INSTANTIATE_TEST_SUITE_P(LatentAbsorbed, MechanismContract, mechanism<AbsorbedTraits>());

Tensors leaves_of(const MultiHeadLatentAttention& m, const torch::Tensor& x) {
  Tensors leaves{x};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  return leaves;
}

/// float64, of the sizes of small(), changed; norms as training might leave them.
MultiHeadLatentAttention of_options(const Options& o) {
  MultiHeadLatentAttention m(o);
  const torch::NoGradGuard no_grad;
  m->norm_kv_a->weight.uniform_(0.5, 1.5);
  m->to(torch::kFloat64);
  return m;
}

void expect_close(const torch::Tensor& got, const torch::Tensor& want, double unit = 1e-12) {
  ASSERT_EQ(got.sizes(), want.sizes());
  EXPECT_LE((got - want).abs().max().item<double>(), unit * (1 + want.abs().max().item<double>()));
}

/// The same numbers, gradients too, whatever a call asks for.
TEST(Latent, BothFormsAreTheSame) {
  torch::manual_seed(1);
  const auto mask = torch::randn({2, 3, 17, 17}, torch::kFloat64);
  const auto real = create_padding_mask(std::vector<int64_t>{17, 9});
  const auto context = torch::randn({2, 8, 12}, torch::kFloat64);
  const std::vector<AttentionInputs> calls{
      {},
      {.causal = true},
      {.mask = mask, .key_padding_mask = real},
      {.causal = true, .documents = {.offsets = torch::tensor({0, 4, 17})}},
      {.context = context},
      {.causal = true, .positions = torch::arange(17) * 3 + 5}};
  for (const auto& rope :
       {Rope(true), Rope(false), Rope(RopeOptions{.pairs = RopePairs::kHalves})}) {
    for (const bool low_rank : {false, true}) {
      auto o = small();
      o.rope = rope;
      o.temperature = 0.7;
      if (low_rank) o.q_rank = 10;
      auto m = of_options(o);
      for (const auto& in : calls) {
        if (in.positions.defined() && !rope) continue;
        const auto x = torch::randn({2, 17, 12}, torch::kFloat64).requires_grad_();
        const auto cotangent = torch::randn({2, 17, 12}, torch::kFloat64);
        std::vector<Tensors> got;
        for (const bool absorb : {false, true}) {
          m->options.absorb = absorb;
          const auto r = m(x, in);
          const auto sum = (r.output * cotangent).sum() + r.lse.sin().sum() +
                           torch::Tensor(r.weights).square().sum();
          got.push_back(torch::autograd::grad({sum}, leaves_of(m, x)));
          got.back().insert(got.back().end(), {r.output, r.weights, r.lse});
        }
        for (size_t i = 0; i < got[0].size(); ++i) expect_close(got[1][i], got[0][i]);
      }
    }
  }
}

/// One softmax for each query of each head, written out.
TEST(Latent, IsTheEquation) {
  torch::manual_seed(2);
  for (const bool absorb : {false, true}) {
    auto o = small();
    o.causal = true;
    o.absorb = absorb;
    o.temperature = 1.3;
    auto m = of_options(o);
    const auto x = torch::randn({1, 9, 12}, torch::kFloat64);
    const int64_t n = 5, r = 4, v = 6, rank = 7;
    const auto q = m->w_q(x)[0], down = m->w_kv_a(x)[0];
    std::vector<torch::Tensor> rows;
    for (int64_t i = 0; i < 9; ++i) {
      std::vector<torch::Tensor> heads;
      for (int64_t h = 0; h < 3; ++h) {
        const auto up = m->w_kv_b->weight.slice(0, h * (n + v), (h + 1) * (n + v));
        const auto turned = [&](const torch::Tensor& t, int64_t at) {
          return apply_rope(t.contiguous().view({1, r}), {.position_offset = at})[0];
        };
        const auto qi = q[i].slice(0, h * (n + r), (h + 1) * (n + r));
        std::vector<torch::Tensor> scores, values;
        for (int64_t j = 0; j <= i; ++j) {
          const auto kv = torch::mv(up, rms(down[j].slice(0, 0, rank), m->norm_kv_a));
          const auto score =
              torch::dot(qi.slice(0, 0, n), kv.slice(0, 0, n)) +
              torch::dot(turned(qi.slice(0, n), i), turned(down[j].slice(0, rank), j));
          scores.push_back(score / (1.3 * std::sqrt(9.0)));
          values.push_back(kv.slice(0, n));
        }
        heads.push_back(
            torch::mv(torch::stack(values).t(), torch::softmax(torch::stack(scores), 0)));
      }
      rows.push_back(torch::mv(m->w_o->weight, torch::cat(heads)));
    }
    expect_close(m(x).output[0], torch::stack(rows));
  }
}

/// Token by token, in pieces of any length, and behind padding: the whole pass, in either form.
TEST(Latent, GoesOnFromTheLatents) {
  torch::manual_seed(3);
  const torch::NoGradGuard no_grad;
  for (const std::optional<bool> absorb : {std::optional<bool>(), {false}, {true}}) {
    auto o = small();
    o.q_rank = 10;
    o.causal = true;
    auto m = of_options(o);
    const auto x = torch::randn({2, 60, 12}, torch::kFloat64);
    const auto want = m(x).output;
    m->options.absorb = absorb;
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>(60, 1), {30, 1, 1, 20, 8}, {1, 59}, {60}}) {
      auto cache = m->make_cache(2, 60);
      std::vector<torch::Tensor> got;
      int64_t at = 0;
      for (const auto n : pieces) {
        got.push_back(m(x.slice(1, at, at + n), {.cache = cache}).output);
        at += n;
      }
      expect_close(torch::cat(got, 1), want);
      cache.truncate(40);
      expect_close(m(x.slice(1, 40), {.cache = cache}).output, want.slice(1, 40));
      const auto copy = cache.clone();
      cache.reorder(torch::tensor({1, 0}));
      cache.truncate(59);
      expect_close(m(x.slice(1, 59).flip(0), {.cache = cache}).output, want.slice(1, 59).flip(0));
      EXPECT_EQ(copy.length(), 60);
    }
  }
}

TEST(Latent, ACacheIsTheLatentsAlone) {
  MultiHeadLatentAttention m({.d_model = 64,
                              .num_heads = 4,
                              .head_dim = 16,
                              .rope_dim = 8,
                              .value_head_dim = 16,
                              .kv_rank = 24,
                              .causal = true});
  EXPECT_EQ(m->make_cache(3, 100).bytes(), 3 * 100 * (24 + 8) * 4);
  EXPECT_EQ(m->make_cache(3, 100, {.dtype = torch::kBFloat16}).bytes(), 3 * 100 * (24 + 8) * 2);
  const torch::NoGradGuard no_grad;
  EXPECT_EQ(m->make_context_cache(torch::randn({2, 9, 64})).bytes(), 2 * 9 * (24 + 8) * 4);
  // Of half a type for a float32 module: near, and of the module's dtype.
  const auto x = torch::randn({1, 40, 64});
  const auto want = m(x).output;
  for (const bool absorb : {false, true}) {
    m->options.absorb = absorb;
    auto cache = m->make_cache(1, 40, {.dtype = torch::kBFloat16});
    m(x.slice(1, 0, 30), {.cache = cache});
    const auto got = m(x.slice(1, 30), {.cache = cache}).output;
    EXPECT_EQ(got.scalar_type(), torch::kFloat32);
    EXPECT_TRUE(torch::allclose(got, want.slice(1, 30), 0.05, 0.02));
  }
}

TEST(Latent, AContextIsKeptAsLatents) {
  torch::manual_seed(4);
  const torch::NoGradGuard no_grad;
  auto m = of_options(small());
  const auto x = torch::randn({2, 5, 12}, torch::kFloat64);
  const auto context = torch::randn({2, 9, 12}, torch::kFloat64);
  const auto real = create_padding_mask(std::vector<int64_t>{9, 4});
  const auto want = m(x, {.key_padding_mask = real, .context = context}).output;
  const auto cache = m->make_context_cache(context, real);
  for (const bool absorb : {false, true}) {
    m->options.absorb = absorb;
    expect_close(m(x, {.cache = cache}).output, want);
  }
}

/// The sizes of DeepSeek V3's heads, 576 features against 512, in the kernels for many and for few
/// queries.
TEST(Latent, LargeHeads) {
  torch::manual_seed(5);
  const torch::NoGradGuard no_grad;
  MultiHeadLatentAttention m({.d_model = 64,
                              .num_heads = 16,
                              .head_dim = 128,
                              .rope_dim = 64,
                              .value_head_dim = 128,
                              .kv_rank = 512,
                              .causal = true});
  m->to(torch::kFloat64);
  const auto x = torch::randn({1, 300, 64}, torch::kFloat64);
  m->options.absorb = false;
  const auto want = m(x).output;
  m->options.absorb = true;
  expect_close(m(x).output, want);
  auto cache = m->make_cache(1, 300);
  expect_close(m(x.slice(1, 0, 298), {.cache = cache}).output, want.slice(1, 0, 298));
  expect_close(m(x.slice(1, 298, 299), {.cache = cache}).output, want.slice(1, 298, 299));
  expect_close(m(x.slice(1, 299), {.cache = cache}).output, want.slice(1, 299));
}

TEST(Latent, LoraOfTheWayUp) {
  torch::manual_seed(6);
  auto m = of_options(small());
  add_lora(m, {.rank = 2, .targets = {"w_kv_b", "w_q"}, .dropout = 0.5});
  const torch::NoGradGuard no_grad;
  for (const auto& p : m->named_parameters()) {
    if (p.key().ends_with("lora_B")) p.value().normal_();
  }
  m->eval();
  const auto x = torch::randn({1, 6, 12}, torch::kFloat64);
  m->options.absorb = false;
  const auto want = m(x).output;
  m->options.absorb = true;
  expect_close(m(x).output, want);
  m->train();
  expect_error([&] { m(x); }, {"MultiHeadLatentAttention", "absorb", "w_kv_b", "dropout"});
  m->options.absorb = std::nullopt;
  EXPECT_FALSE(torch::equal(m(x).output, m(x).output));
}

TEST(Latent, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = small();
    change(o);
    parts.push_back("MultiHeadLatentAttention");
    expect_error([&] { MultiHeadLatentAttention m(o); }, parts);
  };
  bad([](Options& o) { o.rope_dim = 3; }, {"rope", "even", "3"});
  bad([](Options& o) { o.kv_rank = 0; }, {"kv_rank", "0"});
  bad([](Options& o) { o.q_rank = -1; }, {"q_rank", "-1"});
  bad([](Options& o) { o.value_head_dim = int64_t{1} << 40; }, {"value_head_dim", "2^36"});
  bad([](Options& o) { o.head_dim = std::nullopt, o.num_heads = 5; }, {"num_heads", "5", "12"});
  bad([](Options& o) { o.num_heads = 0; }, {"num_heads", "0"});
  bad([](Options& o) { o.norm_eps = -1; }, {"norm_eps", "-1"});
  MultiHeadLatentAttention m(small());
  EXPECT_EQ(*MultiHeadLatentAttention(64, 4)->options.kv_rank, 64);
  m->options.kv_rank = 9;
  expect_error([&] { m(torch::randn({1, 2, 12})); }, {"kv_rank", "settled", "7", "9"});
}

}  // namespace
}  // namespace attzoo::testing::multi_head_latent_test
