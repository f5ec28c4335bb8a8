#pragma once
/// \file
/// Caches of single mechanisms: where tokens stand, and their keys and values.

#include <attzoo/module/cache.hpp>
#include <attzoo/module/heads.hpp>
#include <attzoo/module/inputs.hpp>
#include <attzoo/module/row_buffer.hpp>

#include <memory>

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
class KvCache : public TokenCache {
 public:
  ATTZOO_API KvCache(const CacheHead& head, int64_t kv_heads, int64_t d_k, int64_t d_v,
                     const Keeps& keeps, bool globals);

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
  bool globals_, any_global_ = false;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/token_cache.ipp>
#endif
