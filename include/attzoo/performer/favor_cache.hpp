#pragma once
/// \file
/// What a Performer keeps of the tokens before.

#include <attzoo/functional/performer_attention.hpp>
#include <attzoo/module/token_cache.hpp>

namespace attzoo::core {

/// The sums over all tokens, and those that the latest ones are not in, which are kept so that they
/// can be taken back: O(1) memory.
class FavorCache final : public TokenCache {
 public:
  /// Of `heads` heads with values of E features; in float32 at least.
  FavorCache(const CacheHead& head, Favor favor, int64_t heads, int64_t E);

  /// The features that it began with.
  const Favor& favor() const { return favor_; }
  int64_t length() const override { return summed_ + latest_.length(); }
  int64_t bytes() const override;
  int64_t earliest() const override { return std::max<int64_t>(1, summed_); }
  /// Appends tokens, of features k and values v1, and says what their queries q collect of them and
  /// of all before; see favor_go_on().
  torch::Tensor go_on(const torch::Tensor& q, const FavorKeys& k, const torch::Tensor& v1,
                      const Past& past);
  /// Appends tokens alone.
  void take(const FavorKeys& k, const torch::Tensor& v1, const Past& past);
  void truncate(int64_t n) override;
  void reorder(const torch::Tensor& order) override;
  std::shared_ptr<CacheState> clone() const override;

 private:
  void keep(const FavorKeys& k, const torch::Tensor& v1, const Past& past);
  FavorKeys latest_keys(int64_t begin, int64_t end) const;
  FavorState none() const;

  Favor favor_;
  int64_t summed_ = 0;       // tokens that are in `before_`
  FavorState before_, now_;  // without the latest tokens, and with them
  RowBuffer latest_;         // features of keys, [v, 1], and the keys' largest projections
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <utility>
#include <vector>

namespace attzoo::core {

inline std::vector<torch::Tensor> no_favor_rows(const CacheHead& head, const Favor& f, int64_t H,
                                                int64_t E) {
  const auto rows = [&](int64_t size) {
    return torch::empty({head.batch, H, 0, size},
                        f.projection.options().device(head.device).requires_grad(false));
  };
  std::vector<torch::Tensor> none{rows(f.projection.size(0)), rows(E + 1)};
  if (!f.relu) none.push_back(rows(1));
  return none;
}

ATTZOO_API FavorCache::FavorCache(const CacheHead& head, Favor favor, int64_t heads, int64_t E)
    : TokenCache(head),
      favor_(std::move(favor)),
      latest_(no_favor_rows(head, favor_, heads, E), 2 * kTakenBack, {}) {
  before_ = now_ = none();
}

ATTZOO_API FavorState FavorCache::none() const {
  return favor_state_after(favor_, {}, latest_keys(0, 0), latest_.rows(1).slice(2, 0, 0));
}

ATTZOO_API FavorKeys FavorCache::latest_keys(int64_t begin, int64_t end) const {
  FavorKeys keys{latest_.rows(0)};
  if (!favor_.relu) keys.top = latest_.rows(2).squeeze(-1);
  return keys.rows(begin, end);
}

ATTZOO_API int64_t FavorCache::bytes() const {
  int64_t sum = latest_.bytes();
  for (const auto* state : {&before_, &now_}) {
    for (const auto* t : {&state->kv, &state->top, &state->v}) {
      if (t->defined()) sum += static_cast<int64_t>(t->nbytes());
    }
  }
  return sum;
}

ATTZOO_API torch::Tensor FavorCache::go_on(const torch::Tensor& q, const FavorKeys& k,
                                           const torch::Tensor& v1, const Past& past) {
  auto collected = favor_go_on(favor_, now_, q, k, v1);
  keep(k, v1, past);
  return collected;
}

ATTZOO_API void FavorCache::take(const FavorKeys& k, const torch::Tensor& v1, const Past& past) {
  now_ = favor_state_after(favor_, now_, k, v1);
  keep(k, v1, past);
}

// Where there is no room for more, all but the last kTakenBack tokens go into the sums.
ATTZOO_API void FavorCache::keep(const FavorKeys& k, const torch::Tensor& v1, const Past& past) {
  count_change();
  padding_ = past.padding;
  std::vector<torch::Tensor> rows{k.features, v1};
  if (k.top.defined()) rows.push_back(k.top.unsqueeze(-1));
  const int64_t more = v1.size(2), n = latest_.length() + more;
  if (n <= 2 * kTakenBack) {
    latest_.append(rows);
    return;
  }
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = torch::cat({latest_.rows(i), rows[i]}, 2);
  const int64_t old = n - kTakenBack;
  FavorKeys keys{rows[0].narrow(2, 0, old)};
  if (k.top.defined()) keys.top = rows[2].narrow(2, 0, old).squeeze(-1);
  before_ = favor_state_after(favor_, before_, keys, rows[1].narrow(2, 0, old));
  summed_ += old;
  for (auto& t : rows) t = t.slice(2, old);
  latest_.truncate(0);
  latest_.append(rows);
}

ATTZOO_API void FavorCache::truncate(int64_t n) {
  TokenCache::truncate(n);
  if (n == 0) {
    summed_ = 0;
    before_ = none();
  }
  latest_.truncate(n - summed_);
  now_ = favor_state_after(favor_, before_, latest_keys(0, n - summed_), latest_.rows(1));
}

ATTZOO_API void FavorCache::reorder(const torch::Tensor& order) {
  TokenCache::reorder(order);
  for (auto* state : {&before_, &now_}) {
    for (auto* t : {&state->kv, &state->top, &state->v}) {
      if (t->defined()) *t = t->index_select(0, order);
    }
  }
  latest_.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> FavorCache::clone() const {
  auto copy = std::make_shared<FavorCache>(*this);  // a state is never changed in place
  copy->latest_ = latest_.clone();
  return copy;
}

}  // namespace attzoo::core

#endif
