#pragma once
/// \file
/// What a caller may hand to any mechanism beside x.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/modifier/any_score.hpp>
#include <attzoo/module/cache.hpp>

#include <optional>

namespace attzoo {

/// Per-call inputs, the same for every mechanism. Dimensions: B batch, H heads, L query length,
/// S key length. Example: `attn(x, {.key_padding_mask = real_tokens, .causal = true})`.
struct AttentionInputs {
  /// bool (true = attend) or floating (added to the scores, after scaling). Shape [L, S],
  /// [B, L, S] or [B, H, L, S]; a dimension of size 1 is broadcast. Differentiable if floating.
  torch::Tensor mask = {};
  /// bool [B, S], true = real token: no query attends to the others.
  torch::Tensor key_padding_mask = {};
  /// Overrides the module's own `causal` option. With S != L the last query is aligned with the
  /// last key: query i sees the keys j <= i + S - L.
  std::optional<bool> causal = std::nullopt;
  /// Keys and values are computed from this [B, S, context_dim] instead of from x (cross
  /// attention); context_dim is input_dim, unless the module has an option of this name.
  torch::Tensor context = {};
  /// Position of x's first token for RoPE, within +-2^52; 0 without. A context's positions always
  /// start at 0.
  int64_t position_offset = 0;
  /// Longformer only: [L] or [B, L] of any dtype, nonzero = a global token.
  torch::Tensor global_attention = {};
  /// Packed batches: x holds several documents one after another, and the result is that of each
  /// alone, at the cost of each alone: nothing attends across, positions, blocks, buckets and
  /// states begin anew. The tokens of a document lie together; no context. Padding is a document,
  /// too. `attn(x, {.documents = {.offsets = torch::tensor({0, 120, 512})}})`
  Documents documents = {};
  /// The tokens before, from the module's make_cache: x holds the next ones, which it appends, and
  /// the result is that of a causal pass over all of them in their rows. Or those of a context,
  /// from its make_context_cache, in the place of `context`. See Cache.
  Cache cache = {};
  /// Position of every token of x for RoPE, integers [L], [1, L] or [B, L], where they do not count
  /// from position_offset on: the `position_ids` of Hugging Face. Patterns go by places in x all
  /// the same. A context's positions start at 0. Not with documents or a cache, which count
  /// themselves.
  torch::Tensor positions = {};
  /// DecoderBlock only, which attends to x and to a context: bool [B, S], the context's real
  /// tokens. Elsewhere `key_padding_mask` says it.
  torch::Tensor context_padding_mask = {};
  /// Pairs that may attend, of those that the mechanism lets: `{.pattern = causal() && window(63,
  /// 0)}`, `{.pattern = mask_mod(f)}`. The same as its tensor in `mask`: with a cache, keys count
  /// from the cache's first token on, and a callable must say how it counts queries,
  /// mask_mod(f, aligned) or mask_mod(f, in_document), whose places are those in each of the
  /// documents. It costs what attention(q, k, v, pattern && the mechanism's own) does; where tokens
  /// are sorted (LSH), or a cache has forgotten some, callables run on tensors.
  core::AnyMask pattern = {};
  /// Changes scores after the mechanism's own modifier: `{.score = score_mod(f)}`; counts as
  /// pattern does. A floating `mask` comes behind it.
  core::AnyScore score = {};
};

/// Which of the inputs that have no meaning for every mechanism a module takes. The others it
/// refuses with c10::ValueError.
struct TakenInputs {
  bool mask = true;               ///< mask, pattern and score, which are about pairs
  bool global_attention = false;  ///< tokens that see and are seen by all
  bool positions = false;         ///< positions of the tokens; whoever has RoPE
  bool context = true;            ///< a context: cross attention
  bool later = true;              ///< causal = false: tokens that see later ones
  bool causal = true;             ///< causal = true, and a cache: tokens that do not
};

namespace core {

/// Whether pairs are forbidden or their scores changed, by mask, pattern or score.
inline bool says_pairs(const AttentionInputs& in) {
  return in.mask.defined() || !in.pattern.is_full() || !in.score.is_identity();
}

}  // namespace core
}  // namespace attzoo
