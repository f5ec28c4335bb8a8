#pragma once
/// \file
/// A block of an encoder-decoder's decoder: attention to what was written so far, cross attention
/// to what was read, and an MLP.
///
/// Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.1; with kPre:
/// ```
/// h = x + Attn(Norm(x)),   g = h + Cross(Norm(h), context),   y = g + MLP(Norm(g))
/// ```
/// and with kPost, as in the paper and in BART, each norm behind its sum.
///
/// Shapes: x [B, L, d_model], context [B, S, d_model], or what the cross attention has as its
/// context_dim -> output [B, L, d_model].

#include <attzoo/module/joined_cache.hpp>
#include <attzoo/module/transformer.hpp>

namespace attzoo {
namespace core {

/// What a decoder block holds. The modules are shared with whoever gave them.
template <AttentionModule Self, AttentionModule Cross>
struct WrapsDecoder {
  /// Everything to build the block again, the inner modules included.
  struct Config {
    typename Self::Config attn;
    typename Cross::Config cross;
    TransformerBlockOptions options = {};
  };

  /// Features of the output.
  int64_t d_model() const { return attn->d_model(); }
  /// Features of x; those of the context are the cross attention's.
  int64_t input_dim() const { return attn->input_dim(); }
  /// What the attention to x takes.
  TakenInputs takes() const { return attn->takes(); }
  /// What builds this block again, every default filled in.
  Config get_config() const { return {attn->get_config(), cross->get_config(), options}; }

  TransformerBlockOptions options;  ///< as they were given, every default filled in
  Holder<Self> attn;                ///< attention to x
  Holder<Cross> cross;              ///< attention to the context

  WrapsDecoder(const torch::nn::ModuleHolder<Self>& a, const torch::nn::ModuleHolder<Cross>& c,
               const TransformerBlockOptions& o)
      : options(o), attn(as_holder(a)), cross(as_holder(c)) {}

 protected:
  /// The attention's cache, to which the first call adds that of its context.
  Cache new_cache(const char* who, int64_t batch, std::optional<int64_t> capacity,
                  const CacheOptions& how) const {
    return join_caches(who, identity_, {inner_cache(who, *attn, batch, capacity, how)});
  }
  Cache new_context_cache(const char* who, const torch::Tensor&, const torch::Tensor&) const {
    TORCH_CHECK_NOT_IMPLEMENTED(false, who,
                                ": its make_cache makes a cache that takes the context in its "
                                "first call");
  }
  /// f(name, holder) for what is wrapped.
  template <class F>
  void for_each_inner(F&& f) {
    f("attn", attn);
    f("cross", cross);
  }

  Identity identity_;  // of which caches are
};

}  // namespace core

/// See the file's head. Any attention modules make one: `attn` is causal in its options, or by the
/// calls, and `cross` is not. A block is an attention module itself, so that blocks make a Stack.
template <AttentionModule Self, AttentionModule Cross>
class DecoderBlockImpl
    : public core::Wrapper<DecoderBlockImpl<Self, Cross>, core::WrapsDecoder<Self, Cross>>,
      public core::BlockParts {
  using Base = core::Wrapper<DecoderBlockImpl, core::WrapsDecoder<Self, Cross>>;

 public:
  static constexpr const char* kName = "DecoderBlock";
  using Base::attn, Base::cross, Base::options, Base::d_model;
  using typename Base::Config;

  /// Throws c10::ValueError for an empty holder, modules whose input_dim and d_model are not all
  /// the same, norms elsewhere than kPre and kPost, and options out of range.
  DecoderBlockImpl(torch::nn::ModuleHolder<Self> self, torch::nn::ModuleHolder<Cross> context,
                   const TransformerBlockOptions& o = {})
      : Base({std::move(self), std::move(context), o}) {
    TORCH_CHECK_VALUE(attn->input_dim() == d_model() && cross->input_dim() == d_model() &&
                          cross->d_model() == d_model(),
                      kName, ": attn and cross must have one input_dim and d_model, got ",
                      attn->input_dim(), " to ", d_model(), " and ", cross->input_dim(), " to ",
                      cross->d_model());
    TORCH_CHECK_VALUE(
        o.norm_placement == NormPlacement::kPre || o.norm_placement == NormPlacement::kPost, kName,
        ": norm_placement must be kPre or kPost");
    this->settle(kName, d_model(), options);
    this->make_layers();
  }
  /// Builds the inner modules, too.
  explicit DecoderBlockImpl(const Config& config)
      : DecoderBlockImpl(core::build<Self>(config.attn), core::build<Cross>(config.cross),
                         config.options) {}

  /// x [B, L, d_model] -> output [B, L, d_model], with the weights and lse of the attention to x,
  /// which all inputs are for but `context` [B, S, context_dim] and `context_padding_mask` [B, S].
  /// With a cache the first call gives these, and the cache keeps the context's keys and values
  /// until reset(). Throws what the modules do; c10::ValueError where there is no context, or a
  /// second one, and for documents. Where it throws, the cache is as it was.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    this->check_call(x, inputs);
    this->check_options(kName, options);
    core::check_tokens(x, kName, "x", d_model(), mlp_in->weight);
    auto its = inputs;
    its.context = its.context_padding_mask = torch::Tensor();
    AttentionInputs of_context;
    auto* caches = caches_of(inputs, x);
    check_context(inputs, caches);
    if (caches) {
      its.cache = caches->parts[0];
      of_context.cache = has_context(*caches) ? caches->parts[1]
                                              : cross->make_context_cache(
                                                    inputs.context, inputs.context_padding_mask);
    } else {
      of_context.context = inputs.context;
      of_context.key_padding_mask = inputs.context_padding_mask;
    }
    core::JoinedCache::Together together(caches, caches ? x.size(1) : 0);
    const auto branch = [&](Norm& norm, const torch::Tensor& h, const torch::Tensor& given) {
      return this->after_branch(norm, h, given, options, this->is_training());
    };
    auto result = attn->forward(this->before_branch(norm_attn, x, options), its);
    auto h = branch(norm_attn, x, result.output);
    h = branch(norm_cross, h,
               cross->forward(this->before_branch(norm_cross, h, options), of_context).output);
    result.output =
        branch(norm_mlp, h, this->mlp(this->before_branch(norm_mlp, h, options), options));
    together.done();
    if (caches && !has_context(*caches)) caches->parts.push_back(of_context.cache);
    return result;
  }

  /// Prints the block with its options.
  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model();
    this->print(stream, options);
    stream << ")";
  }

 private:
  static bool has_context(const core::JoinedCache& caches) { return caches.parts.size() > 1; }

  core::JoinedCache* caches_of(const AttentionInputs& inputs, const torch::Tensor& x) const {
    if (!inputs.cache.defined()) return nullptr;
    core::check_cache(kName, this->identity_, inputs.cache, x);
    return static_cast<core::JoinedCache*>(&inputs.cache.state());
  }

  static void check_context(const AttentionInputs& inputs, const core::JoinedCache* caches) {
    const bool has = caches && has_context(*caches);
    TORCH_CHECK_VALUE(inputs.context.defined() || has, kName,
                      ": there is no context to attend to; every call gives one, with a cache the "
                      "first call");
    TORCH_CHECK_VALUE(!has || (!inputs.context.defined() && !inputs.context_padding_mask.defined()),
                      kName, ": the cache has the context of its first call; reset() forgets it");
    TORCH_CHECK_VALUE(!inputs.documents.defined(), kName,
                      ": documents pack the tokens of x and have no meaning with a context");
  }

  void register_layers() override {
    this->register_parts(*this, attn.ptr(), d_model(), options, cross.ptr());
  }
};

/// Holds one; `decoder_block(attn, cross, options)` makes it.
template <AttentionModule Self, AttentionModule Cross>
class DecoderBlock : public Holder<DecoderBlockImpl<Self, Cross>> {
 public:
  using Holder<DecoderBlockImpl<Self, Cross>>::Holder;
};

/// A decoder block of these attention modules, which are shared; throws as DecoderBlockImpl's
/// constructor. Example:
/// ```
/// auto block = decoder_block(
///     MultiHeadSelfAttention({.d_model = 256, .num_heads = 4, .causal = true}),
///     MultiHeadSelfAttention({.d_model = 256, .num_heads = 4}));
/// auto y = block(x, {.context = memory, .context_padding_mask = real}).output;
/// ```
template <AttentionModule Self, AttentionModule Cross>
DecoderBlock<Self, Cross> decoder_block(const torch::nn::ModuleHolder<Self>& attn,
                                        const torch::nn::ModuleHolder<Cross>& cross,
                                        const TransformerBlockOptions& options = {}) {
  return DecoderBlock<Self, Cross>(
      std::make_shared<DecoderBlockImpl<Self, Cross>>(attn, cross, options));
}

}  // namespace attzoo
