#pragma once
/// \file
/// The state of generation, token by token: what a mechanism must keep of the tokens before.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace attzoo {

namespace core {
class CacheState;
}

/// How a cache stores what it keeps.
struct CacheOptions {
  /// Of keys and values; default the module's. A half type for a float32 module halves the memory,
  /// and the time of a step; attention then computes with queries of that type, too. torch::kInt8
  /// and torch::kFloat8_e4m3fn store rows of quantize_rows(), 8 bits a number and a scale for each
  /// head and token, and leave queries as they are (of a float64 module, float32); states, sums and
  /// an indexer's keys keep the module's type. Mechanisms without keys and values refuse them.
  std::optional<torch::ScalarType> dtype = std::nullopt;
  /// Default the module's.
  std::optional<torch::Device> device = std::nullopt;
};

/// The tokens that a module has seen, as its mechanism needs them; made by the module's make_cache.
/// `attn(x, {.cache = cache})` takes the next L >= 1 tokens x [batch, L, input_dim], appends them,
/// and returns the rows that a causal pass over all tokens has there:
/// ```
/// torch::NoGradGuard no_grad;
/// auto cache = attn->make_cache(/*batch=*/1, /*capacity=*/1024);
/// auto y = attn(prompt, {.cache = cache}).output;
/// while (more) y = attn(next, {.cache = cache}).output;  // one token or several
/// ```
/// Positions are counted by the cache: position_offset has no meaning beside it, and a context only
/// in the first call of a DecoderBlock, whose cache keeps what it needs of that.
/// key_padding_mask [batch, L] is that of the new tokens and is remembered; padding stands before
/// the first real token of a sequence, and positions count real tokens. `mask` has the columns of
/// all tokens, [.., L, length + L]. `documents` are taken while the cache is empty; it continues
/// the last of them. Weights of a call have the columns of the tokens that are still kept, and are
/// read before the next call. Several threads may share a module, each with a cache of its own.
///
/// One of a context, from make_context_cache, has the context's keys and values, which are the same
/// for every call; any module that takes a `context` takes it instead, and no call need be causal.
/// It does not grow: length() is the context's, truncate() and reset() throw c10::ValueError.
///
/// A handle: copies share the state; clone() copies it. A default constructed one is undefined: all
/// but defined() throws c10::ValueError.
class Cache {
 public:
  Cache() = default;
  explicit Cache(std::shared_ptr<core::CacheState> state) : state_(std::move(state)) {}

  bool defined() const { return static_cast<bool>(state_); }
  /// Sequences that advance together.
  ATTZOO_API int64_t batch() const;
  /// Tokens seen so far, padding included.
  ATTZOO_API int64_t length() const;
  /// The most tokens that it takes; the largest int64 for one without end.
  ATTZOO_API int64_t capacity() const;
  /// Memory of its tensors; the states of a recurrence are there from its first call on.
  ATTZOO_API int64_t bytes() const;

  /// Goes back to the first n tokens, as after rejected drafts. Throws c10::ValueError unless
  /// 0 <= n <= length(), and where the mechanism has already forgotten what it would need. It never
  /// has for n >= M - 32, where M is the most tokens that the cache has had since it was empty:
  /// what is taken back brings nothing back that was forgotten for it.
  ATTZOO_API void truncate(int64_t n);
  /// Sequence i continues what sequence indices[i] was, as in beam search; integers [batch].
  /// Throws c10::Error for another shape, dtype or range.
  ATTZOO_API void reorder(const torch::Tensor& indices);
  /// A copy that goes its own way from here.
  ATTZOO_API Cache clone() const;
  /// Forgets all tokens; the memory stays.
  ATTZOO_API void reset();

  /// For modules: the state behind the handle.
  ATTZOO_API core::CacheState& state() const;

 private:
  std::shared_ptr<core::CacheState> state_;
};

/// Who makes caches: every mechanism and every wrapper. For modules held by any type, as in
/// `dynamic_cast<attzoo::MakesCache&>(*any_module.ptr()).make_cache(1, 512)`.
class MakesCache {
 public:
  virtual ~MakesCache() = default;
  /// An empty cache for `batch` sequences of up to `capacity` tokens. Without a capacity it has no
  /// end, which mechanisms can offer that forget: with a window, blocks, or sums, as
  /// `make_cache(1, {}, {.dtype = torch::kInt8})`. Throws c10::ValueError for sizes < 1, a capacity
  /// that is missing, and an unsupported dtype.
  virtual Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                           const CacheOptions& options = {}) const = 0;
  /// The keys and values of a context [B, S, input_dim], projected once, for cross attention with
  /// the same context call after call, as in a decoder:
  /// ```
  /// auto c = cross->make_context_cache(memory, real);
  /// auto y = cross(x, {.cache = c}).output;  // as {.key_padding_mask = real, .context = memory}
  /// ```
  /// key_padding_mask bool [B, S], true = real token, is remembered. Throws what a call with this
  /// context does; c10::ValueError where it would need gradients; and c10::NotImplementedError for
  /// a module without keys and values, as linear attention.
  ATTZOO_API virtual Cache make_context_cache(const torch::Tensor& context,
                                              const torch::Tensor& key_padding_mask = {}) const;
};

namespace core {

/// Tells modules apart; a copy is another one.
class Identity {
 public:
  Identity() : value_(next_++) {}
  Identity(const Identity&) : Identity() {}
  Identity& operator=(const Identity&) { return *this; }
  int64_t value() const { return value_; }

 private:
  static inline std::atomic<int64_t> next_{0};  // one for a program, whatever its files are
  int64_t value_;
};

/// Whose a cache is and for what.
struct CacheHead {
  int64_t owner;  // Identity of the module
  int64_t batch, capacity;
  torch::ScalarType module_dtype, dtype;
  torch::Device device;
  /// Keys and values are quantize_rows() of this.
  std::optional<torch::ScalarType> eight_bits = std::nullopt;
};

/// Tokens, of the most that it has had, that any cache can take back.
inline constexpr int64_t kTakenBack = 32;

/// What every cache is to its handle. Arguments are checked already.
class CacheState {
 public:
  explicit CacheState(const CacheHead& head) : head_(head) {}
  virtual ~CacheState() = default;

  const CacheHead& head() const { return head_; }
  /// Whether calls append to it; a context's stays as it is.
  virtual bool grows() const { return true; }
  virtual int64_t length() const = 0;
  virtual int64_t bytes() const = 0;
  /// The least n > 0 that truncate() can go back to: before it, too much is forgotten.
  virtual int64_t earliest() const = 0;
  /// Whether truncate() can still go back to the tokens of now when L more have been appended.
  virtual bool can_take_back(int64_t L) const { return L <= kTakenBack || length() == 0; }
  virtual void truncate(int64_t n) = 0;
  virtual void reorder(const torch::Tensor& order) = 0;  // int64, on the cache's device
  virtual std::shared_ptr<CacheState> clone() const = 0;

 protected:
  CacheState(const CacheState&) = default;

 private:
  CacheHead head_;
};

/// The head of a new cache. `unending`: whether it may do without a capacity; `has_keys`: whether
/// keys and values are in it, which may be of 8 bits. Throws as make_cache.
ATTZOO_API CacheHead cache_head(const char* who, const Identity& owner, const torch::Tensor& weight,
                                int64_t batch, std::optional<int64_t> capacity,
                                const CacheOptions& options, bool unending, bool has_keys);

/// Throws c10::ValueError for a cache that is not this module's or not on x's device, for another
/// batch than its own, and where the next x [batch, L, ..] does not fit.
ATTZOO_API void check_cache(const char* who, const Identity& owner, const Cache& cache,
                            const torch::Tensor& x);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/quantized_rows.hpp>

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
  TORCH_CHECK_VALUE(n == length() || state().grows(),
                    "Cache::truncate: a context's keys and values do not grow and are not taken "
                    "back; make_context_cache makes those of another context");
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

ATTZOO_API Cache MakesCache::make_context_cache(const torch::Tensor&, const torch::Tensor&) const {
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "make_context_cache: this module has no keys and values of a "
                              "context to keep; pass the context itself");
}

namespace core {

ATTZOO_API CacheHead cache_head(const char* who, const Identity& owner, const torch::Tensor& weight,
                                int64_t batch, std::optional<int64_t> capacity,
                                const CacheOptions& options, bool unending, bool has_keys) {
  TORCH_CHECK_VALUE(batch > 0, who, ": make_cache expects batch > 0, got ", batch);
  TORCH_CHECK_VALUE(capacity || unending, who,
                    ": make_cache needs a capacity, for this mechanism keeps all tokens");
  constexpr int64_t kMost = int64_t{1} << 31;  // what the kernels count to
  TORCH_CHECK_VALUE(!capacity || (*capacity > 0 && (unending || *capacity < kMost)), who,
                    ": make_cache expects capacity > 0", unending ? "" : " and < 2^31", ", got ",
                    *capacity);
  auto dtype = options.dtype.value_or(weight.scalar_type());
  std::optional<torch::ScalarType> eight_bits;
  if (is_eight_bits(dtype)) {
    TORCH_CHECK_TYPE(has_keys, who, ": a cache without keys and values cannot have 8 bits, got ",
                     dtype);
    eight_bits = std::exchange(dtype, weight.scalar_type());
    if (dtype == torch::kFloat64) dtype = torch::kFloat32;
  }
  TORCH_CHECK_TYPE(is_supported_float(dtype), who,
                   ": a cache's dtype must be float64, float32, bfloat16, float16, int8 or "
                   "float8_e4m3fn, got ",
                   dtype);
  const auto device = torch::empty({0}, options.device.value_or(weight.device())).device();
  const auto most = capacity.value_or(std::numeric_limits<int64_t>::max());
  return {owner.value(), batch, most, weight.scalar_type(), dtype, device, eight_bits};
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
  if (!cache.state().grows()) return;
  TORCH_CHECK_VALUE(x.size(1) <= head.capacity - cache.length(), who,
                    ": the cache is full: it has ", cache.length(), " of ", head.capacity,
                    " tokens, and ", x.size(1), " more came; give make_cache a larger capacity",
                    cache.length() > 0 ? ", or reset() it" : "");
}

}  // namespace core
}  // namespace attzoo

#endif
