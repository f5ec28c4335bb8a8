#pragma once
// Definitions of cache.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/module/cache.hpp>

#include <algorithm>
#include <limits>

namespace attzoo {

ATTZOO_API core::CacheState& Cache::state() const {
  TORCH_CHECK_VALUE(state_, "Cache: this one is undefined; a module's make_cache makes one");
  return *state_;
}
ATTZOO_API int64_t Cache::batch() const { return state().head().batch; }
ATTZOO_API int64_t Cache::length() const { return state().length(); }
ATTZOO_API int64_t Cache::capacity() const { return state().head().capacity; }
ATTZOO_API int64_t Cache::bytes() const { return state().bytes(); }

ATTZOO_API void Cache::truncate(int64_t n) {
  TORCH_CHECK_VALUE(0 <= n && n <= length(), "Cache::truncate: expected 0 <= n <= ", length(),
                    ", got ", n);
  TORCH_CHECK_VALUE(n == 0 || n >= state().earliest(), "Cache::truncate: what ", n,
                    " tokens would need is forgotten; it can go back to ", state().earliest(),
                    " tokens, or to none");
  if (n < length()) state().truncate(n);
}

ATTZOO_API void Cache::reorder(const torch::Tensor& indices) {
  constexpr const char* kWho = "Cache::reorder";
  core::check_dense(indices, kWho, "indices");
  TORCH_CHECK_TYPE(torch::isIntegralType(indices.scalar_type(), /*includeBool=*/false), kWho,
                   ": indices must be integers, got ", indices.scalar_type());
  TORCH_CHECK_VALUE(indices.dim() == 1 && indices.size(0) == batch(), kWho,
                    ": indices must have shape [batch=", batch(), "], got ", indices.sizes());
  const auto order = indices.to(torch::kInt64);
  TORCH_CHECK_VALUE(((order >= 0) & (order < batch())).all().item<bool>(), kWho,
                    ": indices must be in [0, ", batch(), ")");
  const torch::NoGradGuard no_grad;
  state().reorder(order.to(state().head().device));
}

ATTZOO_API Cache Cache::clone() const {
  const torch::NoGradGuard no_grad;
  return Cache(state().clone());
}
ATTZOO_API void Cache::reset() { truncate(0); }

namespace core {

ATTZOO_API CacheHead cache_head(const char* who, const Identity& owner, const torch::Tensor& weight,
                                int64_t batch, std::optional<int64_t> capacity,
                                const CacheOptions& options, bool unending) {
  TORCH_CHECK_VALUE(batch > 0, who, ": make_cache expects batch > 0, got ", batch);
  TORCH_CHECK_VALUE(capacity || unending, who,
                    ": make_cache needs a capacity, for this mechanism keeps all tokens");
  constexpr int64_t kMost = int64_t{1} << 31;  // what the kernels count to
  TORCH_CHECK_VALUE(!capacity || (*capacity > 0 && (unending || *capacity < kMost)), who,
                    ": make_cache expects capacity > 0", unending ? "" : " and < 2^31", ", got ",
                    *capacity);
  const auto dtype = options.dtype.value_or(weight.scalar_type());
  TORCH_CHECK_TYPE(is_supported_float(dtype), who,
                   ": a cache's dtype must be float64, float32, bfloat16 or float16, got ", dtype);
  const auto device = torch::empty({0}, options.device.value_or(weight.device())).device();
  return {owner.value(),        batch, capacity.value_or(std::numeric_limits<int64_t>::max()),
          weight.scalar_type(), dtype, device};
}

ATTZOO_API void check_cache(const char* who, const Identity& owner, const Cache& cache,
                            const torch::Tensor& x) {
  const auto& head = cache.state().head();
  TORCH_CHECK_VALUE(head.owner == owner.value(), who,
                    ": the cache is another module's; every module, and so every layer, makes its "
                    "own by make_cache");
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(0) == head.batch && x.size(1) > 0, who,
                    ": with this cache, x must have shape [batch=", head.batch,
                    ", L > 0, features], got ", x.sizes());
  TORCH_CHECK_VALUE(x.device() == head.device, who, ": the cache is on ", head.device, ", x is on ",
                    x.device());
  TORCH_CHECK_VALUE(x.size(1) <= head.capacity - cache.length(), who,
                    ": the cache is full: it has ", cache.length(), " of ", head.capacity,
                    " tokens, and ", x.size(1),
                    " more came; give make_cache a larger capacity, or reset() it");
}

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

ATTZOO_API int64_t JoinedCache::bytes() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part.bytes();
  return sum;
}

ATTZOO_API int64_t JoinedCache::earliest() const {
  int64_t latest = 0;
  for (const auto& part : parts) latest = std::max(latest, part.state().earliest());
  return latest;
}

ATTZOO_API bool JoinedCache::can_take_back(int64_t L) const {
  return std::all_of(parts.begin(), parts.end(),
                     [L](const Cache& part) { return part.state().can_take_back(L); });
}

ATTZOO_API void JoinedCache::truncate(int64_t n) {
  for (auto& part : parts) part.truncate(n);
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
    } else {
      part.truncate(std::min(length_, part.length()));
    }
  }
}

}  // namespace core
}  // namespace attzoo
