#include <gtest/gtest.h>
#include <attzoo/gated.hpp>
#include <attzoo/linear.hpp>
#include <attzoo/local.hpp>
#include <attzoo/module/any_attention.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include <torch/nn/modules/container/modulelist.h>

#include <vector>

#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

TEST(AnyAttention, IsTheModule) {
  MultiHeadSelfAttention attn({.d_model = 16, .num_heads = 4});
  attn->eval();
  const AnyAttention any = attn;
  const auto x = torch::randn({2, 5, 16});
  const auto real = torch::tensor({{1, 1, 1, 1, 1}, {1, 1, 1, 0, 0}}).to(torch::kBool);
  EXPECT_TRUE(torch::equal(any(x).output, attn(x).output));
  EXPECT_TRUE(torch::equal(any(x, {.key_padding_mask = real, .causal = true}).output,
                           attn(x, {.key_padding_mask = real, .causal = true}).output));
  EXPECT_EQ(any.ptr(), attn.ptr());
  EXPECT_EQ(AnyAttention(any).ptr(), attn.ptr());
}

TEST(AnyAttention, MixedStackGeneratesFromItsCaches) {
  std::vector<AnyAttention> blocks{
      transformer_block(
          LocalSelfAttention({.d_model = 16, .window_size = 8, .num_heads = 2, .causal = true})),
      transformer_block(LinearSelfAttention({.d_model = 16, .causal = true})),
      gated(MultiHeadSelfAttention({.d_model = 16, .num_heads = 4, .causal = true}))};
  torch::nn::ModuleList layers;
  std::vector<Cache> caches;
  for (auto& block : blocks) {
    layers->push_back(block.ptr());
    caches.push_back(block.make_cache(2, 40));
  }
  layers->eval();
  EXPECT_TRUE(layers->named_parameters().contains("1.attn.w_q.weight"));
  const torch::NoGradGuard no_grad;
  const auto tokens = torch::randn({2, 40, 16});
  auto whole = tokens;
  for (auto& block : blocks) whole = block(whole).output;
  for (int64_t i = 0; i < 40; i += 8) {
    auto x = tokens.slice(1, i, i + 8);
    for (size_t b = 0; b < blocks.size(); ++b) x = blocks[b](x, {.cache = caches[b]}).output;
    EXPECT_TRUE(torch::allclose(x, whole.slice(1, i, i + 8), 1e-4, 1e-5));
  }
}

TEST(AnyAttention, Errors) {
  expect_error([] { AnyAttention any(MultiHeadSelfAttention(nullptr)); },
               {"AnyAttention", "empty holder"});
}

}  // namespace
}  // namespace attzoo::testing
