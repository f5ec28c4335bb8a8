#pragma once
/// \file
/// Where the backward pass adds up the gradients of keys and values.

#include <attzoo/kernel/tiling.hpp>

#include <algorithm>
#include <memory>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Those of one head: row j is data + j * row.
template <class T>
struct KeyGradients {
  T *k, *v;
  int64_t k_row, v_row;
};

/// The queries are split into chunks where there are few heads, so that one head still uses several
/// threads; every chunk but a lone one adds into memory of its own, over the keys that it reaches.
/// The number of chunks depends on the sizes alone: results do not depend on the threads.
template <class T>
class KeyGradientChunks {
 public:
  /// Of one chunk of a head: the keys [begin, end).
  struct Part {
    int begin = 0, end = 0;
    std::shared_ptr<void> memory = nullptr;
  };

  KeyGradientChunks(const Plan<T>& plan, const Gradients<T>& g, Runtime& runtime)
      : p_(plan.p), g_(g), d_(padded(p_.D)), dv_(padded(p_.Dv)) {
    const int blocks = plan.grid.per_residue(), wanted = wanted_chunks(plan);
    blocks_ = (blocks + wanted - 1) / wanted;
    chunks_ = (blocks + blocks_ - 1) / blocks_;
    if (chunks_ == 1) return;
    parts_.resize(static_cast<size_t>(chunks_) * static_cast<size_t>(p_.B) *
                  static_cast<size_t>(p_.Hkv));
    for (size_t i = 0; i < parts_.size(); ++i) {
      set_reached(plan, static_cast<int64_t>(i), parts_[i]);
      parts_[i].memory = runtime.allocate(static_cast<size_t>(numbers(parts_[i])) * sizeof(T));
    }
  }

  int count() const { return chunks_; }
  int blocks() const { return blocks_; }

  /// Where chunk `chunk` of head b * Hkv + hkv adds; its memory is cleared here, by its owner.
  KeyGradients<T> target(int64_t head, int chunk) const {
    if (chunks_ == 1) return whole(head);
    const auto& own = part(head, chunk);
    clear(static_cast<T*>(own.memory.get()), numbers(own));
    return rows(own);
  }

  const Part& part(int64_t head, int chunk) const {
    return parts_[static_cast<size_t>(head * chunks_ + chunk)];
  }
  KeyGradients<T> rows(const Part& part) const {
    T* data = static_cast<T*>(part.memory.get());
    const int64_t count = part.end - part.begin;
    return {data - part.begin * int64_t{d_}, data + count * d_ - part.begin * int64_t{dv_}, d_,
            dv_};
  }
  KeyGradients<T> whole(int64_t head) const {
    const int64_t b = head / p_.Hkv, hkv = head % p_.Hkv;
    return {static_cast<T*>(g_.grad_k.data) + g_.grad_k.head(b, hkv),
            static_cast<T*>(g_.grad_v.data) + g_.grad_v.head(b, hkv), g_.grad_k.n, g_.grad_v.n};
  }

 private:
  static int wanted_chunks(const Plan<T>& plan) {
    constexpr int kTasks = 8, kRowsInChunk = 256;
    if (plan.stride() != 1) return 1;  // residues share no keys
    const int64_t heads = int64_t{plan.p.B} * plan.p.Hkv;
    return std::min(static_cast<int>((kTasks + heads - 1) / heads),
                    (plan.p.L + kRowsInChunk - 1) / kRowsInChunk);
  }

  /// From the first to the last key that the queries of chunk i reach, of any head.
  void set_reached(const Plan<T>& plan, int64_t i, Part& part) const {
    const int64_t head = i / chunks_;
    const int b = static_cast<int>(head / p_.Hkv), hkv = static_cast<int>(head % p_.Hkv);
    const int rows = blocks_ * plan.tiling.lanes, begin = static_cast<int>(i % chunks_) * rows;
    for (int h = hkv * p_.group(); h < (hkv + 1) * p_.group(); ++h) {
      Segments segments;
      reach(plan.m.mask, {b, h, begin, std::min(p_.L, begin + rows), p_.S}, segments);
      if (segments.empty()) continue;
      const int first = segments.front().begin;
      part.begin = part.end == 0 ? first : std::min(part.begin, first);
      part.end = std::max(part.end, segments.back().end);
    }
  }

  int64_t numbers(const Part& part) const { return int64_t{part.end - part.begin} * (d_ + dv_); }

  const Problem<T>& p_;
  const Gradients<T>& g_;
  int d_, dv_, blocks_ = 0, chunks_ = 0;
  std::vector<Part> parts_;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
