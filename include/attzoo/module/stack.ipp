#pragma once
// Definitions of stack.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/module/stack.hpp>

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
  if (!inputs.mask.defined()) return;
  for (size_t i = 0; i < size(); ++i) {
    TORCH_CHECK_VALUE(blocks_[i].takes().mask, kName, ": mask has no meaning in block ", i, ", ",
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
