#pragma once
/// \file
/// Streaming self-attention: the first tokens of a text, its attention sinks, and a window.
///
/// Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023, arXiv:2309.17453.
/// With s = num_sinks and w = window_size:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j with j < s, or |i - j| < w
/// ```
/// so a causal token sees s + w tokens at most, itself among them, and a cache keeps no more,
/// however long the stream. Sinks are the first tokens of each document, and of what follows
/// padding in a cache.
///
/// With `rope`, positions are those in the cache, as in the paper (`cache_positions`): a query that
/// is farther than s + w tokens into the text sees the sinks at the distances of a text of just so
/// many. Without, all positions are those in the text.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L (num_sinks + window_size) d_model) time, O(L d_model) memory.

#include <attzoo/functional/rope.hpp>
#include <attzoo/module/self_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <memory>

namespace attzoo {

/// Options of StreamingSelfAttention.
struct StreamingSelfAttentionOptions {
  int64_t d_model = 0;          ///< features of the output; > 0
  int64_t num_heads = 0;        ///< divides d_model unless there is a head_dim
  int64_t num_sinks = 4;        ///< first tokens that all others see; >= 0
  int64_t window_size = 1020;   ///< tokens that one sees on a side, itself included; > 0
  bool cache_positions = true;  ///< positions for rope are those in the cache, not in the text
  std::optional<int64_t> num_kv_heads = std::nullopt;  ///< divides num_heads; default num_heads
  std::optional<int64_t> input_dim = std::nullopt;     ///< features of x; default d_model
  double dropout = 0.0;                                ///< of the weights, while training
  bool bias = false;                                   ///< of the four projections
  double temperature = 1.0;                            ///< divides the scores; > 0
  Rope rope = false;                                   ///< rotary positions; d_head must be even
  bool causal = false;                                 ///< nobody attends to later tokens
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
};

/// The module; StreamingSelfAttention holds it.
class StreamingSelfAttentionImpl
    : public SelfAttention<StreamingSelfAttentionImpl, StreamingSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "StreamingSelfAttention";

  /// With the default of every other option.
  StreamingSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : StreamingSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit StreamingSelfAttentionImpl(const StreamingSelfAttentionOptions& o)
      : SelfAttention(o), turn_(core::plan_rope(o.rope, d_head(), kName)) {
    if (turn_) turn_->frequencies.attention_factor = 1;
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L,
  /// the context's length, or what a cache has. Throws what project() does, and c10::ValueError for
  /// `positions` where they are those in the cache.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// A cache of the sinks and the window, without end; see MakesCache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override;

 protected:
  void check_own_options() const override {
    TORCH_CHECK_VALUE(options.num_sinks >= 0 && options.num_sinks <= int64_t{1} << 24, kName,
                      ": num_sinks must be >= 0 and at most 2^24, got ", options.num_sinks);
    check_positive("window_size", options.window_size);
  }
  Keeps keeps() const override {
    return {.reach = options.window_size - 1, .pins = options.num_sinks};
  }

 private:
  /// Where queries and keys stand in their sequences, int64 [1 or B, L] and [1 or B, S].
  struct Places {
    torch::Tensor q, k;
  };
  Places places_of(const Heads& heads) const;
  /// Makes the queries see `of_sinks`, bool [1 or B, S], as a text of num_sinks + window_size
  /// tokens would: with as many features again, of which keys have the first or, sinks, the second
  /// half.
  void turn_to_sinks(Heads& heads, const Places& places, const torch::Tensor& of_sinks) const;

  std::optional<core::RopePlan> turn_;  // without a factor
};

/// Example: `StreamingSelfAttention attn({.d_model = 256, .num_heads = 8, .window_size = 252,
/// .rope = true, .causal = true});`
using StreamingSelfAttention = Holder<StreamingSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(StreamingSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>

namespace attzoo {

ATTZOO_API Cache StreamingSelfAttentionImpl::make_cache(int64_t batch,
                                                        std::optional<int64_t> capacity,
                                                        const CacheOptions& how) const {
  const auto head = new_cache_head(batch, capacity, how, keeps().forgets());
  const core::KvRows rows{kv_heads(), d_head(), d_head()};
  return Cache(std::make_shared<core::KvCache>(head, rows, keeps(), /*globals=*/true));
}

ATTZOO_API StreamingSelfAttentionImpl::Places StreamingSelfAttentionImpl::places_of(
    const Heads& heads) const {
  const int64_t L = heads.q.size(2), S = heads.k.size(2);
  if (heads.packing.defined()) return {heads.packing.position, heads.packing.position};
  if (heads.past) {
    const auto k = heads.past->places();
    return {k.slice(1, S - L), k};
  }
  const auto k = torch::arange(std::min<int64_t>(0, S - L), S,
                               torch::dtype(torch::kInt64).device(heads.q.device()))
                     .unsqueeze(0);
  return {k.slice(1, k.size(1) - L), k.slice(1, k.size(1) - S)};
}

ATTZOO_API void StreamingSelfAttentionImpl::turn_to_sinks(Heads& heads, const Places& places,
                                                          const torch::Tensor& of_sinks) const {
  // Beyond the numbers of a cache, a query's sinks do not move away.
  const int64_t last = options.num_sinks - 1 + std::min(options.window_size, int64_t{1} << 40);
  const auto beyond = (places.q - last).clamp_min(0);
  if (beyond.numel() == 0 || !beyond.any().item<bool>()) return;
  const auto by = core::rotation(turn_->frequencies, turn_->pairs, heads.q.size(2), 0,
                                 beyond.neg().unsqueeze(1), heads.q);
  const auto is_sink = of_sinks.unsqueeze(1).unsqueeze(3);  // [1 or B, 1, S, 1]
  for (auto* t : {&heads.k, &heads.v}) *t = core::dequantized(*t, heads.q.scalar_type());
  heads.q = torch::cat({heads.q, core::rotate(heads.q, by)}, 3);
  heads.k = torch::cat(
      {heads.k.masked_fill(is_sink, 0), heads.k.masked_fill(is_sink.logical_not(), 0)}, 3);
}

ATTZOO_API AttentionResult StreamingSelfAttentionImpl::forward(const torch::Tensor& x,
                                                               const AttentionInputs& inputs) {
  check_options();
  const bool turns = turn_ && options.cache_positions;
  TORCH_CHECK_VALUE(
      !turns || !inputs.positions.defined(), kName,
      ": with cache_positions, positions have no meaning: they are counted in the cache");
  auto places = core::check_call(callee(), w_q->weight, x, inputs, mode(inputs));
  auto* cache = places.past ? static_cast<core::KvCache*>(&inputs.cache.state()) : nullptr;
  TORCH_CHECK_VALUE(!cache || cache->keeps() == keeps(), kName,
                    ": window_size was changed since the cache was made; make another cache");
  if (auto& past = places.past) {
    auto place = places.packing.position;
    if (place.defined()) {  // the cache goes on with the last document alone
      const auto& run = places.packing.run;
      place = place.masked_fill(run != run.slice(1, run.size(1) - 1), options.num_sinks);
    } else {
      place = past->offset +
              torch::arange(x.size(1), torch::dtype(torch::kInt64).device(x.device())).unsqueeze(0);
      if (past->padding.defined()) place = place - past->padding.unsqueeze(1);
    }
    past->global = (place >= 0).logical_and(place < options.num_sinks);
  }
  auto heads = project_with(w_q, w_k, w_v, x, inputs, places);
  if (cache) cache->append(heads);
  const auto at = places_of(heads);
  auto first = global_tokens((at.k >= 0).logical_and(at.k < options.num_sinks));
  first.queries = false;
  if (turns) turn_to_sinks(heads, at, first.is_global);
  const int64_t side = options.window_size - 1;
  core::AnyMask seen = window(side, side);
  if (heads.packing.defined() || heads.past) {
    seen = seen || first;
  } else {  // the first keys, also of a context with fewer tokens than x
    seen = seen || prefix(options.num_sinks);
  }
  return finish(attend(heads, inputs, seen));
}

}  // namespace attzoo

#endif
