#pragma once
// Definitions of moba.hpp.

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <attzoo/core/attention/reference.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/moba.hpp>
#include <attzoo/module/blend.hpp>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

namespace attzoo {

ATTZOO_API Cache MixtureOfBlocksSelfAttentionImpl::make_cache(int64_t batch,
                                                              std::optional<int64_t> capacity,
                                                              const CacheOptions& how) const {
  const auto head = new_cache_head(batch, capacity, how, /*unending=*/false);
  return Cache(
      std::make_shared<core::BlockSumCache>(head, options.num_heads, d_head(), options.block_size));
}

ATTZOO_API Cache MixtureOfBlocksSelfAttentionImpl::make_context_cache(const torch::Tensor&,
                                                                      const torch::Tensor&) const {
  TORCH_CHECK_VALUE(false, kName, ": a context has no meaning: queries choose blocks of the past");
}

ATTZOO_API torch::Tensor MixtureOfBlocksSelfAttentionImpl::choose(
    const Heads& heads, const AttentionInputs& inputs, const core::TokenBlocks& blocks) const {
  const int64_t B = heads.q.size(0), H = heads.q.size(1), L = heads.q.size(2), n = blocks.count(),
                most = std::min(options.top_k, n) - 1;
  if (most <= 0) return torch::empty({B, H, L, 0}, blocks.of_keys().options());
  const torch::NoGradGuard no_grad;
  auto q = heads.q.detach();
  q = q.to(core::compute_dtype(q));
  torch::Tensor means, empty;  // [B, H, n, D]; bool [B, 1, 1, n]: blocks of padding alone
  if (heads.past && heads.past->offset > 0) {
    auto& cache = static_cast<core::BlockSumCache&>(inputs.cache.state());
    means = cache.sums(blocks, heads.k.detach()) / static_cast<double>(blocks.size());
  } else if (const auto k = core::dequantized(heads.k.detach(), heads.q.scalar_type());
             inputs.key_padding_mask.defined()) {
    const auto real = inputs.key_padding_mask.unsqueeze(1).unsqueeze(-1);
    const auto count = core::sum_blocks(blocks, real.to(k.scalar_type()));
    empty = (count == 0).squeeze(-1).unsqueeze(2);
    means = core::sum_blocks(blocks, torch::where(real, k, torch::zeros({}, k.options()))) /
            count.clamp_min(1);
  } else {
    means = core::sum_blocks(blocks, k) / static_cast<double>(blocks.size());
  }
  const auto of = blocks.of_queries(), first = blocks.first_of_sequence().gather(1, of),
             number = torch::arange(n, of.options());
  const auto past = [&](int64_t begin, int64_t end) {  // [B or 1, 1, rows, n]
    const auto rows = [&](const torch::Tensor& t) {
      return t.slice(1, begin, end).unsqueeze(1).unsqueeze(-1);
    };
    return torch::logical_and(number >= rows(first), number < rows(of));
  };
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const auto chosen = torch::empty({B, H, L, most}, of.options());
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 20) / (B * H * n));
  for (int64_t begin = 0; begin < L; begin += rows) {
    const int64_t end = std::min(L, begin + rows);
    auto gate = torch::matmul(q.slice(2, begin, end), means.transpose(2, 3));
    gate = gate.masked_fill(past(begin, end).logical_not(), kNever);
    if (empty.defined()) gate = gate.masked_fill(empty, kNever);
    const auto [value, block] = gate.topk(most, -1);
    chosen.slice(2, begin, end).copy_(block.masked_fill(value == kNever, -1));
  }
  return chosen;
}

ATTZOO_API std::pair<torch::Tensor, torch::Tensor> MixtureOfBlocksSelfAttentionImpl::attend_sorted(
    const Heads& heads, const core::MaskAndBias& asked, const core::AnyMask& real,
    const core::TokenBlocks& blocks, const torch::Tensor& chosen) const {
  const auto& q = heads.q;
  const int64_t B = q.size(0), H = q.size(1), L = q.size(2), S = heads.k.size(2),
                n = chosen.size(3);
  const auto code = chosen.masked_fill(chosen < 0, blocks.count()).view({B, H, L * n});
  const auto [sorted, order] = torch::sort(code, /*stable=*/std::optional<bool>(true), 2, false);
  const auto rank = torch::empty_like(order).scatter_(
      2, order, torch::arange(L * n, order.options()).expand({B, H, L * n}));
  const auto query = torch::div(order, n, "floor");
  const auto [begin, end] = blocks.extents();
  const auto of_block = [&, sorted = sorted](const torch::Tensor& t) {
    return t.unsqueeze(1).expand({B, H, t.size(1)}).gather(2, sorted).to(torch::kInt32);
  };
  const core::BandMask band{of_block(begin), of_block(end)};
  const core::PairNumbers numbers{
      {B, H, L, S}, query + (S - L), torch::arange(S, query.options()).view({1, 1, S})};
  const auto rows_of = [](const torch::Tensor& t, const torch::Tensor& row) {
    return t.gather(2, row.unsqueeze(-1).expand({-1, -1, -1, t.size(3)}));
  };
  const auto each =
      core::attention(rows_of(q, query), heads.k, heads.v, band && real && asked.mask.at(numbers),
                      asked.bias.at(numbers), attention_options(), /*private_qk=*/true);
  return {rows_of(each.output, rank).view({B, H, L, n, each.output.size(3)}),
          each.lse.gather(2, rank).view({B, H, L, n})};
}

ATTZOO_API AttentionResult MixtureOfBlocksSelfAttentionImpl::attend_blocks(
    const Heads& all, const AttentionInputs& inputs) const {
  auto heads = all;
  const core::TokenBlocks blocks(heads, options.block_size);
  if (inputs.cache.defined()) {
    const auto size = static_cast<core::BlockSumCache&>(inputs.cache.state()).block_size();
    TORCH_CHECK_VALUE(size == options.block_size, kName, ": the cache was made for blocks of ",
                      size, ", now block_size is ", options.block_size, "; make another cache");
  }
  const auto chosen = choose(heads, inputs, blocks);
  heads.packing.run = torch::Tensor();  // blocks keep documents apart
  const int64_t L = heads.q.size(2), S = heads.k.size(2), n = chosen.size(3);
  // Whom each query chose, and its own block.
  const auto with_own = [blocks, chosen](int64_t none) {
    const auto own = blocks.of_queries().unsqueeze(1).unsqueeze(-1).expand(
        {chosen.size(0), chosen.size(1), chosen.size(2), 1});
    return torch::cat({chosen.masked_fill(chosen < 0, none), own}, 3);
  };
  const auto any = [blocks, chosen, with_own, L] {
    const auto numbers = with_own(blocks.count());
    return blocks.mask_by_query(
        torch::zeros({chosen.size(0), chosen.size(1), L, blocks.count() + 1},
                     numbers.options().dtype(torch::kBool))
            .scatter_(3, numbers, true)
            .slice(3, 0, blocks.count()));
  };
  constexpr int64_t kFew = 64;  // queries of a tile: they visit all that any of them chose
  if (L <= kFew || dropout() > 0 || inputs.score.sink().defined()) {
    return attend(heads, inputs, any());
  }
  const auto pairs = rule(all, inputs, mode(inputs), {}, {});
  if (heads.q.is_cpu() && blocks.plain() && pairs.bias.is_identity() &&
      pairs.mask.window_size({heads.q.size(0), heads.q.size(1), L, S}).known) {
    return conclude(
        heads, core::chosen_attention(heads.q, heads.k, heads.v,
                                      {.index = with_own(-1), .block_size = blocks.size()},
                                      pairs.mask, {}, attention_options(), /*private_qk=*/true));
  }
  const core::DocumentsMask own{{.ids = blocks.of_keys()}};
  auto result = attend(heads, inputs, own);
  if (n == 0) return result;
  auto asked = core::asked_pairs(inputs, all, {heads.q.size(0), heads.q.size(1), L, S});
  const auto real = heads.past ? heads.past->real : inputs.key_padding_mask;
  const auto real_keys = real.defined()
                             ? core::AnyMask(core::TensorMask{real.unsqueeze(1).unsqueeze(1)})
                             : core::AnyMask();
  const auto [outputs, lses] = attend_sorted(heads, asked, real_keys, blocks, chosen);
  std::vector<AttentionResult> parts{{result.output, {}, result.lse}};
  for (int64_t i = 0; i < n; ++i) parts.push_back({outputs.select(3, i), {}, lses.select(3, i)});
  const auto joint = core::join_softmaxes(parts);
  torch::Tensor output;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto part = parts[i].output * joint.shares[static_cast<int64_t>(i)].unsqueeze(-1);
    output = output.defined() ? output + part : part;
  }
  result.output = output.to(result.output.scalar_type());
  result.lse = joint.lse;

  core::Captured read;
  for (const auto& mask : {asked.mask, real_keys}) mask.tensors(read);
  asked.bias.tensors(read);
  result.weights = {
      {heads.q.size(0), heads.q.size(1), L, S},
      [=, q = heads.q, k = heads.k, scale = scale(), unchanged = core::Unchanged(read)](
          int64_t begin, int64_t end) {
        unchanged.check("LazyWeights");
        const core::Rule rule{any() && core::CausalMask() && asked.mask && real_keys, asked.bias,
                              scale};
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        return core::reference_weights(q, core::dequantized(k, q.scalar_type()), rule, begin, end)
            .weights.to(q.scalar_type());
      }};
  if (heads.past) result.weights = heads.past->guard(std::move(result.weights));
  return result;
}

}  // namespace attzoo
