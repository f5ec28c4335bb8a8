#pragma once
/// \file
/// One call of a mechanism: what is asked of its inputs, and where its tokens stand.

#include <attzoo/config.hpp>
#include <attzoo/module/heads.hpp>
#include <attzoo/module/inputs.hpp>

#include <optional>

namespace torch::nn {
class Module;
}

namespace attzoo::core {

/// What a mechanism is to its callers, whatever it computes.
struct Callee {
  const char* name;                    // in errors
  int64_t input_dim;                   // features of x
  std::optional<int64_t> context_dim;  // of a context, where they may be others
  int64_t heads;                       // of a mask
  TakenInputs takes;
  Identity identity = {};  // of which caches are
};

/// What a module says of one call.
struct CallMode {
  bool causal;
  double dropout;                   // 0 unless it is training
  const torch::nn::Module& module;  // itself
};

/// Throws unless a context fits, as check_tokens().
ATTZOO_API void check_context(const Callee& callee, const torch::Tensor& context,
                              const torch::Tensor& weight);
/// Throws c10::ValueError where keys and values cannot be made of x, which has other features than
/// a context.
ATTZOO_API void check_reads_x(const Callee& callee);

/// Checks all inputs of a call, and says where its tokens stand. x and a context must fit a layer
/// with this weight. Throws c10::ValueError for a wrong shape, size or device and for inputs that
/// have no meaning here, c10::TypeError for a wrong dtype or layout.
ATTZOO_API CallPlaces check_call(const Callee& callee, const torch::Tensor& weight,
                                 const torch::Tensor& x, const AttentionInputs& inputs,
                                 const CallMode& mode);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/functional/rope.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/token_cache.hpp>

#include <string>

namespace attzoo::core {

ATTZOO_API void check_context(const Callee& callee, const torch::Tensor& context,
                              const torch::Tensor& weight) {
  const auto& own = callee.context_dim;
  check_tokens(context, callee.name, "context", own.value_or(callee.input_dim), weight,
               own ? "context_dim" : "input_dim");
}

ATTZOO_API void check_reads_x(const Callee& callee) {
  const int64_t own = callee.context_dim.value_or(callee.input_dim);
  TORCH_CHECK_VALUE(own == callee.input_dim, callee.name,
                    ": keys and values are those of a context, of context_dim=", own,
                    ", not of x, of input_dim=", callee.input_dim,
                    "; give each call a context, or the cache of make_context_cache");
}

inline void check_positions(const Callee& callee, const torch::Tensor& x,
                            const AttentionInputs& inputs) {
  const auto& t = inputs.positions;
  TORCH_CHECK_VALUE(callee.takes.positions, callee.name,
                    ": positions have no meaning without rope");
  check_dense(t, callee.name, "positions");
  TORCH_CHECK_TYPE(torch::isIntegralType(t.scalar_type(), /*includeBool=*/false), callee.name,
                   ": positions must be integers, got ", t.scalar_type());
  const bool of_rows = t.dim() == 2 && (t.size(0) == 1 || t.size(0) == x.size(0));
  TORCH_CHECK_VALUE((t.dim() == 1 || of_rows) && t.size(-1) == x.size(1), callee.name,
                    ": positions must have shape [L], [1, L] or [B, L] with B=", x.size(0),
                    " L=", x.size(1), ", got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == x.device(), callee.name, ": positions must be on ", x.device(),
                    ", got ", t.device());
  TORCH_CHECK_VALUE(inputs.position_offset == 0 && !inputs.documents.defined() &&
                        (!inputs.cache.defined() || context_cache(inputs)),
                    callee.name,
                    ": positions take the place of a position_offset, documents and a cache, which "
                    "count positions themselves; give one of them");
}

inline void check_global(const Callee& callee, const torch::Tensor& x,
                         const AttentionInputs& inputs) {
  const auto& g = inputs.global_attention;
  TORCH_CHECK_VALUE(callee.takes.global_attention, callee.name,
                    ": global_attention has no meaning here; LongformerSelfAttention takes it");
  check_dense(g, callee.name, "global_attention");
  TORCH_CHECK_VALUE(!crosses(inputs), callee.name,
                    ": global_attention marks tokens of x and has no meaning with a context");
  TORCH_CHECK_VALUE(
      (g.dim() == 1 || (g.dim() == 2 && g.size(0) == x.size(0))) && g.size(-1) == x.size(1),
      callee.name, ": global_attention must have shape [L] or [B, L] with B=", x.size(0),
      " L=", x.size(1), ", got ", g.sizes());
  TORCH_CHECK_VALUE(g.device() == x.device(), callee.name, ": global_attention must be on ",
                    x.device(), ", got ", g.device());
}

inline void check_cached_call(const Callee& callee, const torch::Tensor& weight,
                              const torch::Tensor& x, const AttentionInputs& inputs,
                              const CallMode& mode) {
  check_cache(callee.name, callee.identity, inputs.cache, x);
  const auto dtype = inputs.cache.state().head().module_dtype;
  TORCH_CHECK_VALUE(weight.scalar_type() == dtype, callee.name,
                    ": the cache was made when the module's dtype was ", dtype, ", now it is ",
                    weight.scalar_type());
  TORCH_CHECK_VALUE(mode.dropout == 0, callee.name,
                    ": with a cache nothing is dropped at random; call eval(), or set dropout 0");
  check_no_gradients(callee.name, mode.module, x);
  if (context_cache(inputs)) {
    TORCH_CHECK_VALUE(!inputs.key_padding_mask.defined(), callee.name,
                      ": a context's cache has its key_padding_mask; give it to "
                      "make_context_cache");
    return;
  }
  TORCH_CHECK_VALUE(mode.causal, callee.name, ": a cache is for causal attention; set causal");
  TORCH_CHECK_VALUE(inputs.position_offset == 0, callee.name,
                    ": a cache counts positions itself; position_offset must be 0, got ",
                    inputs.position_offset);
}

/// Before the cache takes the tokens; attention() checks them, too.
inline void check_modifiers(const Callee& callee, const AttentionInputs& inputs, const Shape& n,
                            const torch::Device& device) {
  TORCH_CHECK_VALUE(
      context_cache(inputs) || (!inputs.pattern.is_raw() && !inputs.score.is_raw()), callee.name,
      ": with a cache, pattern and score count queries among the keys, mask_mod(f, aligned), or in "
      "their documents, mask_mod(f, in_document); score_mod likewise");
  inputs.pattern.check(n, device);
  inputs.score.check(n, device);
}

ATTZOO_API CallPlaces check_call(const Callee& callee, const torch::Tensor& weight,
                                 const torch::Tensor& x, const AttentionInputs& inputs,
                                 const CallMode& mode) {
  const auto& context = inputs.context;
  check_tokens(x, callee.name, "x", callee.input_dim, weight);
  TORCH_CHECK_VALUE(!inputs.cache.defined() || !context.defined(), callee.name,
                    ": a cache has no meaning with a context");
  TORCH_CHECK_VALUE(callee.takes.context || !crosses(inputs), callee.name,
                    ": a context has no meaning here: keys and values are those of x");
  if (!crosses(inputs)) check_reads_x(callee);
  TORCH_CHECK_VALUE(callee.takes.causal || !mode.causal, callee.name,
                    ": causal has no meaning: every token sees sums over all tokens, later ones "
                    "too");
  if (inputs.cache.defined()) check_cached_call(callee, weight, x, inputs, mode);
  TORCH_CHECK_VALUE(!inputs.context_padding_mask.defined(), callee.name,
                    ": context_padding_mask is for modules that attend to x, too, as DecoderBlock; "
                    "here a context's real tokens are its key_padding_mask");
  if (inputs.global_attention.defined()) check_global(callee, x, inputs);
  if (context.defined()) {
    check_context(callee, context, weight);
    TORCH_CHECK_VALUE(context.size(0) == x.size(0), callee.name,
                      ": context must have x's batch size ", x.size(0), ", got ", context.sizes());
  }
  const auto* kept = context_cache(inputs);
  const Shape n{x.size(0), callee.heads, x.size(1),
                context.defined() ? context.size(1)
                : kept            ? kept->length()
                                  : x.size(1)};
  auto all = n;  // keys
  if (inputs.cache.defined() && !kept) all.S += inputs.cache.length();
  if (inputs.mask.defined()) check_mask(inputs.mask, all, x.device(), callee.name);
  if (inputs.cache.defined()) check_modifiers(callee, inputs, all, x.device());
  if (inputs.key_padding_mask.defined()) {
    check_key_padding(inputs.key_padding_mask, n, x.device(), callee.name);
  }
  if (inputs.documents.defined()) {
    TORCH_CHECK_VALUE(!crosses(inputs), callee.name,
                      ": documents pack the tokens of x and have no meaning with a context");
    const auto who = std::string(callee.name) + ": documents";
    check_documents(inputs.documents, who);
    check_documents_fit(inputs.documents, n, x.device(), who);
  }
  if (callee.takes.positions) check_position_offset(inputs.position_offset, callee.name);
  TORCH_CHECK_VALUE(callee.takes.positions || inputs.position_offset == 0, callee.name,
                    ": position_offset has no meaning without rope, got ", inputs.position_offset);
  if (inputs.positions.defined()) check_positions(callee, x, inputs);
  CallPlaces places;
  if (inputs.documents.defined()) {
    places.packing = pack(inputs.documents, std::string(callee.name) + ": documents");
  }
  if (inputs.cache.defined() && !kept) {
    const auto& cache = static_cast<const TokenCache&>(inputs.cache.state());
    places.past = cache.next(callee.name, x.size(1), inputs, places.packing);
  }
  return places;
}

}  // namespace attzoo::core

#endif
