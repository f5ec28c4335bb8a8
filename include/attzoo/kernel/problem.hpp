#pragma once
/// \file
/// One attention problem as the kernel sees it: pointers, strides and sizes.

#include <attzoo/kernel/schedule.hpp>
#include <attzoo/kernel/scores.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

/// A tensor [B, H, N, features] with any strides, in elements.
struct View {
  void* data;
  DType dtype;
  int64_t b, h, n, d;
};

/// Whether a tensor has the type to compute in, so that its rows can be used where they are.
template <class T>
bool is_native(const View& x) {
  return x.dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
}

/// T is what is computed in: float, or double for float64 tensors.
template <class T>
struct Problem {
  View q, k, v, output;
  T* lse;  // [B, H, L], contiguous; natural log, -inf for a row without keys
  int B, H, Hkv, L, S, D, Dv;
  T scale;
  double dropout;
  uint64_t seed;
};

/// What the backward pass reads and writes beyond the problem.
template <class T>
struct Gradients {
  View grad_output, grad_q;
  const T* grad_lse;  // [B, H, L], contiguous, or null
  // Accumulators [B, Hkv, S, padded(D or Dv)] of type T, zero on entry, last stride 1.
  View grad_k, grad_v;
};

/// Gradients of the tensors that the score modifier holds. The queries are split into `slots`, each
/// with one thread at a time; a tensor that has no query dimension has a gradient for each slot,
/// `slot_stride` apart.
template <class T>
struct TensorGradients {
  static constexpr int kMostSlots = 16;
  int slots = kMostSlots;
  std::vector<TensorGradient<T>> tensors;
  std::vector<int64_t> slot_stride;
};

/// Features are padded to a multiple of this in the accumulators and in scratch memory.
constexpr int kPad = 16;
constexpr int padded(int n) { return (n + kPad - 1) / kPad * kPad; }

/// Zeros n numbers.
template <class T>
ATTZOO_ALWAYS_INLINE void clear(T* p, int64_t n) {
  __builtin_memset(p, 0, static_cast<size_t>(n) * sizeof(T));
}

/// Where the kernel's threads and memory come from.
class Runtime {
 public:
  virtual ~Runtime() = default;
  /// Calls `worker` on every thread, at least once, and waits.
  virtual void run(const std::function<void()>& worker) = 0;
  /// Memory aligned to 64 bytes, freed with the pointer.
  virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
};

/// A tile of scores [keys x lanes]: rows are keys kv, kv + kv_step, ..., lanes the queries q[0..).
struct TilePosition {
  int b, h;
  const int* q;
  int lanes;
  int kv, kv_step, keys;
  bool partial;  // the mask decides pair by pair
};

/// The modifiers of a problem, with their types erased: the driver that calls them is compiled
/// once.
template <class T>
struct Modifiers {
  const void* mask_and_score;
  void (*reach)(const void*, const Rows&, Segments&);
  int stride;
  bool changes_scores;
  /// Changes the scores s of a tile, -inf where the mask forbids. `slope`, unless null, receives
  /// each score's derivative with respect to what it was before.
  void (*modify)(const void*, const TilePosition&, T* s, T* slope) = nullptr;
  /// Hands the gradients ds of a tile's modified scores on to the tensors that the modifiers hold;
  /// s are the scores before. Only the first `count` lanes are queries.
  void (*collect)(const void*, const TilePosition&, int count, const T* s, const T* ds,
                  const TensorGradient<T>* to) = nullptr;
};

/// Queries in the lanes of a tile: `count` of them, repeated from the last one up to `width`.
struct Lanes {
  static constexpr int kMost = 64;
  int width, count;
  int index[kMost];

  Lanes(const QueryBlock& block, int stride, int lanes) : width(lanes), count(block.count) {
    for (int i = 0; i < lanes; ++i) index[i] = block.begin + std::min(i, count - 1) * stride;
  }
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
