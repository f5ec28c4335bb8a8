#pragma once
/// \file
/// Combined attention: a learned gate mixes two attention modules, token by token.
/// ```
/// y = g * A(x) + (1 - g) * B(x),   g = sigmoid(gate(x)) in (0, 1), one number a token
/// ```
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
#include <attzoo/module/joined_cache.hpp>

namespace attzoo {

/// Options of CombinedAttention; see GateOptions.
using CombinedAttentionOptions = GateOptions;

/// See the file's head. It is an attention module itself, so it can be wrapped too.
template <AttentionModule A, AttentionModule B>
class CombinedAttentionImpl
    : public core::Wrapper<CombinedAttentionImpl<A, B>, core::WrapsTwo<GateOptions, A, B>> {
  using Base = core::Wrapper<CombinedAttentionImpl, core::WrapsTwo<GateOptions, A, B>>;

 public:
  static constexpr const char* kName = "CombinedAttention";
  using Base::attn_a, Base::attn_b, Base::options, Base::d_model, Base::input_dim, Base::takes;
  using typename Base::Config;

  /// Throws c10::ValueError for an empty holder, for modules of different d_model or input_dim, and
  /// for options out of range.
  CombinedAttentionImpl(torch::nn::ModuleHolder<A> a, torch::nn::ModuleHolder<B> b,
                        const CombinedAttentionOptions& o = {})
      : Base({std::move(a), std::move(b), o}) {
    const auto check_same = [](const char* name, int64_t of_a, int64_t of_b) {
      TORCH_CHECK_VALUE(of_a == of_b, kName, ": attn_a and attn_b must have the same ", name,
                        ", got ", of_a, " and ", of_b);
    };
    check_same("d_model", attn_a->d_model(), attn_b->d_model());
    check_same("input_dim", attn_a->input_dim(), attn_b->input_dim());
    core::check_gate_options(options, input_dim(), kName);
    options.input_dim = input_dim();
    this->make_layers();
  }
  /// Builds the inner modules, too.
  explicit CombinedAttentionImpl(const Config& config)
      : CombinedAttentionImpl(core::build<A>(config.attn_a), core::build<B>(config.attn_b),
                              config.options) {}

  /// x [B, L, input_dim] -> output [B, L, d_model]; inputs are passed to both modules, which say
  /// what they throw, global_attention, positions and position_offset to those that take them.
  /// Throws c10::ValueError where neither does, and for a mask that not both take.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    this->check_call(x, inputs);
    TORCH_CHECK_VALUE(takes().global_attention || !inputs.global_attention.defined(), kName,
                      ": global_attention has no meaning in attn_a and none in attn_b; "
                      "LongformerSelfAttention takes it");
    TORCH_CHECK_VALUE(takes().positions || !inputs.positions.defined(), kName,
                      ": positions have no meaning without rope, in attn_a or attn_b");
    TORCH_CHECK_VALUE(takes().positions || inputs.position_offset == 0, kName,
                      ": position_offset has no meaning without rope, in attn_a or attn_b, got ",
                      inputs.position_offset);
    TORCH_CHECK_VALUE(takes().mask || !core::says_pairs(inputs), kName,
                      ": mask, pattern and score have no meaning in ",
                      attn_a->takes().mask ? "attn_b" : "attn_a",
                      ", through which tokens would attend to what it hides; pass "
                      "key_padding_mask, causal or documents, which hold in both");
    auto* caches = this->caches_of(kName, inputs, x);
    core::JoinedCache::Together together(caches, caches ? x.size(1) : 0);
    const auto inputs_for = [&](TakenInputs taken, const Cache& cache) {
      auto its = inputs;
      if (!taken.global_attention) its.global_attention = torch::Tensor();
      if (!taken.positions) {
        its.positions = torch::Tensor();
        its.position_offset = 0;
      }
      its.cache = cache;
      return its;
    };
    auto result =
        attn_a->forward(x, inputs_for(attn_a->takes(), caches ? caches->parts[0] : Cache()));
    const auto other =
        attn_b->forward(x, inputs_for(attn_b->takes(), caches ? caches->parts[1] : Cache()));
    together.done();
    result.output = core::mix(gate, x, result.output, other.output);
    return result;
  }

  /// Prints the module with its options.
  void pretty_print(std::ostream& stream) const override {
    core::print_gated(stream, kName, d_model(), options);
  }

  torch::nn::Sequential gate{nullptr};  ///< [B, L, input_dim] -> [B, L, 1]

 private:
  void register_layers() override {
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
  /// A new mixture of `a` and `b`, which are shared; see CombinedAttentionImpl.
  CombinedAttention(const torch::nn::ModuleHolder<A>& a, const torch::nn::ModuleHolder<B>& b,
                    const CombinedAttentionOptions& options = {})
      : Holder<CombinedAttentionImpl<A, B>>(
            std::make_shared<CombinedAttentionImpl<A, B>>(a, b, options)) {}
};

/// A mixture of any two attention modules, which are shared, not copied; throws as
/// CombinedAttentionImpl's constructor.
/// Example: `auto mix = combined(LocalSelfAttention({.d_model = 64}), VanillaSelfAttention(64));`
template <AttentionModule A, AttentionModule B>
CombinedAttention<A, B> combined(const torch::nn::ModuleHolder<A>& a,
                                 const torch::nn::ModuleHolder<B>& b,
                                 const CombinedAttentionOptions& options = {}) {
  return CombinedAttention<A, B>(a, b, options);
}

}  // namespace attzoo
