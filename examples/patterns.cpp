// Who attends to whom: writes the attention weights of every mechanism over 64 tokens, with and
// without causality, as text, from which docs/pictures.py draws. `example_patterns [folder]`

#include <attzoo/attzoo.hpp>
#include <support/mechanisms.hpp>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

using namespace attzoo;

namespace {

constexpr int64_t kTokens = 64;

AttentionInputs inputs_of(const TakenInputs& takes, bool causal) {
  AttentionInputs inputs{.causal = causal};
  if (takes.global_attention) {
    inputs.global_attention = torch::zeros({kTokens});
    inputs.global_attention[0] = inputs.global_attention[40] = 1;
  }
  return inputs;
}

/// The first head's weights, [L, L].
template <class Impl>
torch::Tensor pattern(Impl& module, const torch::Tensor& x, bool causal) {
  const torch::Tensor weights = module.forward(x, inputs_of(module.takes(), causal)).weights;
  return weights.dim() == 4 ? weights[0][0] : weights[0];
}
/// What both modules see, and what a gated one keeps of each token, at a gate of 1/2.
template <class A, class B>
torch::Tensor pattern(CombinedAttentionImpl<A, B>& module, const torch::Tensor& x, bool causal) {
  return (pattern(*module.attn_a, x, causal) + pattern(*module.attn_b, x, causal)) / 2;
}
template <class Inner>
torch::Tensor pattern(GatedSelfAttentionImpl<Inner>& module, const torch::Tensor& x, bool causal) {
  return (pattern(*module.attn, x, causal) + torch::eye(kTokens)) / 2;
}

/// False unless every row has weights, all of them sum to 1, and none is of a later token.
bool write(const std::filesystem::path& path, const torch::Tensor& weights, bool causal) {
  std::ofstream file(path);
  const auto rows = weights.accessor<float, 2>();
  for (int64_t i = 0; i < kTokens; ++i) {
    for (int64_t j = 0; j < kTokens; ++j) file << (j ? "," : "") << rows[i][j];
    file << '\n';
  }
  return file.flush() && torch::allclose(weights.sum(-1), torch::ones({kTokens}), 1e-4, 1e-4) &&
         (!causal || weights.triu(1).count_nonzero().item<int64_t>() == 0);
}

}  // namespace

int main(int argc, char** argv) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const std::filesystem::path folder = argc > 1 ? argv[1] : "attzoo_patterns";
  std::filesystem::create_directories(folder);
  const auto x = torch::randn({1, kTokens, 32});
  bool right = true;
  attzoo::testing::for_each_mechanism([&](const std::string& name, auto, auto make) {
    auto module = make({.width = 32, .heads = 4, .span = 16});
    module->eval();
    for (auto& parameter : module->named_parameters()) {  // equal scores: the pattern alone is left
      if (parameter.key().find("w_k") != std::string::npos) parameter.value().zero_();
    }
    for (const bool causal : {false, true}) {
      const auto path = folder / (name + (causal ? "_causal.csv" : ".csv"));
      if (write(path, pattern(*module, x, causal).contiguous(), causal)) continue;
      std::cout << path << " is wrong\n";
      right = false;
    }
  });
  std::cout << "written to " << folder << '\n';
  return right ? 0 : 1;
}
