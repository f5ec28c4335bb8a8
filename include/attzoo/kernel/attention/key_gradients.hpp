#pragma once
/// \file
/// Where the backward pass adds up the gradients of keys and values.

#include <attzoo/kernel/attention/tiling.hpp>

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
  /// Of some blocks of queries: the keys [begin, end).
  struct Part {
    int begin = 0, end = 0;
    std::shared_ptr<void> memory = nullptr;
  };

  KeyGradientChunks(const Plan<T>& plan, const Gradients<T>& g, Runtime& runtime)
      : plan_(plan), p_(plan.p), g_(g), d_(padded(p_.D)), dv_(padded(p_.Dv)) {
    const int blocks = plan.grid.per_residue(), wanted = wanted_chunks(plan);
    blocks_ = (blocks + wanted - 1) / wanted;
    chunks_ = (blocks + blocks_ - 1) / blocks_;
    blocks_in_sum_ = blocks_met_by_key() > kBlocksInSum ? kBlocksInSum : blocks_;
    if (chunks_ == 1) return;
    parts_.resize(static_cast<size_t>(chunks_) * static_cast<size_t>(p_.B) *
                  static_cast<size_t>(p_.Hkv));
    for (size_t i = 0; i < parts_.size(); ++i) {
      const auto head = static_cast<int64_t>(i) / chunks_;
      const int first = static_cast<int>(static_cast<int64_t>(i) % chunks_) * blocks_;
      parts_[i] = make_part(head, first, first + blocks_, runtime);
    }
  }

  int count() const { return chunks_; }
  int blocks() const { return blocks_; }
  /// So many blocks are added up before their sum is added to that of others: as one chain, a long
  /// sum would lose digits.
  int blocks_in_sum() const { return blocks_in_sum_; }

  /// Memory for the blocks [first, end) of a head of keys, and what they add there.
  Part make_part(int64_t head, int first, int end, Runtime& runtime) const {
    Part part;
    set_reached(head, first, end, part);
    part.memory = runtime.allocate(static_cast<size_t>(numbers(part)) * sizeof(T));
    return part;
  }
  KeyGradients<T> cleared(const Part& part) const {
    if (numbers(part) > 0) clear(static_cast<T*>(part.memory.get()), numbers(part));
    return rows(part);
  }

  /// Where chunk `chunk` of head b * Hkv + hkv adds; its memory is cleared here, by its owner.
  KeyGradients<T> target(int64_t head, int chunk) const {
    if (chunks_ == 1) return whole(head);
    return cleared(part(head, chunk));
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

  /// Of the queries [begin, end) of a head, from the first to the last key that they reach.
  Segments reached(int b, int h, int64_t begin, int64_t end) const {
    Segments segments;
    reach(plan_.m.mask,
          {b, h, static_cast<int>(begin), static_cast<int>(std::min<int64_t>(p_.L, end)), p_.S},
          segments);
    return segments;
  }

  /// From the first to the last key that the blocks reach, of any head that shares the keys.
  void set_reached(int64_t head, int first, int end, Part& part) const {
    const int b = static_cast<int>(head / p_.Hkv), hkv = static_cast<int>(head % p_.Hkv);
    const int64_t rows = int64_t{plan_.tiling.lanes} * plan_.stride();
    for (int h = hkv * p_.group(); h < (hkv + 1) * p_.group(); ++h) {
      const auto segments = reached(b, h, first * rows, end * rows);
      if (segments.empty()) continue;
      part.begin =
          part.end == 0 ? segments.front().begin : std::min(part.begin, segments.front().begin);
      part.end = std::max(part.end, segments.back().end);
    }
  }

  /// On average, as far as a block in the middle tells.
  int64_t blocks_met_by_key() const {
    const int64_t rows = int64_t{plan_.tiling.lanes} * plan_.stride(), middle = p_.L / 2;
    int64_t keys = 0;
    for (const auto& s : reached(0, 0, middle, middle + rows)) keys += s.end - s.begin;
    return keys * blocks_ / p_.S;
  }

  int64_t numbers(const Part& part) const { return int64_t{part.end - part.begin} * (d_ + dv_); }

  static constexpr int kBlocksInSum = 64;

  const Plan<T>& plan_;
  const Problem<T>& p_;
  const Gradients<T>& g_;
  int d_, dv_, blocks_ = 0, chunks_ = 0, blocks_in_sum_ = 0;
  std::vector<Part> parts_;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
