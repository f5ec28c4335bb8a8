// Blocks of any type: one of them (AnyAttention), and several as one module (Stack).

#include <gtest/gtest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>
#include <attzoo/attzoo.hpp>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "examples/gpt.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/reset_parameters.hpp"

namespace attzoo::testing::stack_test {
namespace {

constexpr int64_t kWidth = 16;

/// A block of a user's own, with what AnyAttention asks for and no more. It can be made to throw.
class OwnBlockImpl : public torch::nn::Module {
 public:
  OwnBlockImpl() {
    register_module("attn", attn);
    register_module("layer", layer);
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs) {
    auto result = attn(x, inputs);
    TORCH_CHECK_VALUE(!fails, "OwnBlock: failed");
    result.output = x + layer(result.output);
    return result;
  }
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& how) const {
    return attn->make_cache(batch, capacity, how);
  }
  int64_t d_model() const { return kWidth; }
  int64_t input_dim() const { return kWidth; }
  TakenInputs takes() const { return attn->takes(); }

  LocalSelfAttention attn{LocalSelfAttentionOptions{
      .d_model = kWidth, .num_heads = 2, .window_size = 8, .dropout = 0, .causal = true}};
  torch::nn::Linear layer{kWidth, kWidth};
  bool fails = false;
};
TORCH_MODULE(OwnBlock);

MultiHeadSelfAttention multi_head(bool rope = false) {
  return MultiHeadSelfAttention(
      {.d_model = kWidth, .num_heads = 4, .dropout = 0, .rope = rope, .causal = true});
}
LocalSelfAttention local() {
  return LocalSelfAttention(
      {.d_model = kWidth, .num_heads = 2, .window_size = 8, .dropout = 0, .causal = true});
}
LinearSelfAttention linear() {
  return LinearSelfAttention({.d_model = kWidth, .dropout = 0, .causal = true});
}
LongformerSelfAttention longformer() {
  return LongformerSelfAttention(
      {.d_model = kWidth, .num_heads = 2, .window_size = 2, .dropout = 0, .causal = true});
}

/// Mechanisms, blocks, wrappers, one whose type is forgotten, and a stack.
std::vector<AnyAttention> blocks_of_all_kinds() {
  const AnyAttention any = gated(local());
  return {multi_head(),
          transformer_block(local()),
          transformer_block(linear(), {.norm = NormKind::kRMSNorm, .mlp_gated = true}),
          any,
          combined(local(), linear()),
          Stack(transformer_block(multi_head(/*rope=*/true)), local())};
}

/// In eval mode and float64.
Stack make_stack(const std::vector<AnyAttention>& blocks) {
  Stack stack(blocks);
  stack->to(torch::kFloat64);
  stack->eval();
  return stack;
}

torch::Tensor tokens(int64_t batch, int64_t n) {
  return torch::randn({batch, n, kWidth}, torch::kFloat64);
}

template <class M>
std::shared_ptr<M> copy_of(const M& module) {
  return std::dynamic_pointer_cast<M>(module.clone());
}

torch::Tensor all_parameters(const torch::nn::Module& module) {
  std::vector<torch::Tensor> flat;
  for (const auto& p : module.parameters()) flat.push_back(p.detach().flatten().clone());
  return torch::cat(flat);
}

TEST(AnyAttention, IsTheModule) {
  auto attn = multi_head();
  const AnyAttention any = attn;
  const auto x = torch::randn({2, 5, kWidth});
  const auto real = torch::tensor({{1, 1, 1, 1, 1}, {1, 1, 1, 0, 0}}).to(torch::kBool);
  EXPECT_TRUE(torch::equal(any(x).output, attn(x).output));
  EXPECT_TRUE(torch::equal(any(x, {.key_padding_mask = real, .causal = false}).output,
                           attn(x, {.key_padding_mask = real, .causal = false}).output));
  EXPECT_EQ(any.ptr(), attn.ptr());
  EXPECT_EQ(AnyAttention(any).ptr(), attn.ptr());
  EXPECT_EQ(any->as<MultiHeadSelfAttentionImpl>(), attn.get());
  EXPECT_EQ(any.d_model(), kWidth);

  const auto copy = any.clone();
  EXPECT_TRUE(torch::equal(copy(x).output, attn(x).output));
  EXPECT_FALSE(torch::equal(any.get_config()()(x).output, attn(x).output));
  copy->as<MultiHeadSelfAttentionImpl>()->w_o->weight.detach().zero_();
  EXPECT_FALSE(torch::equal(copy(x).output, attn(x).output));
}

TEST(AnyAttention, Errors) {
  expect_error([] { AnyAttention any(MultiHeadSelfAttention(nullptr)); },
               {"AnyAttention", "empty holder"});
  const AnyAttention own = OwnBlock();
  expect_error([&] { own.get_config(); }, {"OwnBlock", "get_config"});
  expect_error([&] { own.clone(); }, {"OwnBlock", "Cloneable"});
}

TEST(Stack, IsItsBlocksInOrder) {
  auto blocks = blocks_of_all_kinds();
  blocks.push_back(OwnBlock());
  auto stack = make_stack(blocks);
  ASSERT_EQ(stack->size(), blocks.size());
  EXPECT_EQ(stack->d_model(), kWidth);
  const auto x = tokens(2, 9);
  const auto real = torch::arange(9) < torch::tensor({{9}, {6}});
  const auto offsets = torch::tensor({0, 4, 9});
  for (const auto& inputs :
       {AttentionInputs{}, AttentionInputs{.key_padding_mask = real},
        AttentionInputs{.documents = {.offsets = offsets}}, AttentionInputs{.causal = false}}) {
    AttentionResult want{.output = x, .weights = {}, .lse = {}};
    for (const auto& block : *stack) want = block(want.output, inputs);
    const auto got = stack(x, inputs);
    EXPECT_TRUE(torch::equal(got.output, want.output));
    EXPECT_TRUE(torch::equal(got.lse, want.lse));
    EXPECT_TRUE(torch::equal(torch::Tensor(got.weights), torch::Tensor(want.weights)));
  }
  auto mixed = make_stack({multi_head(), local()});
  const auto mask = torch::rand({9, 9}) < 0.7;
  EXPECT_TRUE(torch::equal(mixed(x, {.mask = mask}).output,
                           mixed[1](mixed[0](x, {.mask = mask}).output, {.mask = mask}).output));
}

TEST(Stack, GivesEachBlockWhatItTakes) {
  auto rotating = multi_head(/*rope=*/true);
  auto stack = make_stack({longformer(), rotating, local()});
  const auto x = tokens(1, 9);
  const auto is_global = torch::arange(9) == 0;
  const auto positions = torch::arange(9) * 3;
  EXPECT_TRUE(stack->takes().global_attention && stack->takes().positions);
  auto h = stack[0](x, {.global_attention = is_global}).output;
  h = stack[1](h, {.positions = positions}).output;
  EXPECT_TRUE(torch::equal(stack(x, {.global_attention = is_global, .positions = positions}).output,
                           stack[2](h).output));
  EXPECT_FALSE(torch::equal(stack(x).output, stack[2](h).output));
  EXPECT_TRUE(
      torch::equal(stack(x, {.position_offset = 5}).output,
                   stack[2](stack[1](stack[0](x).output, {.position_offset = 5}).output).output));
  auto neither = make_stack({local(), multi_head()});
  expect_error([&] { neither(x, {.global_attention = is_global}); }, {"global_attention"});
  expect_error([&] { neither(x, {.positions = positions}); }, {"positions"});
}

TEST(Stack, StateHasTheNamesOfAModuleList) {
  torch::nn::Sequential model;
  model->push_back("layers", Stack(transformer_block(multi_head()), gated(local())));
  std::vector<std::string> names;
  for (const auto& p : model->named_parameters()) names.push_back(p.key());
  EXPECT_EQ(names.front(), "layers.0.norm_attn.weight");
  EXPECT_EQ(std::count(names.begin(), names.end(), "layers.0.attn.w_q.weight"), 1);
  EXPECT_EQ(std::count(names.begin(), names.end(), "layers.1.attn.w_o.weight"), 1);
}

TEST(Stack, LoadsByNameMaps) {
  const auto block = [] {
    return transformer_block(multi_head(), {.mlp_hidden = 24,
                                            .norm = NormKind::kRMSNorm,
                                            .activation = Activation::kSilu,
                                            .mlp_gated = true,
                                            .mlp_bias = false});
  };
  struct Model : torch::nn::Module {
    explicit Model(const Stack& layers) { register_module("layers", layers); }
  };
  Stack stack(block(), block());
  std::map<std::string, torch::Tensor> upstream;
  for (const auto& [name, size] :
       std::map<std::string, std::vector<int64_t>>{{"self_attn.q_proj", {16, 16}},
                                                   {"self_attn.k_proj", {16, 16}},
                                                   {"self_attn.v_proj", {16, 16}},
                                                   {"self_attn.o_proj", {16, 16}},
                                                   {"mlp.gate_proj", {24, 16}},
                                                   {"mlp.up_proj", {24, 16}},
                                                   {"mlp.down_proj", {16, 24}},
                                                   {"input_layernorm", {16}},
                                                   {"post_attention_layernorm", {16}}}) {
    for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
      upstream[layer + name + ".weight"] = torch::randn(size);
    }
  }
  Model model(stack);
  load_state_dict(model, upstream, names::llama());
  EXPECT_TRUE(torch::equal(stack->named_parameters()["1.mlp_gate.weight"],
                           upstream["model.layers.1.mlp.gate_proj.weight"]));
  EXPECT_TRUE(torch::equal(stack->named_parameters()["0.attn.w_o.weight"],
                           upstream["model.layers.0.self_attn.o_proj.weight"]));
}

TEST(Stack, LivesAsAModule) {
  auto stack = make_stack(blocks_of_all_kinds());
  const auto x = tokens(2, 9);
  const auto want = stack(x).output;

  torch::nn::AnyModule any(stack);
  EXPECT_TRUE(torch::equal(any.forward<AttentionResult>(x).output, want));
  const AttentionInputs whole{.causal = false};
  EXPECT_TRUE(torch::equal(any.forward<AttentionResult>(x, whole).output, stack(x, whole).output));
  torch::nn::Linear layer(kWidth, kWidth);
  layer->to(torch::kFloat64);
  torch::nn::Sequential sequence(layer, stack);
  EXPECT_TRUE(torch::equal(sequence->forward<AttentionResult>(x).output, stack(layer(x)).output));

  Stack loaded(stack->get_config());
  loaded->to(torch::kFloat64);
  loaded->eval();
  EXPECT_FALSE(torch::equal(loaded(x).output, want));
  std::stringstream stream;
  torch::save(stack, stream);
  torch::load(loaded, stream);
  EXPECT_TRUE(torch::equal(loaded(x).output, want));

  std::stringstream text;
  text << stack;
  EXPECT_EQ(text.str().find("attzoo::Stack("), 0);
  EXPECT_NE(text.str().find("(1): attzoo::TransformerBlock(d_model=16"), std::string::npos);

  stack->to(torch::kFloat32);
  EXPECT_EQ(stack(x.to(torch::kFloat32)).output.scalar_type(), torch::kFloat32);
  Stack none(nullptr), shared(stack.ptr()), copy(shared);
  EXPECT_TRUE(none.is_empty());
  EXPECT_EQ(copy.ptr(), stack.ptr());

  auto small = make_stack({local(), gated(multi_head())});
  const auto leaf = tokens(1, 5).requires_grad_(), cotangent = tokens(1, 5);
  gradcheck([&] { return (small(leaf).output * cotangent).sum(); }, {leaf}, "Stack");
}

TEST(Stack, IsClonedDeeply) {
  auto stack = make_stack(blocks_of_all_kinds());
  stack[1]->train();  // the rest is in eval mode
  const auto x = tokens(2, 9);
  const auto want = stack(x).output;
  auto clone = Stack(copy_of(*stack));
  EXPECT_FALSE(clone->is_training());
  EXPECT_TRUE(clone[1]->is_training());
  EXPECT_TRUE(torch::equal(clone(x).output, want));
  ASSERT_EQ(clone->parameters().size(), stack->parameters().size());
  for (const auto& p : clone->named_parameters()) {
    EXPECT_NE(p.value().data_ptr(), stack->named_parameters()[p.key()].data_ptr()) << p.key();
  }
  // What the clone computes depends on its parameters, all of them, and on nothing else.
  clone(x).output.sum().backward();
  for (const auto& p : clone->named_parameters())
    EXPECT_TRUE(p.value().grad().defined()) << p.key();
  for (const auto& p : stack->parameters()) EXPECT_FALSE(p.grad().defined());
  for (auto& p : clone->parameters()) p.detach().mul_(0.5);
  EXPECT_TRUE(torch::equal(stack(x).output, want));
  EXPECT_FALSE(torch::allclose(clone(x).output, want));
  for (auto& p : stack->parameters()) p.detach().mul_(0.5);
  EXPECT_TRUE(torch::equal(clone(x).output, stack(x).output));

  // In wrappers, too, and a block that stands there twice stays one.
  auto wrapped = gated(Stack(local(), transformer_block(multi_head())));
  wrapped->eval();
  const auto of_wrapped = copy_of(*wrapped);
  const auto y = torch::randn({1, 5, kWidth});
  EXPECT_TRUE(torch::equal(of_wrapped->forward(y).output, wrapped(y).output));
  of_wrapped->attn[0]->parameters()[0].detach().zero_();
  EXPECT_FALSE(torch::equal(of_wrapped->forward(y).output, wrapped(y).output));
  const AnyAttention twice = local();
  const auto both = copy_of(*Stack(twice, multi_head(), twice));
  EXPECT_EQ((*both)[0].ptr(), (*both)[2].ptr());
  EXPECT_NE((*both)[0].ptr(), twice.ptr());
}

// The model of docs/gpt.md.
TEST(Stack, AModelThatHoldsOneIsClonedRight) {
  torch::manual_seed(0);
  const auto text = torch::randint(128, {400});
  const auto batch = text.slice(0, 0, 40).view({2, 20});
  Gpt model(3, kWidth);
  train(model, text, 2);
  const auto want = model.forward(batch), parameters = all_parameters(model);
  auto clone = copy_of(model);
  EXPECT_EQ(clone->layers->size(), 3);
  ASSERT_EQ(clone->parameters().size(), model.parameters().size());
  EXPECT_TRUE(torch::equal(all_parameters(*clone), parameters));
  EXPECT_TRUE(torch::equal(clone->forward(batch), want));
  clone->train();
  train(*clone, text, 2);
  EXPECT_FALSE(torch::allclose(clone->forward(batch), want));
  EXPECT_TRUE(torch::equal(all_parameters(model), parameters));
  EXPECT_TRUE(torch::equal(model.forward(batch), want));
  // All that it learned is in its parameters.
  auto again = copy_of(*clone);
  EXPECT_TRUE(torch::equal(again->forward(batch), clone->forward(batch)));
  Gpt other(3, kWidth);
  load_state_dict(other, state_dict(*clone));
  other.eval();
  EXPECT_TRUE(torch::equal(other.forward(batch), clone->forward(batch)));
}

TEST(Stack, GeneratesFromOneCache) {
  const torch::NoGradGuard no_grad;
  auto blocks = blocks_of_all_kinds();
  blocks.push_back(OwnBlock());
  auto stack = make_stack(blocks);
  const auto x = tokens(2, 70);
  const auto whole = stack(x).output;
  const auto part = [&](Cache& cache, int64_t begin, int64_t end) {
    return stack(x.slice(1, begin, end), {.cache = cache}).output;
  };
  const auto expect_rows = [&](const torch::Tensor& got, int64_t begin) {
    EXPECT_TRUE(torch::allclose(got, whole.slice(1, begin, begin + got.size(1)), 1e-9, 1e-10));
  };
  auto cache = stack->make_cache(2, 100);
  EXPECT_EQ(cache.batch(), 2);
  EXPECT_EQ(cache.capacity(), 100);
  int64_t bytes = 0;
  for (const auto& block : *stack) bytes += block.make_cache(2, 100).bytes();
  EXPECT_EQ(cache.bytes(), bytes);
  expect_rows(part(cache, 0, 40), 0);
  expect_rows(part(cache, 40, 41), 40);
  EXPECT_EQ(cache.length(), 41);
  auto other = cache.clone();
  expect_rows(part(cache, 41, 60), 41);
  cache.truncate(50);
  expect_rows(part(cache, 50, 70), 50);
  EXPECT_EQ(other.length(), 41);
  expect_rows(part(other, 41, 45), 41);
  other.reorder(torch::tensor({1, 1}));
  const auto next = stack(x.slice(1, 45, 46).flip(0), {.cache = other}).output;
  EXPECT_TRUE(torch::allclose(next[0], whole[1].slice(0, 45, 46), 1e-9, 1e-10));
  cache.reset();
  EXPECT_EQ(cache.length(), 0);
  expect_rows(part(cache, 0, 70), 0);

  auto stream = make_stack({local(), transformer_block(linear())});
  auto unending = stream->make_cache(2);
  EXPECT_EQ(unending.capacity(), std::numeric_limits<int64_t>::max());
  auto half = stream->make_cache(2, 100, {.dtype = torch::kBFloat16});
  EXPECT_LT(half.bytes(), stream->make_cache(2, 100).bytes());
  expect_error([&] { stack->make_cache(2); }, {"capacity"});
}

TEST(Stack, AFailedCallLeavesTheCacheAsItWas) {
  const torch::NoGradGuard no_grad;
  OwnBlock last;
  auto stack = make_stack({local(), multi_head(), linear(), last});
  const auto x = tokens(1, 200);
  const auto whole = stack(x).output;
  auto cache = stack->make_cache(1, 256);
  int64_t at = 0;
  for (const int64_t L : {60, 1, 32, 100}) {
    last->fails = true;
    expect_error([&] { stack(x.slice(1, at, at + L), {.cache = cache}); }, {"OwnBlock"});
    last->fails = false;
    EXPECT_EQ(cache.length(), at);
    const auto got = stack(x.slice(1, at, at + L), {.cache = cache}).output;
    EXPECT_TRUE(torch::allclose(got, whole.slice(1, at, at + L), 1e-9, 1e-10));
    at += L;
  }
}

TEST(Stack, ResetsTheParametersOfAllBlocks) {
  auto stack = make_stack(blocks_of_all_kinds());
  expect_reset_parameters(stack);
  stack->push_back(OwnBlock());
  expect_error([&] { stack->reset_parameters(); }, {"OwnBlock", "get_config"});
}

TEST(Stack, Errors) {
  Stack stack;
  const auto x = torch::randn({1, 4, kWidth});
  EXPECT_TRUE(stack->is_empty());
  expect_error([&] { stack(x); }, {"Stack", "no blocks"});
  expect_error([&] { stack->make_cache(1, 8); }, {"Stack", "no blocks"});
  expect_error([&] { stack->d_model(); }, {"Stack", "no blocks"});
  expect_error([&] { stack->push_back(MultiHeadSelfAttention(nullptr)); }, {"empty holder"});
  stack->push_back(multi_head());
  expect_error([&] { stack->push_back(MultiHeadSelfAttention(32, 4)); },
               {"Stack", "block 1", "input_dim=32", "d_model=16"});
  EXPECT_EQ(stack->size(), 1);
  EXPECT_EQ(stack->children().size(), 1);
  expect_error([&] { stack[1]; }, {"Stack", "block 1 of 1"});
  expect_error([&] { stack(torch::Tensor()); }, {"Stack", "x"});
  expect_error([&] { stack(x[0]); }, {"[batch, seq, input_dim=16]"});

  stack->push_back(linear());
  stack->eval();
  const torch::NoGradGuard no_grad;
  expect_error(
      [&] {
        stack(x, {.mask = torch::ones({4, 4}, torch::kBool)});
      },
      {"Stack", "mask", "block 1", "LinearSelfAttention"});
  const auto cache = stack->make_cache(1, 8);
  expect_error([&] { copy_of(*stack)->forward(x, {.cache = cache}); },
               {"Stack", "another module's"});
  expect_error([&] { stack(x, {.cache = stack[0].make_cache(1, 8)}); },
               {"Stack", "another module's"});
  expect_error([&] { stack(torch::randn({1, 9, kWidth}), {.cache = cache}); }, {"full"});
  stack->push_back(local());
  expect_error([&] { stack(x, {.cache = cache}); }, {"Stack", "2 blocks", "3"});
}

}  // namespace
}  // namespace attzoo::testing::stack_test
