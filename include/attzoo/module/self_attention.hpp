#pragma once
/// \file
/// What the mechanisms share, and what a mechanism of your own derives from: options checks, the
/// four projections, RoPE, the per-call inputs, and the way through the attention core.

#include <attzoo/core/documents.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/module/inputs.hpp>

#include <ATen/autocast_mode.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <limits>
#include <memory>
#include <utility>

namespace attzoo {

/// A module holder, as LibTorch's, that also takes the options as designated initialisers:
/// `MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});`
/// It is constructed as well from positional arguments, from nullptr and from a shared_ptr.
template <class Impl>
class Holder : public torch::nn::ModuleHolder<Impl> {
 public:
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
  explicit Holder(const typename Impl::Config& config)
      : torch::nn::ModuleHolder<Impl>(std::make_shared<Impl>(config)) {}

  /// Calls forward(); not LibTorch's template, so that the inputs can be written in braces:
  /// `attn(x, {.causal = true})`.
  AttentionResult operator()(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return this->get()->forward(x, inputs);
  }
};

/// What a wrapper needs of the module that it wraps; every mechanism of the zoo has it. `takes()`
/// says which inputs the wrapper may pass on.
template <class M>
concept AttentionModule = requires(M& m, const torch::Tensor& x, const AttentionInputs& inputs) {
  { m.forward(x, inputs) } -> std::same_as<AttentionResult>;
  { m.d_model() } -> std::convertible_to<int64_t>;
  { m.input_dim() } -> std::convertible_to<int64_t>;
  { m.takes() } -> std::convertible_to<TakenInputs>;
};

namespace core {

/// A copy of its own: what a wrapper's reset() puts in the place of the module that it shares.
template <class Module>
torch::nn::ModuleHolder<Module> own_copy(const torch::nn::ModuleHolder<Module>& module) {
  return torch::nn::ModuleHolder<Module>(std::dynamic_pointer_cast<Module>(module->clone()));
}

/// Throws where a layer would have more weights than any machine holds; `sizes` says which options
/// asked for it, as " d_model=4". The check comes before any memory is asked for.
inline void check_layer(std::string_view who, std::string_view layer, int64_t from, int64_t to,
                        const std::string& sizes) {
  constexpr int64_t kMost = int64_t{1} << 36;
  TORCH_CHECK_VALUE(from <= kMost / to, who, ": ", layer, " must have at most 2^36 weights, got [",
                    to, ", ", from, "] with", sizes);
}

/// Tokens [batch, seq, input_dim] that a layer with this weight can read.
inline void check_tokens(const torch::Tensor& t, std::string_view who, std::string_view argument,
                         int64_t input_dim, const torch::Tensor& weight) {
  check_floating(t, who, argument);
  TORCH_CHECK_VALUE(t.dim() == 3 && t.size(2) == input_dim, who, ": ", argument,
                    " must have shape [batch, seq, input_dim=", input_dim, "], got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == weight.device(), who, ": ", argument,
                    " must be on the module's device ", weight.device(), ", got ", t.device());
  // Autocast casts all but float64.
  const auto cast = [&](const torch::Tensor& tensor) {
    return at::autocast::is_autocast_enabled(t.device().type()) &&
           tensor.scalar_type() != torch::kFloat64;
  };
  TORCH_CHECK_TYPE(t.scalar_type() == weight.scalar_type() || (cast(t) && cast(weight)), who, ": ",
                   argument, " must have the module's dtype ", weight.scalar_type(), ", got ",
                   t.scalar_type());
}

/// log(sum(exp(t))) over the first dimension; where all are -inf it is -inf, with gradients of 0.
inline torch::Tensor logsumexp_of_rounds(const torch::Tensor& t) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  auto max = std::get<0>(t.detach().max(0));
  max = max.masked_fill(max == -kInf, 0.0);
  const auto sum = torch::exp(t - max).sum(0);
  const auto none = sum == 0;
  return (torch::log(sum.masked_fill(none, 1.0)) + max).masked_fill(none, -kInf);
}

}  // namespace core

/// Queries, keys and values split into heads: [B, H, L, dh], [B, Hkv, S, dh], [B, Hkv, S, dh], and
/// the documents that they belong to.
struct Heads {
  torch::Tensor q, k, v;
  core::Packing packing = {};
};

/// How many query heads an option named `name` asks for.
struct HeadOption {
  const char* name;
  int64_t count;
};

/// Base of every mechanism, those of the zoo and your own (examples/own_mechanism.cpp):
///
///     struct MineOptions { ... };
///     class MineImpl : public attzoo::SelfAttention<MineImpl, MineOptions> {
///      public:
///       static constexpr const char* kName = "Mine";  // in errors and in print
///       explicit MineImpl(const MineOptions& o) : SelfAttention(o, {"num_heads", o.num_heads}) {
///         reset();
///       }
///       AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
///         return finish(attend(project(x, in), in, window(16, 0), softcap(30.0)));
///       }
///     };
///     using Mine = attzoo::Holder<MineImpl>;
///
/// MineOptions is an aggregate with the fields d_model, input_dim, dropout, bias and causal, and,
/// if wanted, temperature, rope and feature_dim, of the types and meanings of
/// MultiHeadSelfAttentionOptions. The base checks them and the inputs of a call, makes w_q, w_k,
/// w_v and w_o, and handles masks, padding, causality, documents, a context and RoPE. The mechanism
/// gives its mask and its score modifier, may give `extra_repr(stream)` for its own options, and
/// says with `static constexpr TakenInputs kTakes` if it takes other inputs than most.
/// tests/support/mechanism_contract.hpp (CMake target attzoo::testing) tests what all of them keep.
template <class Derived, class OptionsType>
class SelfAttention : public torch::nn::Cloneable<Derived> {
 public:
  using Options = OptionsType;
  using Config = OptionsType;  // what get_config() returns and the constructor takes
  static constexpr TakenInputs kTakes = {};

  /// Query heads of d_model / count features each, and kv_heads of the same size for k and v
  /// (default: as many).
  SelfAttention(Options o, HeadOption query_heads, std::optional<int64_t> kv_heads = {})
      : options(std::move(o)),
        query_heads_(query_heads.count),
        kv_heads_(kv_heads.value_or(query_heads.count)) {
    const char* name = Derived::kName;
    TORCH_CHECK_VALUE(options.d_model > 0, name, ": d_model must be > 0, got ", options.d_model);
    if (!options.input_dim) options.input_dim = options.d_model;
    TORCH_CHECK_VALUE(*options.input_dim > 0, name, ": input_dim must be > 0, got ",
                      *options.input_dim);
    TORCH_CHECK_VALUE(options.dropout >= 0 && options.dropout <= 1, name,
                      ": dropout must be in [0, 1], got ", options.dropout);
    if constexpr (requires { options.temperature; }) {
      TORCH_CHECK_VALUE(options.temperature > 0 && std::isfinite(options.temperature), name,
                        ": temperature must be > 0 and finite, got ", options.temperature);
    }
    check_divides(query_heads.name, query_heads_, "d_model", options.d_model);
    if constexpr (requires { options.temperature; }) {
      TORCH_CHECK_VALUE(scale() <= std::numeric_limits<float>::max(), name,
                        ": temperature must not scale scores beyond float32, got ",
                        options.temperature);
    }
    if constexpr (requires { options.feature_dim; }) {
      if (!options.feature_dim) options.feature_dim = options.d_model;
      check_positive("feature_dim", *options.feature_dim);
      check_divides(query_heads.name, query_heads_, "feature_dim", *options.feature_dim);
    }
    if constexpr (requires { options.rope; }) {
      TORCH_CHECK_VALUE(!options.rope || d_qk() % 2 == 0, name,
                        ": rope needs an even head size d_model / num_heads, got ", d_qk());
    }
    check_layer("w_q", input_dim(), query_heads_ * d_qk());
    check_layer("w_o", d_model(), d_model());
    check_layer("w_v", input_dim(), d_model());
  }

  /// Creates the projections: Xavier uniform weights, zero biases.
  void reset() override {
    w_q = make_projection("w_q", input_dim(), query_heads_ * d_qk());
    w_k = make_projection("w_k", input_dim(), kv_heads_ * d_qk());
    w_v = make_projection("w_v", input_dim(), kv_heads_ * d_head());
    w_o = make_projection("w_o", d_model(), d_model());
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << Derived::kName << "(d_model=" << d_model()
           << ", input_dim=" << input_dim();
    if constexpr (requires(const Derived& m) { m.extra_repr(stream); }) {
      static_cast<const Derived&>(*this).extra_repr(stream);
    }
    stream << ", dropout=" << options.dropout << std::boolalpha << ", bias=" << options.bias;
    if constexpr (requires { options.temperature; })
      stream << ", temperature=" << options.temperature;
    if constexpr (requires { options.rope; }) stream << ", rope=" << options.rope;
    stream << ", causal=" << options.causal << std::noboolalpha << ")";
  }

  int64_t d_model() const { return options.d_model; }
  int64_t input_dim() const { return *options.input_dim; }
  int64_t d_head() const { return options.d_model / query_heads_; }
  /// Features of a query and a key in one head: d_head, but for mechanisms with a feature_dim.
  int64_t d_qk() const {
    if constexpr (requires { options.feature_dim; }) return *options.feature_dim / query_heads_;
    return d_head();
  }
  /// Which inputs have a meaning here.
  TakenInputs takes() const { return Derived::kTakes; }
  /// Options that build this module again, every default filled in.
  Config get_config() const { return options; }

  Options options;
  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr}, w_o{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(AttentionInputs())})

  static void check_positive(const char* name, int64_t value) {
    TORCH_CHECK_VALUE(value > 0, Derived::kName, ": ", name, " must be > 0, got ", value);
  }

  static void check_divides(const char* divisor_name, int64_t divisor, const char* name,
                            int64_t value) {
    check_positive(divisor_name, divisor);
    TORCH_CHECK_VALUE(value % divisor == 0, Derived::kName, ": ", divisor_name, " must divide ",
                      name, ", got ", divisor_name, "=", divisor, " ", name, "=", value);
  }

  torch::nn::Linear make_projection(const char* name, int64_t from, int64_t to) {
    check_layer(name, from, to);
    auto layer = this->register_module(
        name, torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(options.bias)));
    torch::nn::init::xavier_uniform_(layer->weight);
    if (options.bias) torch::nn::init::zeros_(layer->bias);
    return layer;
  }

  /// Checks the inputs, projects x and the context, splits heads and rotates q and k.
  Heads project(const torch::Tensor& x, const AttentionInputs& in) {
    check_inputs(x, in);
    const auto packing =
        in.documents.defined() ? core::pack(in.documents, who("documents")) : core::Packing{};
    return project_with(w_q, w_k, w_v, x, in, packing);
  }

  /// The same with projections of the mechanism's own, on inputs that are checked already.
  Heads project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k, torch::nn::Linear& to_v,
                     const torch::Tensor& x, const AttentionInputs& in,
                     const core::Packing& packing) {
    const auto& context = in.context.defined() ? in.context : x;
    // [B, N, heads * dh] -> [B, heads, N, dh], a view
    const auto split = [](const torch::Tensor& t, int64_t heads) {
      return t.view({t.size(0), t.size(1), heads, t.size(2) / heads}).transpose(1, 2);
    };
    Heads heads{split(to_q(x), query_heads_), split(to_k(context), kv_heads_),
                split(to_v(context), kv_heads_), packing};
    if constexpr (requires { options.rope; }) {
      if (options.rope) {
        const auto positions = packing.defined() ? packing.position.unsqueeze(1) : torch::Tensor();
        heads.q =
            apply_rope(heads.q, {.position_offset = in.position_offset, .positions = positions});
        heads.k =
            apply_rope(heads.k, {.position_offset = in.context.defined() ? 0 : in.position_offset,
                                 .positions = positions});
      }
    }
    return heads;
  }

  /// Attention under the mechanism's own pattern and score, and all that the caller asked for.
  AttentionResult attend(const Heads& heads, const AttentionInputs& in, core::AnyMask pattern = {},
                         core::AnyScore score = {}) {
    if (is_causal(in)) pattern = pattern && core::CausalMask();
    if (heads.packing.defined()) {
      pattern = pattern && core::DocumentsMask{{.ids = heads.packing.run}};
    }
    if (in.mask.defined()) {
      const auto said = core::mask_and_bias(core::mask_rank4(in.mask));
      pattern = pattern && said.mask;
      score = score + said.bias;
    }
    if (in.key_padding_mask.defined()) {
      pattern = pattern && core::TensorMask{in.key_padding_mask.unsqueeze(1).unsqueeze(1)};
    }
    return attention(heads.q, heads.k, heads.v, pattern, score, attention_options());
  }

  bool is_causal(const AttentionInputs& in) const { return in.causal.value_or(options.causal); }

  AttentionOptions attention_options() const {
    return {.scale = scale(),
            .dropout = this->is_training() ? options.dropout : 0.0,
            .private_qk = true};
  }

  /// Joins the heads of an attention output and applies w_o: [B, H, L, dh] -> [B, L, d_model].
  AttentionResult finish(AttentionResult result) {
    result.output = w_o(result.output.transpose(1, 2).flatten(2));
    return result;
  }

 private:
  static std::string who(const char* argument) {
    return std::string(Derived::kName) + ": " + argument;
  }

  void check_layer(const char* layer, int64_t from, int64_t to) const {
    std::string sizes = c10::str(" d_model=", d_model(), " input_dim=", input_dim());
    if constexpr (requires { options.feature_dim; }) {
      sizes += c10::str(" feature_dim=", *options.feature_dim);
    }
    core::check_layer(Derived::kName, layer, from, to, sizes);
  }

  double scale() const {
    double temperature = 1.0;
    if constexpr (requires { options.temperature; }) temperature = options.temperature;
    return 1.0 / (std::sqrt(static_cast<double>(d_head())) * temperature);
  }

  void check_inputs(const torch::Tensor& x, const AttentionInputs& in) const {
    const char* name = Derived::kName;
    check_tokens(x, "x");
    TORCH_CHECK_VALUE(Derived::kTakes.global_attention || !in.global_attention.defined(), name,
                      ": global_attention has no meaning here; LongformerSelfAttention takes it");
    if (in.context.defined()) {
      check_tokens(in.context, "context");
      TORCH_CHECK_VALUE(in.context.size(0) == x.size(0), name,
                        ": context must have x's batch size ", x.size(0), ", got ",
                        in.context.sizes());
    }
    const core::Shape n{x.size(0), query_heads_, x.size(1),
                        in.context.defined() ? in.context.size(1) : x.size(1)};
    if (in.mask.defined()) core::check_mask(in.mask, n, x.device(), name);
    if (in.key_padding_mask.defined()) {
      core::check_key_padding(in.key_padding_mask, n, x.device(), name);
    }
    if (in.documents.defined()) {
      TORCH_CHECK_VALUE(!in.context.defined(), name,
                        ": documents pack the tokens of x and have no meaning with a context");
      core::check_documents(in.documents, who("documents"));
      core::check_documents_fit(in.documents, n, x.device(), who("documents"));
    }
  }

  void check_tokens(const torch::Tensor& t, const char* argument) const {
    core::check_tokens(t, Derived::kName, argument, input_dim(), w_q->weight);
  }

  int64_t query_heads_, kv_heads_;
};

}  // namespace attzoo
