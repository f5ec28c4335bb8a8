#pragma once
// The models: blocks of the library, and what a language model has besides.

#include <attzoo/functional/apply_linear.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/model_config.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/stack.hpp>

#include <torch/nn/modules/embedding.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <utility>

#include "sizes.hpp"

namespace generate {

/// GPT-OSS's experts: gate and up of an expert lie in the even and the odd columns.
class ExpertsImpl : public torch::nn::Module {
 public:
  ExpertsImpl(int64_t width, int64_t hidden, int64_t count) {
    gate_up_proj = register_parameter("gate_up_proj", torch::empty({count, width, 2 * hidden}));
    gate_up_proj_bias = register_parameter("gate_up_proj_bias", torch::empty({count, 2 * hidden}));
    down_proj = register_parameter("down_proj", torch::empty({count, hidden, width}));
    down_proj_bias = register_parameter("down_proj_bias", torch::empty({count, width}));
  }

  /// x [N, width] -> expert i's answer.
  torch::Tensor forward(int64_t i, const torch::Tensor& x, double alpha, double limit) {
    const auto both = torch::addmm(gate_up_proj_bias[i], x, gate_up_proj[i]).unflatten(-1, {-1, 2});
    const auto gate = both.select(-1, 0).clamp_max(limit);
    const auto up = both.select(-1, 1).clamp(-limit, limit);
    const auto hidden = (up + 1) * gate * torch::sigmoid(gate * alpha);
    return torch::addmm(down_proj_bias[i], hidden, down_proj[i]);
  }

  torch::Tensor gate_up_proj, gate_up_proj_bias, down_proj, down_proj_bias;
};
TORCH_MODULE(Experts);

/// A token's `per_token` best experts by the router, weighted by the softmax over their logits.
class MixtureImpl : public torch::nn::Module {
 public:
  MixtureImpl(int64_t width, int64_t hidden, const attzoo::ExpertsOptions& o) : options(o) {
    router = register_module("router", torch::nn::Linear(width, o.count));
    experts = register_module("experts", Experts(width, hidden, o.count));
  }

  /// x [B, L, width] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x) {
    const auto tokens = x.flatten(0, 1);
    const auto [logits, chosen] = router(tokens).topk(options.per_token, -1);
    const auto weights = logits.softmax(-1);
    auto out = torch::zeros_like(tokens);
    for (const int64_t i : used(chosen)) {
      const auto where = (chosen == i).nonzero();  // rows (token, place among its experts)
      const auto token = where.select(1, 0), place = where.select(1, 1);
      const auto y =
          experts->forward(i, tokens.index_select(0, token), options.alpha, options.limit);
      out.index_add_(0, token, y * weights.index({token, place}).unsqueeze(-1));
    }
    return out.view_as(x);
  }

  attzoo::ExpertsOptions options;
  torch::nn::Linear router{nullptr};
  Experts experts{nullptr};

 private:
  static std::set<int64_t> used(const torch::Tensor& chosen) {
    const auto ids = chosen.cpu().contiguous();
    const auto* first = ids.const_data_ptr<int64_t>();
    return {first, first + ids.numel()};
  }
};
TORCH_MODULE(Mixture);

/// GPT-OSS's block: Llama's, with experts in the place of the MLP.
class ExpertBlockImpl : public torch::nn::Module {
 public:
  ExpertBlockImpl(const attzoo::GroupedSelfAttention& attention,
                  const attzoo::TransformerBlockOptions& o, const attzoo::ExpertsOptions& experts)
      : attn(attention) {
    const int64_t width = attn->d_model();
    norm_attn = attzoo::Norm(o.norm, width, o.norm_eps);
    register_module("norm_attn", norm_attn.ptr());
    register_module("attn", attn);
    norm_mlp = attzoo::Norm(o.norm, width, o.norm_eps);
    register_module("norm_mlp", norm_mlp.ptr());
    mlp = register_module("mlp", Mixture(width, *o.mlp_hidden, experts));
  }

  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& inputs) {
    auto result = attn(norm_attn(x), inputs);
    const auto h = x + result.output;
    result.output = h + mlp(norm_mlp(h));
    return result;
  }
  attzoo::Cache make_cache(int64_t batch, std::optional<int64_t> capacity,
                           const attzoo::CacheOptions& how) const {
    return attn->make_cache(batch, capacity, how);
  }
  int64_t d_model() const { return attn->d_model(); }
  int64_t input_dim() const { return attn->input_dim(); }
  attzoo::TakenInputs takes() const { return attn->takes(); }

  attzoo::Norm norm_attn = nullptr, norm_mlp = nullptr;
  attzoo::GroupedSelfAttention attn;
  Mixture mlp{nullptr};
};
TORCH_MODULE(ExpertBlock);

/// What the layers keep of a batch of sequences.
struct State {
  attzoo::Cache cache;
  torch::Tensor real;  // [B] tokens so far that are no padding
};

class LanguageModel : public torch::nn::Module {
 public:
  // [model]
  explicit LanguageModel(const attzoo::ModelConfig& c) : config(c) {
    using namespace torch::nn;
    const int64_t width = c.attention.d_model;
    embed = register_module("embed", Embedding(c.vocab, width));
    if (c.positions > 0) positions = register_module("positions", Embedding(c.positions, width));
    if (!c.experts) layers = c.layers();
    for (size_t i = 0; c.experts && i < c.windows.size(); ++i) {
      const attzoo::GroupedSelfAttention attention(c.attention_of(i));
      layers->push_back(ExpertBlock(attention, c.block, *c.experts));
    }
    register_module("layers", layers);
    norm = attzoo::Norm(c.block.norm, width, c.block.norm_eps);
    register_module("norm", norm.ptr());
    if (!c.tied)
      lm_head = register_module("lm_head", Linear(LinearOptions(width, c.vocab).bias(false)));
    eval();
  }
  // [/model]

  /// Of `batch` new sequences of up to `capacity` tokens, whose keys and values are kept as `how`
  /// says.
  State make_state(int64_t batch, int64_t capacity, const attzoo::CacheOptions& how = {}) const {
    return {layers->make_cache(batch, capacity, how),
            torch::zeros({batch}, embed->weight.options().dtype(torch::kInt64))};
  }

  /// The next tokens, integers [B, L] -> features [B, L, width]. `real` [B, L], bool, says which
  /// are no padding; it stands before a sequence's first token.
  torch::Tensor forward(const torch::Tensor& ids, State& state, const torch::Tensor& real = {}) {
    auto x = embed(ids);
    if (!positions.is_empty()) x = x + positions(next_positions(ids, state, real));
    return layers(x, {.key_padding_mask = real, .cache = state.cache}).output;
  }

  /// Features [..., width] -> logits [..., vocab].
  torch::Tensor logits(const torch::Tensor& x) {
    return attzoo::apply_linear(norm(x), lm_head.is_empty() ? embed->weight : lm_head->weight);
  }

  attzoo::ModelConfig config;
  torch::nn::Embedding embed{nullptr}, positions{nullptr};
  attzoo::Stack layers;
  attzoo::Norm norm = nullptr;
  torch::nn::Linear lm_head{nullptr};

 private:
  /// A token's position is the number of real tokens before it.
  torch::Tensor next_positions(const torch::Tensor& ids, State& state, const torch::Tensor& real) {
    const auto counts = real.defined() ? real.to(torch::kInt64) : torch::ones_like(ids);
    const auto after = state.real.unsqueeze(1) + counts.cumsum(1);
    state.real = after.select(1, -1);
    TORCH_CHECK_VALUE(after.max().item<int64_t>() <= config.positions, "the model has ",
                      config.positions, " positions, and this text is longer");
    return (after - 1).clamp_min(0);  // that of padding does not matter
  }
};

/// The model of a folder with config.json and safetensors.
inline std::unique_ptr<LanguageModel> load_model(const std::filesystem::path& folder,
                                                 torch::ScalarType dtype, torch::Device device) {
  // [load]
  const auto config = attzoo::read_config(folder);
  const auto tensors = attzoo::open_checkpoint(folder).tensors;
  check_sizes(config, tensors);
  auto model = std::make_unique<LanguageModel>(config);
  model->to(device, dtype);
  attzoo::load_state_dict(*model, tensors, config.names, {.convert_dtype = true});
  // [/load]
  return model;
}

}  // namespace generate
