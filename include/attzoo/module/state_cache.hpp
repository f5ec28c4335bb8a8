#pragma once
/// \file
/// The cache of a recurrent mechanism: its states, and enough of the latest tokens to take them
/// back.

#include <attzoo/module/token_cache.hpp>

#include <cstdint>
#include <memory>
#include <vector>

namespace attzoo::core {

/// What each convolution and recurrence of a mechanism keeps, [B, ..] each, in the order of its
/// calls. None yet: zeros.
using States = std::vector<torch::Tensor>;

/// O(1) memory. A state cannot be run backwards: truncate() goes back to an earlier one, and the
/// next call computes the tokens since then again.
class StateCache final : public TokenCache {
 public:
  StateCache(const CacheHead& head, int64_t input_dim);

  /// States behind so many tokens.
  struct Mark {
    int64_t tokens = 0;
    States states = {};
  };
  /// The latest.
  const Mark& known() const { return known_; }
  /// The tokens behind those, which the next call computes again: [B, .., input_dim].
  torch::Tensor to_compute_again() const;
  /// Whether the call that computes L more tokens must say what is kept behind all but kTakenBack.
  bool asks_between(int64_t L) const { return length() - known_.tokens + L > kTakenBack; }
  /// The latest states, which the caller may write over where nobody else holds them. Until take()
  /// the cache knows earlier ones alone, so that nothing is lost if the call fails.
  States lend();
  /// Takes the next tokens x [B, L, input_dim], the states behind them, and those in between.
  void take(const torch::Tensor& x, const States& states, const States& between, const Past& past);

  int64_t length() const override { return marks_.front().tokens + rows_.length(); }
  int64_t bytes() const override;
  int64_t earliest() const override { return std::max<int64_t>(1, marks_.front().tokens); }
  void truncate(int64_t n) override;
  void reorder(const torch::Tensor& order) override;
  std::shared_ptr<CacheState> clone() const override;

 private:
  /// Forgets all rows but the latest.
  void keep_rows(int64_t count);

  Mark known_;
  std::vector<Mark> marks_{{}};  // where truncate() can go back to, ascending: one or two
  RowBuffer rows_;               // the tokens behind the first of them
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>
#include <set>
#include <utility>

namespace attzoo::core {

// Two marks are kTakenBack to 2 kTakenBack tokens apart, and as many follow.
ATTZOO_API StateCache::StateCache(const CacheHead& head, int64_t input_dim)
    : TokenCache(head),
      rows_({torch::empty({head.batch, 1, 0, input_dim},
                          torch::dtype(head.module_dtype).device(head.device))},
            4 * kTakenBack, {}) {}

ATTZOO_API torch::Tensor StateCache::to_compute_again() const {
  return rows_.rows(0).squeeze(1).slice(1, known_.tokens - marks_.front().tokens);
}

ATTZOO_API States StateCache::lend() {
  auto states = std::move(known_.states);
  known_ = marks_.back();
  return states;
}

ATTZOO_API void StateCache::take(const torch::Tensor& x, const States& states,
                                 const States& between, const Past& past) {
  const int64_t n = length() + x.size(1);
  count_change();
  padding_ = past.padding;
  known_ = {n, states};
  if (!between.empty()) {
    const int64_t more = std::min(x.size(1), kTakenBack);
    keep_rows(kTakenBack - more);
    rows_.append({x.slice(1, x.size(1) - more).unsqueeze(1)});
    marks_ = {{n - kTakenBack, between}};
    return;
  }
  rows_.append({x.unsqueeze(1)});
  if (n - marks_.back().tokens < kTakenBack) return;
  marks_.push_back(known_);
  if (marks_.size() == 2) return;
  marks_.erase(marks_.begin());
  keep_rows(n - marks_.front().tokens);
}

ATTZOO_API void StateCache::keep_rows(int64_t count) {
  const auto kept = rows_.rows(0).slice(2, rows_.length() - count).clone();
  rows_.truncate(0);
  rows_.append({kept});
}

ATTZOO_API int64_t StateCache::bytes() const {
  std::set<const void*> counted;  // marks share tensors
  int64_t sum = rows_.bytes();
  const auto count = [&](const Mark& mark) {
    for (const auto& t : mark.states) {
      if (counted.insert(t.data_ptr()).second) sum += static_cast<int64_t>(t.nbytes());
    }
  };
  count(known_);
  for (const auto& mark : marks_) count(mark);
  return sum;
}

ATTZOO_API void StateCache::truncate(int64_t n) {
  TokenCache::truncate(n);
  while (marks_.size() > 1 && marks_.back().tokens > n) marks_.pop_back();
  if (n == 0) marks_ = {{}};
  rows_.truncate(n - marks_.front().tokens);
  if (known_.tokens > n) known_ = marks_.back();
}

ATTZOO_API void StateCache::reorder(const torch::Tensor& order) {
  TokenCache::reorder(order);
  const auto each = [&](Mark& mark) {
    for (auto& t : mark.states) t = t.index_select(0, order);
  };
  each(known_);
  for (auto& mark : marks_) each(mark);
  rows_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> StateCache::clone() const {
  auto copy = std::make_shared<StateCache>(*this);
  copy->rows_ = rows_.clone();
  return copy;
}

}  // namespace attzoo::core

#endif
