#pragma once
/// \file
/// Caches of single mechanisms: where tokens stand, and their keys and values.

#include <attzoo/core/quantized_rows.hpp>
#include <attzoo/module/cache.hpp>
#include <attzoo/module/heads.hpp>
#include <attzoo/module/inputs.hpp>
#include <attzoo/module/row_buffer.hpp>

#include <memory>
#include <utility>

namespace attzoo::core {

/// What the caches of all mechanisms know: the padding before each sequence's first token.
class TokenCache : public CacheState {
 public:
  explicit TokenCache(const CacheHead& head) : CacheState(head) {}

  /// Where the next L tokens stand. Throws c10::ValueError for padding behind a real token, for
  /// documents behind any token, and for global tokens behind forgotten ones.
  ATTZOO_API Past next(const char* who, int64_t L, const AttentionInputs& inputs,
                       const Packing& packing) const;
  /// Whether nothing was forgotten.
  virtual bool whole() const { return true; }

  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;

 protected:
  TokenCache(const TokenCache& other) : CacheState(other), padding_(other.padding_) {}
  void count_change() { ++*changes_; }

  torch::Tensor padding_;  // int64 [B], tokens before the first real one; undefined: none

 private:
  std::shared_ptr<int64_t> changes_ = std::make_shared<int64_t>(0);
};

/// Keys and values, all or those that are still in reach; with `globals`, of global tokens too.
/// Where values are made of the keys, keys alone: then heads.v is neither read nor given. With 8
/// bits heads.k and heads.v are quantize_rows() from then on.
class KvCache : public TokenCache {
 public:
  ATTZOO_API KvCache(const CacheHead& head, const KvRows& rows, const Keeps& keeps, bool globals);

  int64_t length() const override { return rows_.length(); }
  int64_t bytes() const override { return rows_.bytes(); }
  int64_t earliest() const override { return rows_.earliest(); }
  bool can_take_back(int64_t L) const override {
    return rows_.keeps_all() || TokenCache::can_take_back(L);
  }
  bool whole() const override { return rows_.whole(); }
  /// What the mechanism asked it to keep.
  const Keeps& keeps() const { return keeps_; }
  /// Takes the keys and values of the next tokens, which stand where heads.past says, and gives
  /// those that the queries attend to.
  ATTZOO_API void append(Heads& heads);
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 protected:
  /// Of a copy: memory of its own.
  void copy_rows() { rows_ = rows_.clone(); }

 private:
  Keeps keeps_;
  RowBuffer rows_;  // keys, values, and with globals whether a token is one
  bool has_values_, globals_, any_global_ = false;
};

/// Keys and values of a context, projected once. Its tensors are never written to.
class ContextCache final : public CacheState {
 public:
  ContextCache(const CacheHead& head, torch::Tensor keys, torch::Tensor values, torch::Tensor real)
      : CacheState(head),
        k(std::move(keys)),
        v(std::move(values)),
        key_padding_mask(std::move(real)) {}

  bool grows() const override { return false; }
  int64_t length() const override { return k.size(2); }
  ATTZOO_API int64_t bytes() const override;
  int64_t earliest() const override { return length(); }
  bool can_take_back(int64_t) const override { return true; }
  void truncate(int64_t) override {}
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

  torch::Tensor k, v;              ///< [B, Hkv, S, dh]
  torch::Tensor key_padding_mask;  ///< bool [B, S]; undefined: all are real
  torch::Tensor index;             ///< [B, 1, S, features] of an indexer; undefined elsewhere
};

/// The cache of a call if it is a context's, else null.
inline const ContextCache* context_cache(const AttentionInputs& inputs) {
  if (!inputs.cache.defined() || inputs.cache.state().grows()) return nullptr;
  return dynamic_cast<const ContextCache*>(&inputs.cache.state());
}
/// Whether keys and values are a context's.
inline bool crosses(const AttentionInputs& inputs) {
  return inputs.context.defined() || context_cache(inputs);
}
/// Which keys are real where nothing is appended to a cache: bool [B, S]; undefined: all.
inline const torch::Tensor& key_padding_of(const AttentionInputs& inputs) {
  const auto* kept = context_cache(inputs);
  return kept ? kept->key_padding_mask : inputs.key_padding_mask;
}

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <vector>

namespace attzoo::core {

/// Tokens before the first real one, int64 [B], after the next ones, of which `real` [B, L] are.
inline torch::Tensor count_padding(const char* who, const torch::Tensor& before, int64_t length,
                                   const torch::Tensor& real) {
  const auto none_yet = before.defined() ? before == length
                                         : torch::full({real.size(0)}, length == 0, real.options());
  const auto begun = std::get<0>(real.cummax(1)).logical_or(none_yet.logical_not().unsqueeze(1));
  TORCH_CHECK_VALUE((begun == real).all().item<bool>(), who,
                    ": with a cache, padding stands before the first real token of a sequence");
  const auto more = real.logical_not().sum(1);
  return before.defined() ? before + more : more;
}

ATTZOO_API Past TokenCache::next(const char* who, int64_t L, const AttentionInputs& inputs,
                                 const Packing& packing) const {
  Past past{.offset = length(),
            .capacity = head().capacity,
            .padding = padding_,
            .changes = changes_,
            .seen = *changes_ + 1};
  const auto& real = inputs.key_padding_mask;
  if (inputs.global_attention.defined()) {
    past.global = inputs.global_attention.to(torch::kBool);
    TORCH_CHECK_VALUE(whole() || !past.global.any().item<bool>(), who,
                      ": a global token attends to all before it, of which this cache has "
                      "forgotten some; mark global tokens in the prompt");
    if (past.global.dim() == 1) past.global = past.global.unsqueeze(0);
  }
  if (packing.defined()) {
    TORCH_CHECK_VALUE(past.offset == 0, who,
                      ": documents pack the first tokens of a cache, which continues the last "
                      "document; this one has ",
                      past.offset, " tokens already");
    past.positions = packing.position;
    past.real = real;
    auto last = packing.run == packing.run.slice(1, L - 1);  // others are as padding from now on
    last = last.expand({head().batch, L});
    past.padding = count_padding(who, {}, 0, real.defined() ? last.logical_and(real) : last);
    return past;
  }
  if (real.defined()) past.padding = count_padding(who, padding_, past.offset, real);
  if (past.padding.defined()) {
    const auto place = torch::arange(past.offset, past.offset + L, past.padding.options());
    past.positions = (place - past.padding.unsqueeze(1)).clamp_min(0);
  }
  return past;
}

ATTZOO_API void TokenCache::truncate(int64_t n) {
  count_change();
  if (!padding_.defined()) return;
  padding_ = n == 0 ? torch::Tensor() : padding_.clamp_max(n);
}

ATTZOO_API void TokenCache::reorder(const torch::Tensor& order) {
  count_change();
  if (padding_.defined()) padding_ = padding_.index_select(0, order);
}

/// No rows yet of each kind that a KvCache keeps.
inline std::vector<torch::Tensor> no_rows(const CacheHead& head, const KvRows& rows, bool globals) {
  const auto options = torch::dtype(head.dtype).device(head.device);
  const auto rows_of = [&](int64_t features) {
    const auto t = torch::empty({head.batch, rows.heads, 0, features}, options);
    return head.eight_bits ? quantized(t, *head.eight_bits) : t;
  };
  std::vector<torch::Tensor> none{rows_of(rows.d_k)};
  if (rows.d_v > 0) none.push_back(rows_of(rows.d_v));
  if (globals) none.push_back(torch::empty({head.batch, 1, 0, 1}, options.dtype(torch::kBool)));
  return none;
}

ATTZOO_API KvCache::KvCache(const CacheHead& head, const KvRows& rows, const Keeps& keeps,
                            bool globals)
    : TokenCache(head),
      keeps_(keeps),
      rows_(no_rows(head, rows, globals), head.capacity,
            {keeps.reach, keeps.unit,
             !globals       ? -1
             : rows.d_v > 0 ? 2
                            : 1,
             keeps.pins}),
      has_values_(rows.d_v > 0),
      globals_(globals) {}

ATTZOO_API void KvCache::append(Heads& heads) {
  auto& past = *heads.past;
  const auto stored = [&](const torch::Tensor& t) {
    return head().eight_bits ? quantized(t, *head().eight_bits) : t;
  };
  std::vector<torch::Tensor> rows{stored(heads.k)};
  if (has_values_) rows.push_back(stored(heads.v));
  const bool more_global = past.global.defined() && past.global.any().item<bool>();
  if (globals_) {
    const auto flags =
        more_global ? past.global : torch::zeros({1, 1}, heads.k.options().dtype(torch::kBool));
    rows.push_back(flags.expand({head().batch, heads.k.size(2)}).unsqueeze(1).unsqueeze(-1));
  }
  count_change();
  auto view = rows_.append(rows, more_global);
  any_global_ |= more_global;
  padding_ = past.padding;
  past.dtype = heads.q.scalar_type();
  if (past.dtype != head().dtype) heads.q = heads.q.to(head().dtype);
  heads.k = view.rows[0];
  heads.v = has_values_ ? view.rows[1] : torch::Tensor();
  past.keys = std::move(view.numbers);
  past.global = any_global_ ? view.rows.back().squeeze(-1).squeeze(1) : torch::Tensor();
  if (!heads.packing.defined() && padding_.defined()) past.real = past.places() >= 0;
}

ATTZOO_API void KvCache::truncate(int64_t n) {
  TokenCache::truncate(n);
  any_global_ &= n > 0;
  rows_.truncate(n);
}

ATTZOO_API void KvCache::reorder(const torch::Tensor& order) {
  TokenCache::reorder(order);
  rows_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> KvCache::clone() const {
  auto copy = std::make_shared<KvCache>(*this);
  copy->copy_rows();
  return copy;
}

ATTZOO_API int64_t ContextCache::bytes() const {
  int64_t bytes = 0;
  for (const auto* t : {&k, &v, &key_padding_mask, &index}) {
    if (t->defined()) bytes += static_cast<int64_t>(t->nbytes());
  }
  return bytes;
}

ATTZOO_API void ContextCache::reorder(const torch::Tensor& order) {
  for (auto* t : {&k, &v, &key_padding_mask, &index}) {
    if (t->defined()) *t = t->index_select(0, order);
  }
}

// Copies share tensors, which nobody writes to.
ATTZOO_API std::shared_ptr<CacheState> ContextCache::clone() const {
  return std::make_shared<ContextCache>(*this);
}

}  // namespace attzoo::core

#endif
