#pragma once
/// \file
/// Blocks one after another, of one type or of several, as one module: the middle of a transformer.
/// ```
/// x_0 = x,   x_(i+1) = block_i(x_i),   y = x_n
/// ```
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model]; weights and lse are the last block's.

#include <attzoo/config.hpp>
#include <attzoo/module/any_attention.hpp>
#include <attzoo/module/callable_module.hpp>
#include <attzoo/module/joined_cache.hpp>

#include <concepts>
#include <iosfwd>
#include <memory>
#include <optional>
#include <vector>

namespace attzoo {

/// The module; Stack holds it. Blocks are mechanisms, wrappers, transformer blocks, other stacks,
/// and modules of your own (AttentionBlock). They are registered by their numbers, so that in a
/// model which registers the stack as "layers" the state has `layers.0.attn.w_q.weight` ..., the
/// names that name maps expect. A stack is an attention module itself: it takes the same inputs,
/// makes one cache for all its blocks, and can be wrapped.
class StackImpl : public core::CallableModule<StackImpl> {
 public:
  static constexpr const char* kName = "Stack";

  /// What builds a stack of the same blocks again, with parameters of its own.
  struct Config {
    std::vector<AnyAttention::Config> blocks;
  };

  /// Of no blocks yet.
  StackImpl() = default;
  /// Of these blocks in order, which are shared: `Stack layers(block, other)`. Throws as
  /// push_back().
  template <std::convertible_to<AnyAttention>... Blocks>
  explicit StackImpl(const AnyAttention& first, const Blocks&... more)
      : StackImpl(std::vector<AnyAttention>{first, more...}) {}
  ATTZOO_API explicit StackImpl(const std::vector<AnyAttention>& blocks);
  ATTZOO_API explicit StackImpl(const Config& config);

  /// Appends a block, which is shared. Throws c10::ValueError if its input_dim is not the d_model
  /// of the block before.
  ATTZOO_API void push_back(const AnyAttention& block);

  /// The blocks in order: `for (const auto& block : *layers)`, `layers[0](x)`,
  /// `layers[0]->parameters()`.
  auto begin() const { return blocks_.begin(); }
  auto end() const { return blocks_.end(); }
  size_t size() const { return blocks_.size(); }
  bool is_empty() const { return blocks_.empty(); }
  /// Throws c10::IndexError unless i < size().
  ATTZOO_API const AnyAttention& operator[](size_t i) const;

  /// x [B, L, input_dim] -> output [B, L, d_model], weights and lse of the last block. All blocks
  /// get the inputs, but for global_attention, positions and position_offset, which go to those
  /// that take them. Throws what the blocks do; and c10::ValueError if there are none, for a `mask`
  /// that not all of them take, and for a cache that is not this stack's. Where one throws, the
  /// cache is as it was.
  ATTZOO_API AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// One cache for all blocks, made of theirs; see MakesCache and Cache. Without a capacity, where
  /// all of them can do without. Throws c10::ValueError if there are no blocks, and what they do.
  ATTZOO_API Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                              const CacheOptions& how = {}) const override;
  /// A context's keys and values of all blocks; see MakesCache. Throws as make_cache().
  ATTZOO_API Cache make_context_cache(const torch::Tensor& context,
                                      const torch::Tensor& key_padding_mask = {}) const override;

  /// Features of the output, the last block's. This and the next throw c10::ValueError if there are
  /// no blocks.
  ATTZOO_API int64_t d_model() const;
  /// Features of x, the first block's.
  ATTZOO_API int64_t input_dim() const;
  /// global_attention and positions if one of the blocks does, a mask if all do.
  ATTZOO_API TakenInputs takes() const;
  /// What builds this stack again; throws as AnyAttention::get_config().
  ATTZOO_API Config get_config() const;

  /// A stack of copies of the blocks, which shares nothing with this one.
  ATTZOO_API std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;
  /// Does nothing, as that of torch::nn::ModuleList: all parameters are the blocks'. Those are made
  /// anew by reset_parameters().
  void reset() override {}

  /// Prints the name; blocks are printed below it.
  ATTZOO_API void pretty_print(std::ostream& stream) const override;

 private:
  void check_not_empty() const;
  void check_mask(const AttentionInputs& inputs) const;
  core::JoinedCache* caches_of(const torch::Tensor& x, const AttentionInputs& inputs) const;

  std::vector<AnyAttention> blocks_;
  core::Identity identity_;  // of which caches are
};

/// Holds one. Example:
/// ```
/// Stack layers;
/// for (int64_t i = 0; i < 12; ++i) {
///   LocalSelfAttention local({.d_model = 256, .window_size = 128, .causal = true});
///   MultiHeadSelfAttention dense({.d_model = 256, .num_heads = 8, .causal = true});
///   if (i % 4 == 3) layers->push_back(transformer_block(dense));
///   else layers->push_back(transformer_block(local));
/// }
/// auto y = layers(x, {.key_padding_mask = real}).output;
/// auto cache = layers->make_cache(/*batch=*/1, /*capacity=*/1024);
/// auto next = layers(token, {.cache = cache}).output;
/// ```
class Stack : public Holder<StackImpl> {
 public:
  using Holder<StackImpl>::Holder;
  /// A new one of no blocks yet.
  Stack() : Holder<StackImpl>(std::make_shared<StackImpl>()) {}
};

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>

#include <ostream>
#include <string>
#include <utility>

namespace attzoo {

ATTZOO_API StackImpl::StackImpl(const std::vector<AnyAttention>& blocks) {
  for (const auto& block : blocks) push_back(block);
}

ATTZOO_API StackImpl::StackImpl(const Config& config) {
  for (const auto& make : config.blocks) push_back(make());
}

ATTZOO_API void StackImpl::push_back(const AnyAttention& block) {
  TORCH_CHECK_VALUE(is_empty() || block.input_dim() == d_model(), kName, ": block ", size(), ", ",
                    block->name(), ", has input_dim=", block.input_dim(),
                    ", and the block before gives d_model=", d_model());
  register_module(std::to_string(size()), block.ptr());
  blocks_.push_back(block);
}

ATTZOO_API const AnyAttention& StackImpl::operator[](size_t i) const {
  TORCH_CHECK_INDEX(i < size(), kName, ": there is no block ", i, " of ", size());
  return blocks_[i];
}

ATTZOO_API AttentionResult StackImpl::forward(const torch::Tensor& x,
                                              const AttentionInputs& inputs) {
  check_not_empty();
  core::check_floating(x, kName, "x");
  check_mask(inputs);
  auto* caches = caches_of(x, inputs);
  core::JoinedCache::Together together(caches, caches ? x.size(1) : 0);
  // What no block takes goes to all, so that the first one says so.
  const bool to_some_global = inputs.global_attention.defined() && takes().global_attention;
  const bool to_some_positions =
      (inputs.positions.defined() || inputs.position_offset != 0) && takes().positions;
  AttentionResult result;
  auto its = inputs;
  for (size_t i = 0; i < size(); ++i) {
    if (caches) its.cache = caches->parts[i];
    if (to_some_global) {
      its.global_attention =
          blocks_[i].takes().global_attention ? inputs.global_attention : torch::Tensor();
    }
    if (to_some_positions) {
      const bool taken = blocks_[i].takes().positions;
      its.positions = taken ? inputs.positions : torch::Tensor();
      its.position_offset = taken ? inputs.position_offset : 0;
    }
    const auto h = i == 0 ? x : std::exchange(result, {}).output;
    result = blocks_[i](h, its);
  }
  together.done();
  return result;
}

ATTZOO_API Cache StackImpl::make_cache(int64_t batch, std::optional<int64_t> capacity,
                                       const CacheOptions& how) const {
  check_not_empty();
  std::vector<Cache> parts;
  for (const auto& block : blocks_) parts.push_back(block.make_cache(batch, capacity, how));
  return core::join_caches(kName, identity_, std::move(parts));
}

ATTZOO_API Cache StackImpl::make_context_cache(const torch::Tensor& context,
                                               const torch::Tensor& key_padding_mask) const {
  check_not_empty();
  std::vector<Cache> parts;
  for (const auto& block : blocks_) {
    parts.push_back(block.make_context_cache(context, key_padding_mask));
  }
  return core::join_caches(kName, identity_, std::move(parts));
}

ATTZOO_API int64_t StackImpl::d_model() const {
  check_not_empty();
  return blocks_.back().d_model();
}

ATTZOO_API int64_t StackImpl::input_dim() const {
  check_not_empty();
  return blocks_.front().input_dim();
}

ATTZOO_API TakenInputs StackImpl::takes() const {
  TakenInputs all;
  for (const auto& block : blocks_) {
    const auto taken = block.takes();
    all.mask = all.mask && taken.mask;
    all.global_attention = all.global_attention || taken.global_attention;
    all.positions = all.positions || taken.positions;
    all.context = all.context && taken.context;
    all.later = all.later && taken.later;
    all.causal = all.causal && taken.causal;
  }
  return all;
}

ATTZOO_API StackImpl::Config StackImpl::get_config() const {
  Config config;
  for (const auto& block : blocks_) config.blocks.push_back(block.get_config());
  return config;
}

ATTZOO_API std::shared_ptr<torch::nn::Module> StackImpl::clone(
    const std::optional<torch::Device>& device) const {
  auto copy = std::make_shared<StackImpl>();
  copy->train(is_training());
  for (size_t i = 0; i < size(); ++i) {
    size_t first = 0;  // where this block stands for the first time: what is shared stays so
    while (blocks_[first].ptr() != blocks_[i].ptr()) ++first;
    copy->push_back(first < i ? copy->blocks_[first] : blocks_[i].clone(device));
  }
  return copy;
}

ATTZOO_API void StackImpl::pretty_print(std::ostream& stream) const { stream << "attzoo::Stack"; }

ATTZOO_API void StackImpl::check_not_empty() const {
  TORCH_CHECK_VALUE(!is_empty(), kName, ": there are no blocks; push_back() appends one");
}

ATTZOO_API void StackImpl::check_mask(const AttentionInputs& inputs) const {
  if (!core::says_pairs(inputs)) return;
  for (size_t i = 0; i < size(); ++i) {
    TORCH_CHECK_VALUE(blocks_[i].takes().mask, kName,
                      ": mask, pattern and score have no meaning in block ", i, ", ",
                      blocks_[i]->name(),
                      ", through which tokens would attend to what it hides; pass "
                      "key_padding_mask, causal or documents, which hold in all");
  }
}

ATTZOO_API core::JoinedCache* StackImpl::caches_of(const torch::Tensor& x,
                                                   const AttentionInputs& inputs) const {
  if (!inputs.cache.defined()) return nullptr;
  core::check_cache(kName, identity_, inputs.cache, x);
  auto& caches = static_cast<core::JoinedCache&>(inputs.cache.state());
  TORCH_CHECK_VALUE(caches.parts.size() == size(), kName, ": the cache was made when there were ",
                    caches.parts.size(), " blocks, and now there are ", size());
  return &caches;
}

}  // namespace attzoo

#endif
