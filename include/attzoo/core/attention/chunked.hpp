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

/// The share of all pairs that a mask says it reaches, for 64 queries at a time.
ATTZOO_API double reached(const AnyMask& mask, const Shape& n);

class ChunkedBackend final : public Backend {
 public:
  /// The default is 64 MiB in float32.
  explicit ChunkedBackend(int64_t most_scores = int64_t{1} << 24) : most_scores_(most_scores) {}
  const char* name() const override { return "chunks of query rows"; }
  /// It takes what has more than one chunk, or reaches less than half of all pairs.
  const char* why_not(const Qkv& t, const Call& call) const override;
  OutputAndLse run(const Qkv& t, const Call& call) const override;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const override;

 private:
  /// Made once for a call.
  const std::vector<Chunk>& chunks_of(const Qkv& t, const Call& call) const;

  int64_t most_scores_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

namespace attzoo::core {

/// Which keys some queries reach, by the mask's own account; beyond 32 bits, all.
class Reach {
 public:
  Reach(const AnyMask& mask, const Shape& n) : n_(n) {
    constexpr int64_t kMost = int64_t{1} << 30;  // the schedule's numbers have 32 bits
    known_ = n.L > 0 && n.S > 0 && n.L < kMost && n.S < kMost && product_at_most({n.B, n.H}, kMost);
    if (known_) mask_ = mask.reach(n);
  }
  /// The step at which the keys of a query lie.
  int64_t stride() const { return known_ ? std::max(1, mask_.stride) : 1; }

  /// Disjoint, ascending: the keys of the queries begin, begin + stride, ... before `end`.
  kernel::Segments operator()(int64_t begin, int64_t end) const {
    const auto S = static_cast<int>(n_.S);
    if (!known_) return {{0, S, kernel::Cover::kFull}};
    kernel::Segments all;
    for (int b = 0; b < static_cast<int>(n_.B); ++b) {
      for (int h = 0; h < static_cast<int>(n_.H); ++h) {
        kernel::Segments reached;
        kernel::reach(
            mask_,
            {b, h, static_cast<int>(begin), static_cast<int>(end), S, static_cast<int>(stride())},
            reached);
        all = all.empty() ? reached : kernel::unite(all, reached, S);
      }
    }
    for (auto& s : all) s.cover = kernel::Cover::kPartial;  // so that what touches is one segment
    return kernel::unite(all, {}, S);
  }

  /// How many keys those are.
  int64_t count(int64_t begin, int64_t end) const {
    int64_t keys = 0;
    for (const auto& s : (*this)(begin, end)) keys += s.end - s.begin;
    return keys / stride();
  }

 private:
  Shape n_;
  bool known_ = false;
  kernel::Mask mask_;
};

/// Rows of a chunk: as many as memory allows, but in a sparse pattern not so many that the chunk
/// reaches far more keys than a row does.
ATTZOO_API int64_t chunk_rows(const Reach& reach, const Shape& n, int64_t most_scores) {
  constexpr int64_t kLeast = 16, kSparse = 64;
  const int64_t begin = n.L / 2 / reach.stride() * reach.stride();
  const auto keys = [&](int64_t rows) {
    return reach.count(begin, std::min(n.L, begin + rows * reach.stride()));
  };
  const auto fits = [&](int64_t rows) {
    return product_at_most({n.B, n.H, rows, keys(rows)}, most_scores);
  };
  int64_t rows = kSparse;
  const int64_t few = keys(rows);
  while (rows > kLeast && !fits(rows)) rows /= 2;
  while (rows < n.L && fits(2 * rows) && keys(2 * rows) <= 2 * few) rows *= 2;
  return rows;
}

/// The places of a segment that lie at `residue` modulo the stride.
ATTZOO_API Places places(const kernel::Segment& s, const Chunk& chunk,
                         const torch::Device& device) {
  const int64_t from = chunk.residue - s.begin;
  const int64_t begin = s.begin + (from % chunk.stride + chunk.stride) % chunk.stride;
  return {begin, s.end, device, chunk.stride};
}

ATTZOO_API Places Chunk::columns(const torch::Device& device) const {
  if (keys.empty()) return {0, 0, device};
  if (keys.size() == 1) return places(keys[0], *this, device);
  std::vector<torch::Tensor> list;
  for (const auto& s : keys) list.push_back(places(s, *this, device).index());
  return Places(torch::cat(list));
}

ATTZOO_API int64_t Chunk::pairs() const {
  return rows(torch::kCPU).count() * columns(torch::kCPU).count();
}

/// All of a problem in chunks of so many rows.
ATTZOO_API std::vector<Chunk> in_chunks(const Reach& reach, const Shape& n, int64_t rows) {
  const int64_t stride = reach.stride(), step = rows * stride;
  std::vector<Chunk> all;
  for (int64_t first = 0; first < std::min(stride, n.L); ++first) {  // the queries of one residue
    const int64_t residue = ((first + n.S - n.L) % stride + stride) % stride;
    for (int64_t begin = first; begin < n.L; begin += step) {
      const int64_t end = std::min(n.L, begin + step);
      all.push_back({begin, end, stride, residue, reach(begin, end)});
    }
  }
  return all;
}

ATTZOO_API std::vector<Chunk> chunks(const AnyMask& mask, const Shape& n, int64_t most_scores) {
  const Reach reach(mask, n);
  return in_chunks(reach, n, chunk_rows(reach, n, most_scores));
}

ATTZOO_API double reached(const AnyMask& mask, const Shape& n) {
  double pairs = 0;
  for (const auto& chunk : in_chunks(Reach(mask, n), n, 64)) {
    pairs += static_cast<double>(chunk.pairs());
  }
  return pairs == 0 ? 0 : pairs / (static_cast<double>(n.L) * static_cast<double>(n.S));
}

ATTZOO_API const std::vector<Chunk>& ChunkedBackend::chunks_of(const Qkv& t,
                                                               const Call& call) const {
  if (!call.plan) {
    // A stick is broken by a dozen passes over the scores, which on a CPU had better be in its
    // cache.
    const bool in_cache = call.rule.stick_breaking && t.q.device().is_cpu();
    const auto most = in_cache ? std::min(most_scores_, int64_t{1} << 18) : most_scores_;
    call.plan = std::make_shared<std::vector<Chunk>>(chunks(call.rule.mask, t.shape(), most));
  }
  return *static_cast<const std::vector<Chunk>*>(call.plan.get());
}

ATTZOO_API const char* ChunkedBackend::why_not(const Qkv& t, const Call& call) const {
  const auto& all = chunks_of(t, call);
  if (all.empty()) return "there is nothing to compute";
  if (all.size() == 1 && 2 * all[0].pairs() >= t.q.size(2) * t.k.size(2)) {
    return "one chunk has all rows, and half of all pairs or more";
  }
  return nullptr;
}

ATTZOO_API OutputAndLse attend_rows(const Grid& grid, const Qkv& part, const Rule& rule,
                                    torch::ScalarType dtype) {
  const auto r = grid_weights(grid, part.q, part.k, rule);
  return {weighted_values(r, part.v).to(dtype), r.lse};
}

ATTZOO_API OutputAndLse ChunkedBackend::run(const Qkv& t, const Call& call) const {
  // Whole at once, so that what does not fit is known before anything is computed.
  const auto dtype = call.rule.output_dtype(t.q);
  auto output = torch::empty({t.q.size(0), t.q.size(1), t.q.size(2), t.v.size(3)},
                             t.q.options().dtype(dtype));
  auto lse = torch::empty({t.q.size(0), t.q.size(1), t.q.size(2)},
                          t.q.options().dtype(compute_dtype(t.q)));
  for (const auto& chunk : chunks_of(t, call)) {
    const auto rows = chunk.rows(t.q.device()), columns = chunk.columns(t.q.device());
    const Qkv part{rows.of(t.q, 2), columns.of(t.k, 2), columns.of(t.v, 2)};
    const auto r = attend_rows(Grid(t.shape(), rows, columns), part, call.rule, dtype);
    rows.assign(output, 2, r.output);
    rows.assign(lse, 2, r.lse);
  }
  return {output, lse};
}

ATTZOO_API Gradients ChunkedBackend::run_backward(const Qkv& t, const Call& call,
                                                  const OutputAndLse&,
                                                  const Cotangents& from) const {
  torch::AutoGradMode enable(true);
  const auto dtype = compute_dtype(t.q);
  const auto leaf = [&](const torch::Tensor& x) { return x.detach().to(dtype).requires_grad_(); };
  const auto zeros = [&](const torch::Tensor& x) {
    return torch::zeros(x.sizes(), x.options().dtype(dtype));
  };
  const auto learning = call.learning();
  Gradients sums{zeros(t.q), zeros(t.k), zeros(t.v), std::vector<torch::Tensor>(learning.size())};
  for (const auto& chunk : chunks_of(t, call)) {
    const auto rows = chunk.rows(t.q.device()), columns = chunk.columns(t.q.device());
    torch::autograd::variable_list inputs{leaf(rows.of(t.q, 2)), leaf(columns.of(t.k, 2)),
                                          leaf(columns.of(t.v, 2))};
    const auto r = attend_rows(Grid(t.shape(), rows, columns), {inputs[0], inputs[1], inputs[2]},
                               call.rule, call.rule.output_dtype(t.q));
    inputs.insert(inputs.end(), learning.begin(), learning.end());
    torch::autograd::variable_list outputs, cotangents;
    if (from.output.defined()) {
      outputs.push_back(r.output);
      cotangents.push_back(rows.of(from.output, 2));
    }
    if (from.lse.defined() && r.lse.requires_grad()) {  // scores may ignore q k^T
      outputs.push_back(r.lse);
      cotangents.push_back(rows.of(from.lse, 2));
    }
    if (outputs.empty()) continue;
    const auto grads = torch::autograd::grad(outputs, inputs, cotangents, std::nullopt, false,
                                             /*allow_unused=*/true);
    torch::NoGradGuard no_grad;
    if (grads[0].defined()) rows.add(sums.q, 2, grads[0]);
    if (grads[1].defined()) columns.add(sums.k, 2, grads[1]);
    if (grads[2].defined()) columns.add(sums.v, 2, grads[2]);
    for (size_t i = 0; i < learning.size(); ++i) {
      if (!grads[i + 3].defined()) continue;
      sums.learning[i] =
          sums.learning[i].defined() ? sums.learning[i] + grads[i + 3] : grads[i + 3];
    }
  }
  return {sums.q.to(t.q.scalar_type()), sums.k.to(t.k.scalar_type()), sums.v.to(t.v.scalar_type()),
          sums.learning};
}

}  // namespace attzoo::core

#endif
