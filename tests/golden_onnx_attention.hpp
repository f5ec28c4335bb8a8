#pragma once
/// \file
/// ONNX's Attention, FlexAttention and RotaryEmbedding by attention() and its modifiers.

#include <attzoo/core/layers/rotate.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <cmath>
#include <optional>
#include <string>

#include "golden_onnx_case.hpp"

namespace attzoo::testing {

/// [B, T, heads * D] to [B, heads, T, D], which it may be already.
inline torch::Tensor onnx_heads(const torch::Tensor& t, std::optional<int64_t> heads) {
  return t.dim() == 4 ? t : t.unflatten(2, {*heads, t.size(2) / *heads}).transpose(1, 2);
}

/// attn_mask to four dimensions and S keys: what it lacks at the end is hidden.
inline torch::Tensor onnx_mask(torch::Tensor mask, int64_t S) {
  while (mask.dim() < 4) mask = mask.unsqueeze(0);
  const auto sizes = {mask.size(0), mask.size(1), mask.size(2), S - mask.size(3)};
  const auto hidden = mask.scalar_type() == torch::kBool
                          ? torch::zeros(sizes, mask.options())
                          : torch::full(sizes, -INFINITY, mask.options());
  return torch::cat({mask, hidden}, 3);
}

/// What `mode` of qk_matmul_output asks for: 3 weights, else scores: 0 the products, 1 capped, 2
/// with the mask. Scores are log(weights) + lse.
inline torch::Tensor onnx_scores(const AttentionResult& r) {
  return r.weights.tensor().log() + r.lse.unsqueeze(-1);
}

inline OnnxResult onnx_attention(const OnnxInputs& in, Fields& f) {
  const auto query_heads = f.maybe_integer("q_num_heads"), heads = f.maybe_integer("kv_num_heads");
  const bool is_causal = f.number("is_causal", 0) != 0;
  const double cap = f.number("softcap", 0), scale = f.number("scale", 0);
  const auto left = f.maybe_integer("left_window_size").value_or(-1),
             right = f.maybe_integer("right_window_size").value_or(-1);
  const auto mode = f.maybe_integer("qk_matmul_output_mode").value_or(0);
  f.ignore({"softmax_precision"});  // at least float32 always

  const bool flat = in("Q").dim() == 3;
  const auto q = onnx_heads(in("Q"), query_heads);
  auto k = onnx_heads(in("K"), heads), v = onnx_heads(in("V"), heads);
  const auto past = in("past_key"), lengths = in("nonpad_kv_seqlen");
  if (past.defined()) {
    k = torch::cat({past, k}, 2);
    v = torch::cat({in("past_value"), v}, 2);
  }
  const int64_t B = q.size(0), L = q.size(2), S = k.size(2);

  // The place of a sequence's first query among its keys.
  auto first = torch::full({B}, past.defined() ? past.size(2) : 0, torch::kInt64);
  if (lengths.defined()) first = lengths - L;
  const auto at = table(first);
  AnyMask mask;
  if (is_causal) {
    mask = mask && mask_mod([=](auto b, auto, auto q, auto kv) { return kv <= q + at(b); });
  }
  if (left >= 0) {
    mask = mask && mask_mod([=](auto b, auto, auto q, auto kv) { return q + at(b) - kv <= left; });
  }
  if (right >= 0) {
    mask = mask && mask_mod([=](auto b, auto, auto q, auto kv) { return kv - q - at(b) <= right; });
  }
  if (lengths.defined()) {
    const auto length = table(lengths);
    mask = mask && mask_mod([=](auto b, auto, auto, auto kv) { return kv < length(b); });
  }
  AnyScore capped, score;
  if (cap > 0) capped = softcap(cap);
  score = capped;
  if (in("attn_mask").defined()) {
    const auto m = onnx_mask(in("attn_mask"), S);
    if (m.scalar_type() == torch::kBool) {
      mask = mask && mask_tensor(m);
    } else {
      score = score + bias_tensor(m);
    }
  }
  AttentionOptions options;
  if (scale != 0) options.scale = scale;
  const auto r = attention(q, k, v, mask, score, options);
  return {{{"Y", flat ? r.output.transpose(1, 2).flatten(2) : r.output},
           {"present_key", k},
           {"present_value", v},
           {"qk_matmul_output",
            mode == 3 ? r.weights.tensor()
            : mode == 2
                ? onnx_scores(r)
                : onnx_scores(attention(q, k, v, {}, mode == 1 ? capped : AnyScore(), options))}},
          S + q.size(3)};
}

inline OnnxResult onnx_flex_attention(const OnnxInputs& in, Fields& f) {
  const double scale = f.number("scale", 0);
  f.ignore({"softmax_precision"});
  if (f.find("prob_mod")) throw Skipped{"weights are not changed behind the softmax"};
  AnyMask mask;
  AnyScore score;
  if (const auto* graph = f.find("score_mod")) {
    Fields g(*graph, "score_mod");
    const std::string name = g.need("name").string();
    if (name == "score_mod_bias") {
      const double bias = g.number("bias", 0);
      score = score_mod([=](auto s, auto, auto, auto, auto) { return s + bias; });
    } else if (name == "score_mod_causal_mask") {
      mask = mask_mod([](auto, auto, auto q, auto kv) { return q >= kv; });
    } else if (name == "score_mod_soft_cap") {
      const double cap = g.number("cap", 0);
      score = score_mod([=](auto s, auto, auto, auto, auto) { return tanh(s / cap) * cap; });
    } else if (name == "score_mod_relative_positional") {
      score = score_mod([](auto s, auto, auto, auto q, auto kv) { return s + (q - kv); });
    } else {
      throw Skipped{"unknown graph " + name};
    }
  }
  AttentionOptions options;
  if (scale != 0) options.scale = scale;
  const auto r = attention(in("Q"), in("K"), in("V"), mask, score, options);
  return {{{"Y", r.output}}, in("K").size(2) + in("Q").size(3)};
}

/// By the caches of the case, which are no cosines and sines: apply_rope() computes its own.
inline OnnxResult onnx_rotary_embedding(const OnnxInputs& in, Fields& f) {
  const auto heads = f.maybe_integer("num_heads");
  const bool halves = f.number("interleaved", 0) == 0;
  const auto dimensions = f.maybe_integer("rotary_embedding_dim").value_or(0);
  const auto x = onnx_heads(in("X"), heads);                // [B, H, T, D]
  const auto of_tokens = [&](const torch::Tensor& cache) {  // [B, 1, T, pairs]
    const auto ids = in("position_ids");
    return (ids.defined() ? cache.index({ids}) : cache).unsqueeze(1);
  };
  const auto cos = of_tokens(in("cos_cache")), sin = of_tokens(in("sin_cache"));
  TORCH_CHECK_VALUE(dimensions == 0 || dimensions == 2 * cos.size(3), "rotary_embedding_dim");
  const auto y = core::rotate(x, {cos, sin, halves});
  return {{{"Y", in("X").dim() == 3 ? y.transpose(1, 2).flatten(2) : y}}, 2};
}

}  // namespace attzoo::testing
