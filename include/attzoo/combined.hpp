#pragma once
/// \file
/// Combined attention: a learned gate mixes two attention modules, token by token.
///
///     y = g * A(x) + (1 - g) * B(x),   g = sigmoid(gate(x)) in (0, 1), one number a token
///
/// a mixture of two experts with a dense gate (Jacobs et al., "Adaptive Mixtures of Local Experts",
/// 1991), for instance a local and a global mechanism. The two see the same x and the same inputs,
/// but for `global_attention`, which lets tokens attend to more and goes to the one that takes it.
/// What forbids pairs must hold in both: a `mask` is an error where one of them has no use for it
/// (LinearSelfAttention), because through that one every token would attend to what the mask hides.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model]; weights and lse are A's.
/// Cost: the sum of the two modules', and O(L) more.
/// Departs from the Python library: input_dim defaults to the modules' own instead of d_model.

#include <attzoo/module/gate.hpp>

namespace attzoo {

/// Options of CombinedAttention; see GateOptions.
using CombinedAttentionOptions = GateOptions;

template <AttentionModule A, AttentionModule B>
class CombinedAttentionImpl : public torch::nn::Cloneable<CombinedAttentionImpl<A, B>> {
 public:
  static constexpr const char* kName = "CombinedAttention";

  /// Everything to build the module again, the inner ones included.
  struct Config {
    typename A::Config attn_a;
    typename B::Config attn_b;
    CombinedAttentionOptions options = {};
  };

  CombinedAttentionImpl(torch::nn::ModuleHolder<A> a, torch::nn::ModuleHolder<B> b,
                        const CombinedAttentionOptions& o = {})
      : options(o), attn_a(std::move(a)), attn_b(std::move(b)) {
    TORCH_CHECK_VALUE(!attn_a.is_empty() && !attn_b.is_empty(), kName,
                      ": attn_a and attn_b must hold modules, got an empty holder");
    TORCH_CHECK_VALUE(attn_a->d_model() == attn_b->d_model(), kName,
                      ": attn_a and attn_b must have the same d_model, got ", attn_a->d_model(),
                      " and ", attn_b->d_model());
    TORCH_CHECK_VALUE(attn_a->input_dim() == attn_b->input_dim(), kName,
                      ": attn_a and attn_b must have the same input_dim, got ", attn_a->input_dim(),
                      " and ", attn_b->input_dim());
    core::check_gate_options(options, attn_a->input_dim(), kName);
    options.input_dim = attn_a->input_dim();
    register_layers();
  }
  explicit CombinedAttentionImpl(const Config& config)
      : CombinedAttentionImpl(torch::nn::ModuleHolder<A>(std::make_shared<A>(config.attn_a)),
                              torch::nn::ModuleHolder<B>(std::make_shared<B>(config.attn_b)),
                              config.options) {}

  void reset() override {
    attn_a = core::own_copy(attn_a);
    attn_b = core::own_copy(attn_b);
    register_layers();
  }

  /// x [B, L, input_dim]; inputs are passed to both modules, global_attention to those that take
  /// it. Throws c10::ValueError for a global_attention that neither takes, and for a mask that not
  /// both take.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(takes().global_attention || !inputs.global_attention.defined(), kName,
                      ": global_attention has no meaning in attn_a and none in attn_b; "
                      "LongformerSelfAttention takes it");
    TORCH_CHECK_VALUE(takes().mask || !inputs.mask.defined(), kName, ": mask has no meaning in ",
                      attn_a->takes().mask ? "attn_b" : "attn_a",
                      ", through which tokens would attend to what it hides; pass "
                      "key_padding_mask, causal or documents, which hold in both");
    const auto for_one = [&](TakenInputs taken) {
      auto its = inputs;
      if (!taken.global_attention) its.global_attention = torch::Tensor();
      return its;
    };
    auto result = attn_a->forward(x, for_one(attn_a->takes()));
    const auto g = gate->forward(x);  // [B, L, 1]
    const auto other = attn_b->forward(x, for_one(attn_b->takes()));
    result.output = g * result.output + (1 - g) * other.output;
    return result;
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model() << ", input_dim=" << input_dim();
    core::print_gate_options(stream, options);
  }

  /// global_attention if one of the modules does, a mask if both do.
  TakenInputs takes() const {
    const TakenInputs a = attn_a->takes(), b = attn_b->takes();
    return {.mask = a.mask && b.mask, .global_attention = a.global_attention || b.global_attention};
  }
  int64_t d_model() const { return attn_a->d_model(); }
  int64_t input_dim() const { return *options.input_dim; }
  Config get_config() const { return {attn_a->get_config(), attn_b->get_config(), options}; }

  CombinedAttentionOptions options;
  torch::nn::ModuleHolder<A> attn_a;
  torch::nn::ModuleHolder<B> attn_b;
  torch::nn::Sequential gate{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(AttentionInputs())})

 private:
  void register_layers() {
    this->register_module("attn_a", attn_a);
    this->register_module("attn_b", attn_b);
    gate = this->register_module("gate", core::make_gate(input_dim(), options));
  }
};

/// Holds one; `combined(a, b, options)` makes it from any two attention modules.
template <AttentionModule A, AttentionModule B>
class CombinedAttention : public Holder<CombinedAttentionImpl<A, B>> {
 public:
  using Holder<CombinedAttentionImpl<A, B>>::Holder;
  CombinedAttention(const torch::nn::ModuleHolder<A>& a, const torch::nn::ModuleHolder<B>& b,
                    const CombinedAttentionOptions& options = {})
      : Holder<CombinedAttentionImpl<A, B>>(
            std::make_shared<CombinedAttentionImpl<A, B>>(a, b, options)) {}
};

/// Example: `auto mix = combined(LocalSelfAttention({.d_model = 64}), VanillaSelfAttention(64));`
/// The inner modules are shared, not copied.
template <AttentionModule A, AttentionModule B>
CombinedAttention<A, B> combined(const torch::nn::ModuleHolder<A>& a,
                                 const torch::nn::ModuleHolder<B>& b,
                                 const CombinedAttentionOptions& options = {}) {
  return CombinedAttention<A, B>(a, b, options);
}

}  // namespace attzoo
