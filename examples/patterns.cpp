// Who attends to whom: writes the attention weights of every mechanism over 64 tokens, with and
// without causality, as text, from which docs/pictures.py draws. `example_patterns [folder]`
//
// Recurrences, which are causal, have no scores that could be equal. Theirs are of tokens of eight
// kinds in any order: a query asks for another kind than its own token's, the keys of kinds beside
// each other overlap, and convolutions and shifts are left out, so that what stays of each token is
// seen.

#include <attzoo/attzoo.hpp>
#include <support/mechanisms.hpp>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <type_traits>

using namespace attzoo;

namespace {

constexpr int64_t kTokens = 64;

AttentionInputs inputs_of(const TakenInputs& takes, bool causal) {
  AttentionInputs inputs{.causal = causal || !takes.later};
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
/// Parts of a whole: those of a difference sum to less than 1.
torch::Tensor pattern(DifferentialSelfAttentionImpl& module, const torch::Tensor& x, bool causal) {
  const torch::Tensor weights = module.forward(x, {.causal = causal}).weights;
  return weights[0][0] / (1 - module.lambda());
}

/// Means of segments of the tokens, one for each column of a projection along the sequence.
void set_segments(torch::Tensor projection) {
  const int64_t size = kTokens / projection.size(1);
  projection.zero_();
  for (int64_t i = 0; i < kTokens; ++i) projection[i][i / size] = 1.0 / static_cast<double>(size);
}

/// Of all three branches, whose gates are 1/2.
torch::Tensor pattern(NativeSparseSelfAttentionImpl& module, const torch::Tensor& x, bool) {
  const torch::Tensor weights = module.forward(x).weights;
  return weights[0][0] / weights[0][0].sum(-1, /*keepdim=*/true);
}

template <class Holder>
constexpr bool kIsRecurrent =
    std::is_base_of_v<core::RecurrentParts, typename Holder::ContainedType>;

/// 1 for the feature of a token's kind, [1, L, 64].
torch::Tensor tokens_of_kinds() {
  return torch::one_hot(torch::randint(8, {1, kTokens}), 64).to(torch::kFloat32);
}

/// Keys of 8 kinds, each 1 for its own feature and 1/2 for that of the next kind; or in queries,
/// what asks for the key of the fourth kind from a token's own.
void set_keys(torch::Tensor weight, int64_t head_dim, bool queries) {
  weight.zero_();
  for (int64_t row = 0; row < weight.size(0); row += head_dim) {
    for (int64_t kind = 0; kind < 8; ++kind) {
      const int64_t key = queries ? (kind + 4) % 8 : kind;
      weight[row + key][kind] = 1;
      weight[row + (key + 1) % 8][kind] = 0.5;
    }
  }
}

/// The first head's weights of such tokens, [L, L].
template <class Impl>
torch::Tensor recurrent_pattern(Impl& module, const torch::Tensor& tokens) {
  const auto layers = module.named_parameters();
  const auto find = [&](const char* name) {
    const auto* found = layers.find(name);
    return found ? *found : torch::Tensor();
  };
  const auto conv = find("conv.weight");
  if (conv.defined()) conv.zero_().select(-1, -1).fill_(1);
  if (const auto bias = find("conv.bias"); bias.defined()) bias.zero_();
  if constexpr (requires { module.options.state_size; }) {  // Mamba-2's B and C
    const int64_t states = module.options.state_size;
    const int64_t inner = module.options.num_heads * *module.options.head_dim;
    for (const bool queries : {false, true}) {
      const int64_t begin = 2 * inner + (queries ? states : 0);
      set_keys(find("w_in.weight").narrow(0, begin, states), states, queries);
    }
  } else {
    for (const char* name : {"w_q.weight", "w_k.weight", "w_r.weight"}) {
      if (const auto weight = find(name); weight.defined())
        set_keys(weight, *module.options.head_dim, name[2] != 'k');
    }
  }
  if (const auto beta = find("w_b.weight"); beta.defined()) beta.fill_(4);  // nearly 1
  if (const auto rate = find("a2.bias"); rate.defined()) rate.fill_(4);
  if (const auto mix = find("mu"); mix.defined()) mix.zero_();
  const torch::Tensor weights = module.forward(tokens).weights;
  return weights[0][0];
}

/// The text of weights [L, L]; false where it cannot be written.
bool write_text(const std::filesystem::path& path, const torch::Tensor& weights) {
  std::ofstream file(path);
  const auto rows = weights.accessor<float, 2>();
  for (int64_t i = 0; i < kTokens; ++i) {
    for (int64_t j = 0; j < kTokens; ++j) file << (j ? "," : "") << rows[i][j];
    file << '\n';
  }
  return static_cast<bool>(file.flush());
}

bool sees_later(const torch::Tensor& weights) { return weights.triu(1).any().item<bool>(); }

/// False unless every row has weights, all of them sum to 1, and none is of a later token.
bool write(const std::filesystem::path& path, const torch::Tensor& weights, bool causal) {
  return write_text(path, weights) &&
         torch::allclose(weights.sum(-1), torch::ones({kTokens}), 1e-4, 1e-4) &&
         !(causal && sees_later(weights));
}

}  // namespace

int main(int argc, char** argv) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const std::filesystem::path folder = argc > 1 ? argv[1] : "attzoo_patterns";
  std::filesystem::create_directories(folder);
  const auto x = torch::randn({1, kTokens, 32});
  bool right = true;
  const auto complain = [&](const std::filesystem::path& path) {
    std::cout << path << " is wrong\n";
    right = false;
  };
  attzoo::testing::for_each_mechanism([&](const std::string& name, auto, auto make) {
    if constexpr (!kIsRecurrent<decltype(make(attzoo::testing::Size{}))>) {
      auto module = make({.width = 32, .heads = 4, .span = 16});
      module->eval();
      for (auto& parameter :
           module->named_parameters()) {  // equal scores: the pattern alone is left
        if (parameter.key().find("w_k") != std::string::npos) parameter.value().zero_();
        if (parameter.key().starts_with("proj_")) set_segments(parameter.value());
        if (parameter.key() == "w_branch.weight") parameter.value().zero_();
      }
      for (const bool causal : {false, true}) {
        if (causal && !module->takes().causal) continue;
        if (!causal && !module->takes().later) continue;
        const auto path = folder / (name + (causal ? "_causal.csv" : ".csv"));
        if (!write(path, pattern(*module, x, causal).contiguous(), causal)) complain(path);
      }
    }
  });
  const auto tokens = tokens_of_kinds();
  attzoo::testing::for_each_mechanism([&](const std::string& name, auto, auto make) {
    if constexpr (kIsRecurrent<decltype(make(attzoo::testing::Size{}))>) {
      torch::manual_seed(0);
      auto module = make({.width = 64, .heads = 4});
      module->eval();
      const auto path = folder / (name + "_causal.csv");
      const auto weights = recurrent_pattern(*module, tokens).contiguous();
      if (!write_text(path, weights) || sees_later(weights)) complain(path);
    }
  });
  std::cout << "written to " << folder << '\n';
  return right ? 0 : 1;
}
