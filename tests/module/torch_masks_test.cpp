#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/torch_masks.hpp>
#include <attzoo/multi_head.hpp>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::torch_masks_test {
namespace {

constexpr int64_t kBatch = 3, kHeads = 2, kTokens = 7, kModel = 8;

torch::nn::MultiheadAttention torch_attention() {
  torch::nn::MultiheadAttention torch_attn(
      torch::nn::MultiheadAttentionOptions(kModel, kHeads).dropout(0));
  torch_attn->to(torch::kFloat64);
  torch_attn->in_proj_bias.data().normal_();  // zeros until then
  torch_attn->out_proj->bias.data().normal_();
  return torch_attn;
}

MultiHeadSelfAttention same_attention(torch::nn::MultiheadAttention& torch_attn) {
  MultiHeadSelfAttention attn({.d_model = kModel, .num_heads = kHeads, .dropout = 0, .bias = true});
  attn->to(torch::kFloat64);
  load_state_dict(*attn, state_dict(*torch_attn), names::torch_multihead_attention());
  return attn;
}

/// Masks of PyTorch's meaning under which every query has a key.
struct TorchMasks {
  torch::Tensor bool2 = torch::rand({kTokens, kTokens}) < 0.4;
  torch::Tensor bool3 = torch::rand({kBatch * kHeads, kTokens, kTokens}) < 0.4;
  torch::Tensor float2 = torch::randn({kTokens, kTokens}, torch::kFloat64);
  torch::Tensor float3 = torch::randn({kBatch * kHeads, kTokens, kTokens}, torch::kFloat64);
  torch::Tensor padding = torch::rand({kBatch, kTokens}) < 0.4;
  torch::Tensor float_padding = torch::randn({kBatch, kTokens}, torch::kFloat64);

  TorchMasks() {
    for (auto* t : {&bool2, &bool3, &padding}) t->select(-1, 2).fill_(false);
  }
};

struct OutputAndWeights {
  torch::Tensor output, weights;
};

/// The equation of PyTorch's documentation: a mask that is true becomes -inf, all are added.
OutputAndWeights by_equation(torch::nn::MultiheadAttention& torch_attn, const torch::Tensor& x,
                             const torch::Tensor& attn_mask, const torch::Tensor& padding) {
  const auto as_float = [](const torch::Tensor& t) {
    return t.is_floating_point()
               ? t
               : torch::zeros(t.sizes(), torch::kFloat64).masked_fill(t, -INFINITY);
  };
  const auto qkv =
      torch::linear(x, torch_attn->in_proj_weight, torch_attn->in_proj_bias).chunk(3, -1);
  const auto heads = [](const torch::Tensor& t) {
    return t.unflatten(-1, {kHeads, kModel / kHeads}).transpose(1, 2);
  };
  auto scores = heads(qkv[0]).matmul(heads(qkv[1]).transpose(-1, -2)) /
                std::sqrt(static_cast<double>(kModel / kHeads));
  if (attn_mask.defined()) {
    const auto mask = as_float(attn_mask);
    scores = scores + (mask.dim() == 3 ? mask.view({kBatch, kHeads, kTokens, kTokens}) : mask);
  }
  if (padding.defined()) scores = scores + as_float(padding).view({kBatch, 1, 1, kTokens});
  const auto weights = torch::softmax(scores, -1);
  const auto joined = weights.matmul(heads(qkv[2])).transpose(1, 2).flatten(2);
  return {torch_attn->out_proj(joined), weights};
}

void expect_close(const torch::Tensor& got, const torch::Tensor& want, const std::string& what) {
  expect_within_rule(got, want, want, 2, kTokens * kModel, what);
}

TEST(TorchMasks, GiveWhatPyTorchGives) {
  torch::manual_seed(7);
  auto torch_attn = torch_attention();
  auto attn = same_attention(torch_attn);
  const TorchMasks m;
  const torch::Tensor none;
  for (const auto& mask : {none, m.bool2, m.bool3, m.float2, m.float3}) {
    for (const auto& padding : {none, m.padding, m.float_padding}) {
      const auto what =
          c10::str(mask.defined() ? mask.toString() : "none", mask.defined() ? mask.dim() : 0,
                   " and ", padding.defined() ? padding.toString() : "none");
      const auto x = torch::randn({kBatch, kTokens, kModel}, torch::kFloat64);
      const auto want = by_equation(torch_attn, x, mask, padding);
      const auto got = attn(x, from_torch_masks(mask, padding, kHeads));
      expect_close(got.output, want.output, what);
      expect_close(got.weights, want.weights, what);
    }
  }
}

TEST(TorchMasks, AgreeWithLibTorchsModule) {
  torch::manual_seed(8);
  auto torch_attn = torch_attention();
  auto attn = same_attention(torch_attn);
  const TorchMasks m;
  const auto x = torch::randn({kBatch, kTokens, kModel}, torch::kFloat64);
  const auto first = x.transpose(0, 1);  // its batch comes second
  // LibTorch 2.15 adds a bool attn_mask as 0 and 1, so a floating one stands for it here.
  for (const auto& mask : {m.float2, torch::zeros_like(m.float2).masked_fill(m.bool2, -INFINITY)}) {
    const auto [output, weights] =
        torch_attn->forward(first, first, first, m.padding, /*need_weights=*/true, mask);
    const auto got = attn(x, from_torch_masks(mask, m.padding));
    expect_close(got.output, output.transpose(0, 1), "output");
    expect_close(got.weights.head_mean(), weights, "weights");
  }
}

TEST(TorchMasks, FloatingMasksKeepTheirGradient) {
  torch::manual_seed(9);
  auto torch_attn = torch_attention();
  auto attn = same_attention(torch_attn);
  const TorchMasks m;
  const auto x = torch::randn({kBatch, kTokens, kModel}, torch::kFloat64);
  const auto mask = m.float3.clone().requires_grad_();
  const auto padding = m.float_padding.clone().requires_grad_();
  attn(x, from_torch_masks(mask, padding, kHeads)).output.square().sum().backward();
  const auto got_mask = mask.grad().clone(), got_padding = padding.grad().clone();
  mask.mutable_grad().reset();
  padding.mutable_grad().reset();
  by_equation(torch_attn, x, mask, padding).output.square().sum().backward();
  expect_close(got_mask, mask.grad(), "mask");
  expect_close(got_padding, padding.grad(), "padding");
}

TEST(TorchMasks, ErrorsNameTheMask) {
  const auto b = [](torch::IntArrayRef sizes) { return torch::zeros(sizes, torch::kBool); };
  const auto refused = [](const torch::Tensor& mask, const torch::Tensor& padding,
                          std::optional<int64_t> heads, std::vector<std::string> parts) {
    parts.push_back("from_torch_masks");
    expect_error([&] { from_torch_masks(mask, padding, heads); }, parts);
  };
  refused(b({3}), {}, 2, {"attn_mask", "[3]"});
  refused(b({1, 2, 3, 4}), {}, 2, {"attn_mask", "[1, 2, 3, 4]"});
  refused(b({6, 7, 7}), {}, std::nullopt, {"attn_mask", "needs num_heads"});
  refused(b({6, 7, 7}), {}, 4, {"num_heads=4", "[6, 7, 7]"});
  refused(b({6, 7, 7}), {}, 0, {"num_heads must be > 0"});
  refused(b({6, 7, 7}), {}, -1, {"num_heads must be > 0"});
  refused(b({7, 7}).to(torch::kInt64), {}, 2, {"attn_mask", "bool", "Long"});
  refused(b({7, 7}).to(torch::kUInt8), {}, 2, {"attn_mask", "bool", "Byte"});
  refused(b({7, 7}).to(torch::kMeta), {}, 2, {"attn_mask", "meta"});
  refused({}, b({7}), 2, {"key_padding_mask", "[B, S]", "[7]"});
  refused({}, b({3, 7}).to(torch::kInt32), 2, {"key_padding_mask", "Int"});
  refused(b({7, 7}), b({3, 6}), 2, {"[7, 7]", "[3, 6]", "do not agree"});
  refused(b({6, 7, 7}), b({2, 7}), 2, {"[6, 7, 7]", "[2, 7]", "do not agree"});
  const auto nothing = from_torch_masks({}, {});
  EXPECT_FALSE(nothing.mask.defined() || nothing.key_padding_mask.defined());
}

}  // namespace
}  // namespace attzoo::testing::torch_masks_test
