// A block of a decoder is its formula and LibTorch's layer, and its steps are the whole pass.

#include <gtest/gtest.h>
#include <torch/nn/modules/transformerlayer.h>
#include <attzoo/attzoo.hpp>

#include <cmath>
#include <memory>
#include <sstream>
#include <string>

#include "support/error_rule.hpp"
#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::decoder_block_test {
namespace {

constexpr int64_t kWidth = 16, kHeads = 4, kBatch = 3, kTokens = 7, kContext = 11;

auto make(const TransformerBlockOptions& options = {}) {
  return decoder_block(
      MultiHeadSelfAttention(
          {.d_model = kWidth, .num_heads = kHeads, .bias = true, .causal = true}),
      MultiHeadSelfAttention({.d_model = kWidth, .num_heads = kHeads, .bias = true}), options);
}

struct Inputs {
  torch::Tensor x = torch::randn({kBatch, kTokens, kWidth}, torch::kFloat64);
  torch::Tensor context = torch::randn({kBatch, kContext, kWidth}, torch::kFloat64);
  torch::Tensor real = [] {
    auto some = torch::rand({kBatch, kContext}) > 0.3;
    some.select(1, 0).fill_(true);
    return some;
  }();

  AttentionInputs call() const { return {.context = context, .context_padding_mask = real}; }
};

void expect_close(const torch::Tensor& got, const torch::Tensor& want, const std::string& what) {
  expect_within_rule(got, want, want, 2, 256, what);
}

TEST(DecoderBlock, IsLibTorchsLayer) {
  torch::manual_seed(1);
  const Inputs in;
  torch::nn::TransformerDecoderLayer layer(
      torch::nn::TransformerDecoderLayerOptions(kWidth, kHeads).dim_feedforward(20).dropout(0));
  auto block = make(
      {.mlp_hidden = 20, .norm_placement = NormPlacement::kPost, .activation = Activation::kRelu});
  layer->to(torch::kFloat64);
  block->to(torch::kFloat64);
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : layer->parameters()) p.uniform_(-1, 1);
  }
  NameMap names;
  for (const auto& [theirs, ours] :
       {std::pair{"self_attn.", "attn."}, {"multihead_attn.", "cross."}}) {
    names.add(names::torch_multihead_attention(), theirs, ours);
  }
  names.rename_layer("linear1", "mlp_in")
      .rename_layer("linear2", "mlp_out")
      .rename_layer("norm1", "norm_attn")
      .rename_layer("norm2", "norm_cross")
      .rename_layer("norm3", "norm_mlp");
  load_state_dict(*block, state_dict(*layer), names);

  const auto turned = [](const torch::Tensor& t) { return t.transpose(0, 1); };
  const auto later = torch::ones({kTokens, kTokens}, torch::kBool).triu(1);
  const auto want =
      layer->forward(turned(in.x), turned(in.context),
                     torch::zeros({kTokens, kTokens}, torch::kFloat64)
                         .masked_fill(later, -std::numeric_limits<double>::infinity()),
                     {}, {}, in.real.logical_not());
  expect_close(block(in.x, in.call()).output, turned(want), "output");
}

TEST(DecoderBlock, IsItsFormula) {
  torch::manual_seed(2);
  const Inputs in;
  for (const auto kind : {NormKind::kLayerNorm, NormKind::kRMSNorm}) {
    for (const bool pre : {true, false}) {
      for (const bool gated : {true, false}) {
        auto block = make({.mlp_hidden = 9,
                           .norm = kind,
                           .norm_placement = pre ? NormPlacement::kPre : NormPlacement::kPost,
                           .mlp_gated = gated});
        block->to(torch::kFloat64);
        {
          const torch::NoGradGuard no_grad;
          for (auto& p : block->parameters()) p.uniform_(-1, 1);
        }
        const auto branch = [&](Norm& norm, const torch::Tensor& h, const auto& f) {
          return pre ? h + f(norm(h)) : norm(h + f(h));
        };
        const auto h = branch(block->norm_attn, in.x,
                              [&](const torch::Tensor& t) { return block->attn(t).output; });
        const auto g = branch(block->norm_cross, h, [&](const torch::Tensor& t) {
          return block->cross(t, {.key_padding_mask = in.real, .context = in.context}).output;
        });
        const auto y = branch(block->norm_mlp, g, [&](const torch::Tensor& t) {
          const auto inner = block->mlp_in(t);
          return block->mlp_out(gated ? torch::gelu(block->mlp_gate(t)) * inner
                                      : torch::gelu(inner));
        });
        expect_close(block(in.x, in.call()).output, y, pre ? "pre" : "post");
      }
    }
  }
}

TEST(DecoderBlock, PassesItsInputsToTheAttentionToX) {
  torch::manual_seed(3);
  const Inputs in;
  auto block = make();
  block->to(torch::kFloat64);
  auto call = in.call();
  call.key_padding_mask = torch::ones({kBatch, kTokens}, torch::kBool);
  call.key_padding_mask.slice(1, 0, 2).fill_(false);
  call.mask = torch::randn({kTokens, kTokens}, torch::kFloat64);
  call.causal = false;
  const auto result = block(in.x, call);
  const auto alone =
      block->attn(block->norm_attn(in.x),
                  {.mask = call.mask, .key_padding_mask = call.key_padding_mask, .causal = false});
  const torch::Tensor weights = alone.weights;
  expect_close(result.weights, weights, "weights");
  expect_close(result.lse, alone.lse, "lse");
}

/// Token by token, and by pieces.
template <class Module>
void expect_steps(Module& m, const Inputs& in, const std::string& what) {
  const torch::NoGradGuard no_grad;
  const auto whole = m(in.x, in.call()).output;
  for (const int64_t step : {int64_t{1}, int64_t{3}, kTokens}) {
    auto cache = m->make_cache(kBatch, 32);
    for (int64_t i = 0; i < kTokens; i += step) {
      auto call = i == 0 ? in.call() : AttentionInputs();
      call.cache = cache;
      const auto end = std::min(kTokens, i + step);
      expect_close(m(in.x.slice(1, i, end), call).output, whole.slice(1, i, end),
                   what + " by " + std::to_string(step));
    }
    EXPECT_EQ(cache.length(), kTokens);
  }
}

TEST(DecoderBlock, StepsAreTheWholePass) {
  torch::manual_seed(4);
  const Inputs in;
  const Size size{.width = kWidth, .heads = 2, .span = 4, .causal = true, .buckets = 2};
  for_each_mechanism([&](const char* name, Cost, auto mechanism) {
    if (!mechanism(size)->takes().causal) return;  // without a causal form there is no cache
    auto block = decoder_block(mechanism(size), GroupedSelfAttention(kWidth, 4, 2));
    block->to(torch::kFloat64);
    block->eval();
    expect_steps(block, in, name);
  });
}

TEST(DecoderBlock, StacksGenerate) {
  torch::manual_seed(5);
  const Inputs in;
  Stack layers(make(), make({.norm_placement = NormPlacement::kPost}), make());
  layers->to(torch::kFloat64);
  layers->eval();
  expect_steps(layers, in, "a stack");

  const torch::NoGradGuard no_grad;
  auto cache = layers->make_cache(kBatch, 32);
  auto call = in.call();
  call.cache = cache;
  layers(in.x, call);
  const auto order = torch::tensor({2, 2, 0});
  auto beams = cache.clone();
  beams.reorder(order);
  const auto next = torch::randn({kBatch, 1, kWidth}, torch::kFloat64);
  const auto taken = [&](const torch::Tensor& t) { return t.index_select(0, order); };
  const auto longer = layers(torch::cat({taken(in.x), next}, 1),
                             {.context = taken(in.context), .context_padding_mask = taken(in.real)})
                          .output.slice(1, -1);
  expect_close(layers(next, {.cache = beams}).output, longer, "beams");

  cache.truncate(3);
  const auto again = layers(in.x.slice(1, 3), {.cache = cache}).output;
  expect_close(again, layers(in.x, in.call()).output.slice(1, 3), "after truncate");

  cache.reset();  // forgets the context
  expect_error([&] { layers(in.x, {.cache = cache}); }, {"DecoderBlock", "no context"});
  auto other = Inputs();
  call = other.call();
  call.cache = cache;
  expect_close(layers(other.x, call).output, layers(other.x, other.call()).output, "another");
}

TEST(DecoderBlock, AFailedCallLeavesTheCacheAsItWas) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(6);
  const Inputs in;
  Stack layers(make(), make());
  layers->to(torch::kFloat64);
  layers->eval();
  auto cache = layers->make_cache(kBatch, 32);
  auto call = in.call();
  call.cache = cache;
  call.context_padding_mask = torch::ones({kBatch, 2}, torch::kBool);
  expect_error([&] { layers(in.x, call); }, {"key_padding_mask"});
  EXPECT_EQ(cache.length(), 0);
  // The second block fails behind the first.
  const auto head =
      layers[1]->as<DecoderBlockImpl<MultiHeadSelfAttentionImpl, MultiHeadSelfAttentionImpl>>();
  head->cross->options.dropout = 2;
  call.context_padding_mask = in.real;
  expect_error([&] { layers(in.x, call); }, {"dropout"});
  EXPECT_EQ(cache.length(), 0);
  head->cross->options.dropout = 0;
  expect_close(layers(in.x, call).output, layers(in.x, in.call()).output, "again");
}

TEST(DecoderBlock, LearnsAndLivesAsAModule) {
  torch::manual_seed(7);
  const Inputs in;
  auto block = make({.mlp_hidden = 8});
  block->to(torch::kFloat64);
  auto context = in.context.clone().requires_grad_();
  auto call = in.call();
  call.context = context;
  block(in.x, call).output.square().sum().backward();
  EXPECT_GT(context.grad().abs().max().item<double>(), 0);
  for (const auto& p : block->named_parameters()) {
    if (p.key().find("w_k.bias") != std::string::npos) continue;  // which softmax does not see
    EXPECT_GT(p.value().grad().abs().max().item<double>(), 0) << p.key();
  }

  const auto y = block(in.x, in.call()).output;
  const auto copy = std::dynamic_pointer_cast<
      DecoderBlockImpl<MultiHeadSelfAttentionImpl, MultiHeadSelfAttentionImpl>>(block->clone());
  EXPECT_TRUE(torch::equal(copy->forward(in.x, in.call()).output, y));
  EXPECT_FALSE(copy->cross->w_q->weight.is_same(block->cross->w_q->weight));
  auto built =
      std::make_shared<DecoderBlockImpl<MultiHeadSelfAttentionImpl, MultiHeadSelfAttentionImpl>>(
          block->get_config());
  built->to(torch::kFloat64);
  load_state_dict(*built, state_dict(*block));
  EXPECT_TRUE(torch::equal(built->forward(in.x, in.call()).output, y));
  block->reset_parameters();
  EXPECT_FALSE(torch::equal(block(in.x, in.call()).output, y));
  std::ostringstream printed;
  printed << *block;
  EXPECT_NE(printed.str().find("attzoo::DecoderBlock(d_model=16, mlp_hidden=8"), std::string::npos)
      << printed.str();
  EXPECT_TRUE(block->named_parameters().contains("cross.w_q.weight"));
  EXPECT_TRUE(block->named_parameters().contains("norm_cross.weight"));
}

TEST(DecoderBlock, DropsWhileTraining) {
  torch::manual_seed(8);
  const Inputs in;
  auto block = make({.dropout = 1});
  block->to(torch::kFloat64);
  EXPECT_TRUE(torch::equal(block(in.x, in.call()).output, in.x));
  block->eval();
  EXPECT_FALSE(torch::equal(block(in.x, in.call()).output, in.x));
}

TEST(DecoderBlock, Errors) {
  const MultiHeadSelfAttention attn(kWidth, kHeads), narrow(8, 2);
  expect_error([&] { decoder_block(attn, narrow); }, {"DecoderBlock", "16", "8"});
  expect_error([&] { decoder_block(attn, MultiHeadSelfAttention(nullptr)); }, {"cross", "empty"});
  expect_error([&] { decoder_block(attn, attn, {.norm_placement = NormPlacement::kSandwich}); },
               {"norm_placement", "kPre or kPost"});
  const Inputs in;
  auto block = make();
  block->to(torch::kFloat64);
  expect_error([&] { block(in.x); }, {"DecoderBlock", "no context"});
  expect_error([&] { block(in.x, {.context = in.context.slice(0, 1)}); }, {"batch size"});
  expect_error([&] { block(in.x.slice(2, 1), in.call()); }, {"DecoderBlock", "x"});
  auto call = in.call();
  call.documents = {.offsets = torch::tensor({int64_t{0}, kTokens})};
  expect_error([&] { block(in.x, call); }, {"documents", "context"});
  const torch::NoGradGuard no_grad;
  call = in.call();
  call.cache = block->make_cache(kBatch, 32);
  block(in.x, call);
  expect_error([&] { block(in.x, call); }, {"the context of its first call", "reset()"});
  expect_error([&] { block->make_context_cache(in.context); }, {"DecoderBlock", "make_cache"});
  MultiHeadSelfAttention alone(kWidth, kHeads);
  alone->to(torch::kFloat64);
  expect_error([&] { alone(in.x, in.call()); }, {"context_padding_mask", "key_padding_mask"});
}

}  // namespace
}  // namespace attzoo::testing::decoder_block_test
