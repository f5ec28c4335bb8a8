// A context of other features than x: PyTorch's kdim and vdim.

#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <attzoo/attzoo.hpp>

#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::context_dim_test {
namespace {

constexpr int64_t kBatch = 2, kWidth = 16;

void randomise(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  for (auto& p : module.parameters()) p.add_(torch::randn_like(p) * 0.3);
}

torch::Tensor real_tokens(int64_t S) {
  auto real = torch::rand({kBatch, S}) > 0.3;
  real.select(1, 0).fill_(true);
  return real;
}

TEST(ContextDim, IsTorchsKdimAndVdim) {
  torch::manual_seed(1);
  for (const int64_t width : {5, 40}) {
    for (const bool bias : {false, true}) {
      torch::nn::MultiheadAttention theirs(
          torch::nn::MultiheadAttentionOptions(kWidth, 4).kdim(width).vdim(width).bias(bias));
      theirs->to(torch::kFloat64);
      randomise(*theirs);
      MultiHeadSelfAttention ours(
          {.d_model = kWidth, .num_heads = 4, .context_dim = width, .bias = bias});
      ours->to(torch::kFloat64);
      load_state_dict(*ours, state_dict(*theirs), names::torch_multihead_attention());

      const auto x = torch::randn({kBatch, 6, kWidth}, torch::kFloat64);
      const auto real = real_tokens(9);
      const auto context = torch::randn({kBatch, 9, width}, torch::kFloat64);
      const auto own = context.clone().requires_grad_(), other = context.clone().requires_grad_();
      const auto got = ours(x, {.key_padding_mask = real, .context = own});
      const auto want = theirs(x.transpose(0, 1), other.transpose(0, 1), other.transpose(0, 1),
                               real.logical_not());
      const auto output = std::get<0>(want).transpose(0, 1);
      EXPECT_TRUE(torch::allclose(got.output, output, 1e-12, 1e-13));
      EXPECT_TRUE(torch::allclose(got.weights.head_mean(), std::get<1>(want), 1e-12, 1e-13));
      const auto cotangent = torch::randn_like(output);
      (got.output * cotangent).sum().backward();
      (output * cotangent).sum().backward();
      EXPECT_TRUE(torch::allclose(own.grad(), other.grad(), 1e-12, 1e-13));
      EXPECT_TRUE(
          torch::allclose(ours->w_v->weight.grad(), theirs->v_proj_weight.grad(), 1e-12, 1e-13));
    }
  }
}

struct Variant {
  std::string name;
  GroupedSelfAttentionOptions options;
};

std::vector<Variant> variants() {
  return {{"plain", {.num_query_heads = 4, .num_kv_heads = 4}},
          {"biased, one key head", {.num_query_heads = 4, .num_kv_heads = 1, .bias = true}},
          {"all",
           {.num_query_heads = 4,
            .num_kv_heads = 2,
            .bias = true,
            .temperature = 1.3,
            .rope = true,
            .head_dim = 6,
            .out_bias = false,
            .key_bias = false,
            .qk_norm = true,
            .softcap = 3.0,
            .sinks = true,
            .output_gate = true}}};
}

/// t with zeros behind its last dimension.
torch::Tensor padded(const torch::Tensor& t, int64_t size) {
  return torch::constant_pad_nd(t, {0, size - t.size(-1)});
}

// Features that are 0 add nothing: the module with one width for both is the definition.
TEST(ContextDim, IsOneWidthWithZerosBehind) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(2);
  for (const auto& variant : variants()) {
    for (const auto& [from, width] : {std::pair<int64_t, int64_t>{16, 5}, {7, 20}, {11, 11}}) {
      auto o = variant.options;
      o.d_model = kWidth;
      o.input_dim = from;
      o.context_dim = width;
      GroupedSelfAttention attn(o);
      randomise(*attn);
      attn->eval();
      o.input_dim = std::max(from, width);
      o.context_dim.reset();
      GroupedSelfAttention wide(o);
      wide->eval();
      auto state = state_dict(*attn);
      for (const auto* name : {"w_q.weight", "w_k.weight", "w_v.weight", "w_g.weight"}) {
        if (state.count(name)) state[name] = padded(state[name], *o.input_dim);
      }
      load_state_dict(*wide, state);
      for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
        attn->to(dtype);
        wide->to(dtype);
        for (const auto& [L, S] : {std::pair{1, 1}, {1, 21}, {7, 21}, {40, 33}}) {
          const auto what =
              c10::str(variant.name, " ", from, " ", width, " ", dtype, " L=", L, " S=", S);
          const auto x = torch::randn({kBatch, L, from}).to(dtype);
          const auto context = torch::randn({kBatch, S, width}).to(dtype);
          const auto real = real_tokens(S);
          const auto gold =
              wide(padded(x, *o.input_dim),
                   {.key_padding_mask = real, .context = padded(context, *o.input_dim)});
          const auto got = attn(x, {.key_padding_mask = real, .context = context});
          const auto cached = attn(x, {.cache = attn->make_context_cache(context, real)});
          expect_within_rule(got.output, gold.output, gold.output, 2, 64, what);
          expect_within_rule(cached.output, gold.output, gold.output, 2, 64, what + ", cached");
          expect_within_rule(cached.lse, gold.lse, gold.lse, 2, 64, what + ", lse");
        }
      }
      attn->to(torch::kFloat32);
    }
  }
}

MultiHeadSelfAttention cross(int64_t width) {
  return MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 4, .context_dim = width});
}

TEST(ContextDim, GoesThroughWrappersBlocksAndStacks) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  const int64_t width = 10, S = 12;
  const auto x = torch::randn({kBatch, 5, kWidth}, torch::kFloat64);
  const auto context = torch::randn({kBatch, S, width}, torch::kFloat64);
  const auto real = real_tokens(S);
  const std::vector<AnyAttention> all{
      cross(width), gated(cross(width)), combined(cross(width), cross(width)),
      transformer_block(cross(width)), Stack(transformer_block(cross(width)), cross(width))};
  for (const auto& attn : all) {
    attn->to(torch::kFloat64);
    attn->eval();
    const auto gold = attn(x, {.key_padding_mask = real, .context = context}).output;
    const auto cache = attn.make_context_cache(context, real);
    EXPECT_TRUE(torch::allclose(attn(x, {.cache = cache}).output, gold, 1e-12, 1e-13));
    const auto copy = attn.clone();
    EXPECT_TRUE(torch::equal(copy(x, {.key_padding_mask = real, .context = context}).output, gold));
    const auto again = attn.get_config()();
    EXPECT_EQ(again(x.to(torch::kFloat32), {.context = context.to(torch::kFloat32)}).output.sizes(),
              gold.sizes());
  }
}

TEST(ContextDim, OfADecoderTokenByToken) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(4);
  Stack decoder;
  for (const int64_t width : {10, 10}) {
    MultiHeadSelfAttention written(
        {.d_model = kWidth, .num_heads = 4, .rope = true, .causal = true});
    decoder->push_back(decoder_block(written, cross(width)));
  }
  decoder->to(torch::kFloat64);
  decoder->eval();
  const auto x = torch::randn({kBatch, 6, kWidth}, torch::kFloat64);
  const auto context = torch::randn({kBatch, 9, 10}, torch::kFloat64);
  const auto real = real_tokens(9);
  AttentionInputs call{.context = context, .context_padding_mask = real};
  const auto gold = decoder(x, call).output;
  call.cache = decoder->make_cache(kBatch, 6);
  for (int64_t i = 0; i < 6; ++i) {
    const auto got = decoder(x.slice(1, i, i + 1), call).output;
    EXPECT_TRUE(torch::allclose(got, gold.slice(1, i, i + 1), 1e-12, 1e-13)) << i;
    call = {.cache = call.cache};
  }
  expect_error([&] { decoder(x, {.context = x}); },
               {"MultiHeadSelfAttention", "context_dim=10", "[2, 6, 16]"});
}

TEST(ContextDim, IsPrintedAndSettled) {
  auto attn = cross(10);
  std::stringstream printed;
  printed << *attn;
  EXPECT_NE(printed.str().find("input_dim=16, context_dim=10, dropout"), std::string::npos);
  EXPECT_EQ(attn->context_dim(), 10);
  EXPECT_EQ(MultiHeadSelfAttention(kWidth, 4)->context_dim(), kWidth);
  EXPECT_EQ(attn->w_k->weight.sizes(), (std::vector<int64_t>{kWidth, 10}));
  attn->options.context_dim = 11;
  expect_error(
      [&] {
        attn->forward(torch::randn({1, 2, kWidth}));
      },
      {"MultiHeadSelfAttention", "context_dim is settled", "10", "11"});
}

TEST(ContextDim, WithoutAContextIsAnError) {
  const torch::NoGradGuard no_grad;
  auto attn = MultiHeadSelfAttention(
      {.d_model = kWidth, .num_heads = 4, .context_dim = 10, .causal = true});
  attn->eval();
  const auto x = torch::randn({kBatch, 3, kWidth}), context = torch::randn({kBatch, 3, 10});
  const std::vector<std::string> says{"MultiHeadSelfAttention", "context_dim=10", "input_dim=16",
                                      "give each call a context"};
  expect_error([&] { attn(x); }, says);
  expect_error([&] { (void)attn->make_cache(1); }, says);
  expect_error([&] { Stack{attn}(x); }, says);
  for (const auto& wrong : {x, torch::randn({kBatch, 3, 11})}) {
    expect_error([&] { attn(x, {.context = wrong}); }, {"context must have", "context_dim=10"});
    expect_error([&] { (void)attn->make_context_cache(wrong); },
                 {"context must have", "context_dim=10"});
  }
  // Where both are as wide, calls may do without a context.
  MultiHeadSelfAttention same({.d_model = kWidth, .num_heads = 4, .context_dim = kWidth});
  EXPECT_EQ(same(x).output.sizes(), x.sizes());
}

TEST(KeyBias, ChangesNothingButTheState) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  MultiHeadSelfAttention without(
      {.d_model = kWidth, .num_heads = 4, .bias = true, .causal = true, .key_bias = false});
  randomise(*without);
  auto state = state_dict(*without);
  EXPECT_EQ(state.count("w_k.bias"), 0U);
  MultiHeadSelfAttention with({.d_model = kWidth, .num_heads = 4, .bias = true, .causal = true});
  state["w_k.bias"] = torch::randn({kWidth}) * 0;
  load_state_dict(*with, state);
  const auto x = torch::randn({kBatch, 7, kWidth});
  EXPECT_TRUE(torch::equal(with(x).output, without(x).output));
  // One for all keys is a constant for each query, which the softmax takes out.
  with->w_k->bias.normal_();
  EXPECT_TRUE(torch::allclose(with(x).output, without(x).output, 1e-4, 1e-5));
  std::stringstream printed;
  printed << *without;
  EXPECT_NE(printed.str().find("key_bias=false"), std::string::npos);
}

}  // namespace
}  // namespace attzoo::testing::context_dim_test
