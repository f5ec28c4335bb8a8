#pragma once
// Definitions of lsh.hpp.

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <attzoo/core/attention/reference.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/row_lists.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/lsh.hpp>
#include <attzoo/module/blend.hpp>

#include <cmath>
#include <set>

namespace attzoo {

ATTZOO_API void LSHSelfAttentionImpl::set_projections(std::vector<torch::Tensor> projections) {
  TORCH_CHECK_VALUE(
      projections.empty() || static_cast<int64_t>(projections.size()) == options.num_hashes, kName,
      ": set_projections expects num_hashes=", options.num_hashes, " projections, got ",
      projections.size());
  for (const auto& p : projections) {
    core::check_floating(p, kName, "a projection");
    TORCH_CHECK_VALUE(p.device().is_cpu() || p.device() == w_q->weight.device(), kName,
                      ": a projection must be on the CPU or on ", w_q->weight.device(), ", got ",
                      p.device());
    TORCH_CHECK_VALUE(p.dim() == 3 && p.size(0) == options.num_heads && p.size(1) == d_head() &&
                          p.size(2) >= factors() && p.size(2) % factors() == 0,
                      kName, ": a projection must have shape [num_heads=", options.num_heads,
                      ", d_head=", d_head(), ", columns], got ", p.sizes());
  }
  projections_ = std::move(projections);
}

ATTZOO_API void LSHSelfAttentionImpl::set_generator(const at::Generator& generator) {
  TORCH_CHECK_VALUE(generator.defined() && generator.device().is_cpu(), kName,
                    ": set_generator expects a CPU generator, got ",
                    generator.defined() ? c10::str(generator.device()) : "an undefined one");
  generator_ = generator;
}

ATTZOO_API int64_t LSHSelfAttentionImpl::columns(int64_t round, int64_t n) const {
  if (!projections_.empty()) return projections_[static_cast<size_t>(round)].size(2);
  const int64_t count = options.num_buckets.value_or(1 + (n - 1) / options.bucket_size);
  if (options.exact_buckets) return count;
  return 2 * static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
}

ATTZOO_API torch::Tensor LSHSelfAttentionImpl::projection(int64_t round, int64_t columns,
                                                          bool drawn) const {
  if (!projections_.empty()) return projections_[static_cast<size_t>(round)];
  const auto draw = [&](const std::optional<at::Generator>& generator) {
    return torch::randn({options.num_heads, d_head(), columns}, generator, torch::kFloat32);
  };
  if (drawn) return draw(generator_);
  const auto seed = options.seed + static_cast<uint64_t>(round);
  return draw(at::make_generator<at::CPUGeneratorImpl>(seed));
}

ATTZOO_API std::pair<torch::Tensor, torch::Tensor> LSHSelfAttentionImpl::hash(const Heads& heads,
                                                                              bool crosses,
                                                                              int64_t round) const {
  if (heads.packing.defined()) {
    const auto id = hash_documents(heads.q, heads.packing, round);
    return {id, id};
  }
  const int64_t n = heads.past ? heads.past->capacity : heads.k.size(2);
  const auto p = projection(round, columns(round, n));
  const auto id = core::bucket_ids(heads.q, p, factors());
  // Without a context, queries and keys are the same tokens.
  return {id, crosses ? core::bucket_ids(heads.k, p, factors()) : id};
}

ATTZOO_API torch::Tensor LSHSelfAttentionImpl::hash_documents(const torch::Tensor& q,
                                                              const core::Packing& packing,
                                                              int64_t round) const {
  std::vector<int64_t> widths, first;  // of each document: columns, and its first bucket's number
  int64_t numbered = 0;
  for (const auto length : packing.lengths) {
    widths.push_back(columns(round, length));
    first.push_back(numbered);
    numbered += buckets(widths.back());
  }
  const auto width = packing.spread(widths).unsqueeze(1);  // [R, 1, S]
  auto id = torch::zeros({1, 1, 1}, width.options());
  for (const auto w : std::set<int64_t>(widths.begin(), widths.end())) {
    id = torch::where(width == w, core::bucket_ids(q, projection(round, w), factors()), id);
  }
  return id + packing.spread(first).unsqueeze(1);
}

namespace core {

/// Sizes of all pairs of a call; with a cache, of all its tokens.
inline Shape pairs_of(const Heads& heads) {
  const auto &q = heads.q, &k = heads.k;
  return {q.size(0), q.size(1), q.size(2), k.size(2)};
}

/// The weights of one round in the tokens' own order, O(rows * S).
inline LazyWeights bucket_weights(const Heads& heads, const MaskAndBias& asked,
                                  const Buckets& buckets, const AttentionOptions& how) {
  const auto n = pairs_of(heads);
  Captured read;
  asked.mask.tensors(read);
  asked.bias.tensors(read);
  return {{n.B, n.H, n.L, n.S},
          [=, q = heads.q, k = heads.k, unchanged = Unchanged(read)](int64_t begin, int64_t end) {
            unchanged.check("LazyWeights");
            const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
            Grid grid(n, begin, end, q.device());
            const auto rows = [&](const torch::Tensor& t) {
              return t.slice(2, begin, end).unsqueeze(-1);
            };
            const auto of_query = [&](const torch::Tensor& band) {
              return rows(band.gather(2, buckets.q.rank));
            };
            const auto keys = buckets.k.rank.unsqueeze(2);  // [B, H, 1, S]
            auto allowed = torch::logical_and(keys >= of_query(buckets.band.begin),
                                              keys < of_query(buckets.band.end));
            const auto dtype = compute_dtype(q);
            allowed = torch::logical_and(allowed, asked.mask.evaluate(grid));
            auto scores = *how.scale * pair_products(q.slice(2, begin, end).to(dtype),
                                                     dequantized(k, dtype).to(dtype), allowed);
            scores = asked.bias.evaluate(scores, grid);
            auto weights = masked_softmax(scores, allowed).weights;
            if (how.dropout > 0) {  // entries are numbered by their ranks
              grid.q = rows(buckets.q.rank);
              grid.kv = keys;
              weights = weights * dropout_factor({how.dropout, *how.seed}, grid, dtype);
            }
            return weights.to(q.scalar_type());
          }};
}

}  // namespace core

ATTZOO_API AttentionResult LSHSelfAttentionImpl::attend_round(const Heads& heads,
                                                              const AttentionInputs& inputs,
                                                              int64_t round) const {
  const auto &q = heads.q, &k = heads.k, &v = heads.v;
  auto [id_q, id_k] = hash(heads, core::crosses(inputs), round);
  if (const auto& real = core::key_padding_of(inputs); real.defined()) {
    id_k = id_k.masked_fill(real.logical_not().unsqueeze(1), -1);
  }
  const int64_t reach = options.exact_buckets ? k.size(2) : options.bucket_size;
  const core::Buckets buckets(id_q, id_k, is_causal(inputs), reach);
  const auto n = core::pairs_of(heads);
  const auto asked = core::asked_pairs(inputs, heads, n);
  const core::PairNumbers numbers{n, buckets.q.order + (n.S - n.L), buckets.k.order};
  auto how = attention_options();
  if (how.dropout > 0) how.seed = core::random_seed();
  const auto sorted =
      core::attention(core::permute_rows(q, buckets.q), core::permute_rows(k, buckets.k),
                      core::permute_rows(v, buckets.k), buckets.band && asked.mask.at(numbers),
                      asked.bias.at(numbers), how,
                      /*private_qk=*/true);
  return {core::permute_rows(sorted.output, buckets.q.inverse()),
          core::bucket_weights(heads, asked, buckets, how), sorted.lse.gather(2, buckets.q.rank)};
}

ATTZOO_API AttentionResult
LSHSelfAttentionImpl::attend_rounds(const Heads& heads, const AttentionInputs& inputs) const {
  std::vector<AttentionResult> rounds;
  for (int64_t r = 0; r < options.num_hashes; ++r) {
    rounds.push_back(attend_round(heads, inputs, r));
  }
  return join_rounds(rounds);
}

ATTZOO_API Cache LSHSelfAttentionImpl::make_cache(int64_t batch, std::optional<int64_t> capacity,
                                                  const CacheOptions& how) const {
  const auto head = new_cache_head(batch, capacity, how, /*unending=*/false);
  std::vector<torch::Tensor> projections;
  int64_t most = 0;
  for (int64_t r = 0; r < options.num_hashes; ++r) {
    const auto p = projection(r, columns(r, head.capacity), /*drawn=*/false);
    projections.push_back(p.to(torch::dtype(head.dtype).device(head.device)));
    most = std::max(most, buckets(p.size(2)));
  }
  return Cache(std::make_shared<core::BucketCache>(head, options.num_heads, d_head(),
                                                   std::move(projections), most));
}

ATTZOO_API AttentionResult LSHSelfAttentionImpl::attend_tokens(const Heads& heads,
                                                               const core::MaskAndBias& asked,
                                                               const torch::Tensor& tokens) const {
  const auto& q = heads.q;
  const auto n = core::pairs_of(heads);
  const int64_t B = n.B, H = n.H, L = n.L, S = n.S, M = tokens.size(3);
  // Every query is a head of its own, with keys of its own.
  const auto index = tokens.clamp_min(0);
  const auto rows = [&](const torch::Tensor& t) {
    return core::take_rows(t, index).view({B, H * L, M, t.size(3)});
  };
  const auto place = torch::arange(S - L, S, index.options()).repeat({H});
  const core::PairNumbers numbers{n, place.view({1, H * L, 1}), index.view({B, H * L, M}), L};
  const core::TensorMask found{(tokens >= 0).view({B, H * L, 1, M})};
  const auto each =
      core::attention(q.reshape({B, H * L, 1, q.size(3)}), rows(heads.k), rows(heads.v),
                      found && asked.mask.at(numbers), asked.bias.at(numbers), attention_options(),
                      /*private_qk=*/true);
  LazyWeights weights({B, H, L, S}, [=](int64_t begin, int64_t end) {
    const auto of_tokens = each.weights.tensor().view({B, H, L, M}).slice(2, begin, end);
    return torch::zeros({B, H, end - begin, S}, of_tokens.options())
        .scatter_add(3, index.slice(2, begin, end), of_tokens);
  });
  return {each.output.view({B, H, L, each.output.size(3)}), std::move(weights),
          each.lse.view({B, H, L})};
}

ATTZOO_API AttentionResult
LSHSelfAttentionImpl::attend_cached(const Heads& heads, const AttentionInputs& inputs) const {
  auto& cache = static_cast<core::BucketCache&>(inputs.cache.state());
  const auto& past = *heads.past;
  const int64_t L = heads.q.size(2);
  std::vector<torch::Tensor> ids;
  for (const auto& p : cache.projections()) ids.push_back(core::bucket_ids(heads.q, p, factors()));
  auto bucket = torch::stack(ids);  // [rounds, B, H, L]
  if (past.padding.defined()) {
    const auto token = torch::arange(past.offset, past.offset + L, past.padding.options());
    const auto pads = token < past.padding.unsqueeze(1);
    bucket = bucket.masked_fill(pads.unsqueeze(1), -1);
  }
  const int64_t reach = options.exact_buckets ? heads.k.size(2) : 2 * options.bucket_size;
  AttentionResult result;
  if (past.offset == 0) {  // nothing before: as a whole pass
    cache.enter(0, bucket, 0);
    result = attend_rounds({heads.q, heads.k, heads.v, heads.packing, past}, inputs);
  } else {
    const auto tokens = cache.enter(past.offset, bucket, reach);
    const auto asked = core::asked_pairs(inputs, heads, core::pairs_of(heads));
    std::vector<AttentionResult> rounds;
    for (int64_t r = 0; r < options.num_hashes; ++r) {
      rounds.push_back(attend_tokens(heads, asked, tokens[r]));
    }
    result = join_rounds(rounds);
  }
  result.output = result.output.to(*past.dtype);
  result.weights = past.guard(result.weights);
  return result;
}

ATTZOO_API AttentionResult
LSHSelfAttentionImpl::join_rounds(const std::vector<AttentionResult>& rounds) const {
  if (rounds.size() == 1) return rounds[0];
  const auto joint = core::join_softmaxes(rounds);
  const auto shares = options.exact_buckets
                          ? torch::full_like(joint.shares, 1.0 / static_cast<double>(rounds.size()))
                          : joint.shares;
  return core::blend(rounds, shares, joint.lse);
}

}  // namespace attzoo
