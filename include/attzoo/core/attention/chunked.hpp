#pragma once
/// \file
/// Attention by its definition, some query rows at a time against the keys that they reach,
/// recomputed in the backward pass: any device, any modifier. Time and memory follow what the mask
/// says that it reaches: O(n w) for a window w, O(n b) for blocks.

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/kernel/modifier/reach.hpp>

#include <vector>

namespace attzoo::core {

/// The queries begin, begin + stride, ... before `end`, which are computed together, and the keys
/// that one of them reaches: what of `keys` lies at `residue` modulo the stride.
struct Chunk {
  int64_t begin, end, stride, residue;
  kernel::Segments keys;  // disjoint, ascending

  Places rows(const torch::Device& device) const { return {begin, end, device, stride}; }
  Places columns(const torch::Device& device) const;
  /// How many pairs it visits.
  int64_t pairs() const;
};

/// All of a problem; every query lies in one chunk. A chunk has at most `most_scores` scores, all
/// heads together, where 16 rows do.
ATTZOO_API std::vector<Chunk> chunks(const AnyMask& mask, const Shape& n, int64_t most_scores);

class ChunkedBackend final : public Backend {
 public:
  /// The default is 64 MiB in float32.
  explicit ChunkedBackend(int64_t most_scores = int64_t{1} << 24) : most_scores_(most_scores) {}
  /// What has more than one chunk, or reaches less than half of all pairs.
  bool takes(const Qkv& t, const Call& call) const override;
  OutputAndLse run(const Qkv& t, const Call& call) const override;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const override;

 private:
  /// Made once for a call.
  const std::vector<Chunk>& chunks_of(const Qkv& t, const Call& call) const;

  int64_t most_scores_;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/attention/chunked.ipp>
#endif
