#include <attzoo/longformer.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::longformer_test {
namespace {

struct LongformerTraits : PlainTraits {
  using Module = LongformerSelfAttention;
  static LongformerSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .window_size = 5, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) { return create_local_mask(n, 5); }
};
INSTANTIATE_TEST_SUITE_P(Longformer, MechanismContract, mechanism<LongformerTraits>());

torch::Tensor flags(std::vector<int64_t> global, int64_t n) {
  auto f = torch::zeros({n});
  for (const int64_t i : global) f[i] = 2;  // any nonzero value marks a global token
  return f;
}

/// d_model 12, three heads, a window of 4, no dropout.
LongformerSelfAttentionOptions small() {
  return {.d_model = 12, .num_heads = 3, .window_size = 4, .dropout = 0};
}

TEST(Longformer, GlobalTokensSeeAndAreSeen) {
  LongformerSelfAttention m(small());
  MultiHeadSelfAttention dense({.d_model = 12, .num_heads = 3, .dropout = 0});
  load_state_dict(*dense, state_dict(*m));
  const auto x = torch::randn({2, 17, 12});
  const auto one = flags({0, 9}, 17), each = torch::stack({one, flags({16}, 17)});
  for (const auto& g : {one, each}) {
    const auto is = (g.dim() == 1 ? g.unsqueeze(0) : g) != 0;
    const auto mask = create_local_mask(17, 4) | is.unsqueeze(1) | is.unsqueeze(2);
    for (const bool causal : {false, true}) {
      const auto got = m(x, {.causal = causal, .global_attention = g});
      const auto want = dense(x, {.mask = mask, .causal = causal});
      EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-5, 1e-6));
      EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-5, 1e-6));
    }
  }
}

TEST(Longformer, AllGlobalEqualsMultiHeadAndNoneEqualsLocal) {
  expect_equivalent(LongformerSelfAttention(small()), MultiHeadSelfAttention(12, 3),
                    {.global_attention = torch::ones({24})});
  expect_equivalent(LongformerSelfAttention(small()),
                    LocalSelfAttention({.d_model = 12, .num_heads = 3, .window_size = 4}),
                    {.global_attention = torch::zeros({24})});
}

TEST(Longformer, GlobalProjectionsServeTheGlobalRows) {
  auto options = small();
  options.bias = options.global_projections = true;
  LongformerSelfAttention m(options);
  m->to(torch::kFloat64);
  MultiHeadSelfAttention local({.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true}),
      global({.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true});
  local->to(torch::kFloat64);
  global->to(torch::kFloat64);
  auto state = state_dict(*m);
  std::map<std::string, torch::Tensor> a, b;
  for (const char* part : {".weight", ".bias"}) {
    for (const char* w : {"w_q", "w_k", "w_v"}) {
      a[std::string(w) + part] = state[std::string(w) + part];
      b[std::string(w) + part] = state[std::string(w) + "_global" + part];
    }
    a[std::string("w_o") + part] = b[std::string("w_o") + part] = state[std::string("w_o") + part];
  }
  load_state_dict(*local, a);
  load_state_dict(*global, b);
  auto x = torch::randn({1, 11, 12}, torch::kFloat64).requires_grad_();
  const auto g = flags({3, 7}, 11);
  const auto is = g != 0;
  const auto part = local(x, {.mask = create_local_mask(11, 4) | is.unsqueeze(0)});
  const auto whole = global(x);
  const auto want = torch::where(is.unsqueeze(1), whole.output, part.output);
  const auto got = m(x, {.global_attention = g});
  EXPECT_TRUE(torch::allclose(got.output, want, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(
      got.weights,
      torch::where(is.unsqueeze(1), torch::Tensor(whole.weights), torch::Tensor(part.weights)),
      1e-10, 1e-12));
  Tensors leaves{x};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  gradcheck([&] { return m(x, {.global_attention = g}).output.square().sum(); }, leaves,
            "Longformer with global projections");
}

TEST(Longformer, Errors) {
  expect_error([] { LongformerSelfAttention({.d_model = 12, .num_heads = 3, .window_size = 0}); },
               {"LongformerSelfAttention", "window_size", "0"});
  LongformerSelfAttention m(12, 3);
  const auto x = torch::randn({2, 6, 12});
  const auto bad = [&](const AttentionInputs& in, const std::vector<std::string>& parts) {
    expect_error([&] { m(x, in); }, parts);
  };
  bad({.global_attention = torch::ones({7})}, {"global_attention", "L=6", "[7]"});
  bad({.global_attention = torch::ones({1, 6})}, {"global_attention", "[1, 6]"});
  bad({.global_attention = torch::ones({1, 2, 6})}, {"global_attention", "[1, 2, 6]"});
  bad({.global_attention = flags({1}, 6).to_sparse()}, {"global_attention", "dense", "Sparse"});
  bad({.context = x, .global_attention = torch::ones({6})}, {"global_attention", "context"});
}

TEST(Longformer, GlobalTokensOfDocuments) {
  for (const bool projections : {false, true}) {
    auto options = small();
    options.rope = true;
    options.global_projections = projections;
    LongformerSelfAttention m(options);
    for (const auto& g :
         {flags({0, 17, 30}, 40), torch::stack({flags({2}, 40), flags({39}, 40)})}) {
      expect_documents_are_alone(m, {.global_attention = g}, "longformer");
      expect_documents_are_alone(m, {.causal = true, .global_attention = g}, "causal longformer");
    }
  }
}

}  // namespace
}  // namespace attzoo::testing::longformer_test
