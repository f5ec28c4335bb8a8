#pragma once
/// \file
/// The cache of a module that consists of several.

#include <attzoo/config.hpp>
#include <attzoo/module/cache.hpp>

#include <cstdint>
#include <memory>
#include <vector>

namespace attzoo::core {

/// Of a module that consists of several.
class JoinedCache final : public CacheState {
 public:
  JoinedCache(const CacheHead& head, std::vector<Cache> caches)
      : CacheState(head), parts(std::move(caches)) {}
  ATTZOO_API bool grows() const override;
  ATTZOO_API int64_t length() const override;
  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API int64_t earliest() const override;
  ATTZOO_API bool can_take_back(int64_t L) const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

  std::vector<Cache> parts;

  /// Takes what was appended to some parts back, unless all modules have done theirs.
  class Together {
   public:
    /// Before L tokens; `joined` may be null.
    ATTZOO_API Together(JoinedCache* joined, int64_t L);
    ATTZOO_API ~Together();
    Together(const Together&) = delete;
    Together& operator=(const Together&) = delete;
    void done() { joined_ = nullptr; }

   private:
    JoinedCache* joined_;
    int64_t length_ = 0;
    std::vector<Cache> copies_;  // of the parts where truncate() could not go back
  };
};

/// The cache of a module that consists of several, from theirs.
ATTZOO_API Cache join_caches(const char* who, const Identity& owner, std::vector<Cache> parts);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>
#include <utility>

namespace attzoo::core {

ATTZOO_API Cache join_caches(const char* who, const Identity& owner, std::vector<Cache> parts) {
  auto head = parts.front().state().head();
  for (const auto& part : parts) {
    const auto& other = part.state().head();
    TORCH_CHECK_VALUE(head.module_dtype == other.module_dtype && head.device == other.device, who,
                      ": all its modules must have one dtype and device to share a cache, got ",
                      head.module_dtype, " on ", head.device, " and ", other.module_dtype, " on ",
                      other.device);
  }
  head.owner = owner.value();
  return Cache(std::make_shared<JoinedCache>(head, std::move(parts)));
}

ATTZOO_API bool JoinedCache::grows() const {
  return std::any_of(parts.begin(), parts.end(),
                     [](const Cache& part) { return part.state().grows(); });
}

ATTZOO_API int64_t JoinedCache::length() const {
  for (const auto& part : parts) {
    if (part.state().grows()) return part.length();
  }
  return parts.front().length();
}

ATTZOO_API int64_t JoinedCache::bytes() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part.bytes();
  return sum;
}

ATTZOO_API int64_t JoinedCache::earliest() const {
  int64_t latest = 0;
  for (const auto& part : parts) {
    if (part.state().grows()) latest = std::max(latest, part.state().earliest());
  }
  return latest;
}

ATTZOO_API bool JoinedCache::can_take_back(int64_t L) const {
  return std::all_of(parts.begin(), parts.end(),
                     [L](const Cache& part) { return part.state().can_take_back(L); });
}

ATTZOO_API void JoinedCache::truncate(int64_t n) {
  for (auto& part : parts) {
    if (part.state().grows()) part.truncate(n);
  }
  if (n == 0) std::erase_if(parts, [](const Cache& part) { return !part.state().grows(); });
}

ATTZOO_API void JoinedCache::reorder(const torch::Tensor& order) {
  for (auto& part : parts) part.reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> JoinedCache::clone() const {
  auto copy = std::make_shared<JoinedCache>(*this);
  for (auto& part : copy->parts) part = part.clone();
  return copy;
}

ATTZOO_API JoinedCache::Together::Together(JoinedCache* joined, int64_t L) : joined_(joined) {
  if (!joined) return;
  length_ = joined->length();
  if (joined->can_take_back(L)) return;
  for (const auto& part : joined->parts) {
    copies_.push_back(part.state().can_take_back(L) ? Cache() : part.clone());
  }
}

ATTZOO_API JoinedCache::Together::~Together() {
  if (!joined_) return;
  for (size_t i = 0; i < joined_->parts.size(); ++i) {
    auto& part = joined_->parts[i];
    if (i < copies_.size() && copies_[i].defined()) {
      part = copies_[i];
    } else if (part.state().grows()) {
      part.truncate(std::min(length_, part.length()));
    }
  }
}

}  // namespace attzoo::core

#endif
