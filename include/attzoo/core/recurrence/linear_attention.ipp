#pragma once

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/scan.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo::core {

// Within chunks by scores, from the chunks before by the running sum of their k^T v.
ATTZOO_API torch::Tensor scan_by_chunks(const torch::Tensor& q, const torch::Tensor& k,
                                        const torch::Tensor& v, bool reverse) {
  constexpr int64_t kChunk = 128;
  const int64_t n = q.size(2), chunks = (n + kChunk - 1) / kChunk;
  const auto split = [&](const torch::Tensor& t) {  // [B, H, chunks, kChunk, features]
    return torch::constant_pad_nd(t, {0, 0, 0, chunks * kChunk - n}).unflatten(2, {chunks, kChunk});
  };
  const auto qc = split(q), kc = split(k), vc = split(v);
  const auto square = torch::ones({kChunk, kChunk}, q.options().dtype(torch::kBool));
  const auto visible = reverse ? square.triu() : square.tril();
  const auto flat = [](const torch::Tensor& t) { return t.flatten(1, 2); };  // chunks are heads
  const auto near = sum_over_pairs(pair_products(flat(qc), flat(kc), visible), flat(vc), visible)
                        .unflatten(1, {q.size(1), chunks});
  auto sums = torch::matmul(kc.transpose(-2, -1), vc);  // [B, H, chunks, F, E]
  if (reverse) sums = sums.flip(2);
  // The chunks before, moved on by one: nothing is added and taken away again.
  auto before = torch::constant_pad_nd(sums.slice(2, 0, chunks - 1), {0, 0, 0, 0, 1, 0}).cumsum(2);
  if (reverse) before = before.flip(2);
  return (near + torch::matmul(qc, before)).flatten(2, 3).slice(2, 0, n);
}

/// By the first backend that takes it, else by tensor operations.
ATTZOO_API torch::Tensor scan_forward(const torch::Tensor& any_q, const torch::Tensor& any_k,
                                      const torch::Tensor& any_v, bool reverse) {
  const auto q = plain(any_q), k = plain(any_k), v = plain(any_v);
  if (q.numel() == 0 || v.numel() == 0) {
    return torch::zeros({q.size(0), q.size(1), q.size(2), v.size(3)}, v.options());
  }
  static const CpuScan cpu;
  const std::array<const ScanBackend*, 1> in_order{&cpu};
  const auto* backend = choose(in_order, q, v);
  return backend ? backend->run(q, k, v, reverse) : scan_by_chunks(q, k, v, reverse);
}

/// Each gradient is such a sum again, so that derivatives of any order run fused:
/// ```
/// dq = scan(dO, v, k)    dk = reversed scan(v, dO, q)    dv = reversed scan(k, q, dO)
/// ```
class CausalScan final : public Differentiable {
 public:
  explicit CausalScan(bool reverse) : reverse_(reverse) {}

  Tensors forward(const Tensors& x) override { return {scan_forward(x[0], x[1], x[2], reverse_)}; }

  Tensors backward(const Tensors& x, const Tensors& grads) override {
    const auto &q = x[0], &k = x[1], &v = x[2], &grad = grads[0];
    if (!grad.defined()) return Tensors(3);
    return {causal_scan(grad, v, k, reverse_), causal_scan(v, grad, q, !reverse_),
            causal_scan(k, q, grad, !reverse_)};
  }

 private:
  bool reverse_;
};

ATTZOO_API torch::Tensor causal_scan(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, bool reverse) {
  return differentiable(c10::make_intrusive<CausalScan>(reverse), {q, k, v})[0];
}

/// Which pairs of the query rows [begin, end) attend: bool [1 or B, 1, end - begin, S].
ATTZOO_API torch::Tensor linear_pairs(const torch::Tensor& q, const torch::Tensor& k, bool causal,
                                      const torch::Tensor& run, int64_t begin, int64_t end) {
  auto visible = torch::ones({1, 1, end - begin, k.size(2)}, q.options().dtype(torch::kBool));
  if (causal) visible = visible.tril(begin + k.size(2) - q.size(2));
  if (!run.defined()) return visible;
  const auto same = run.slice(1, begin, end).unsqueeze(2) == run.unsqueeze(1);
  return torch::logical_and(visible, same.unsqueeze(1));
}

ATTZOO_API torch::Tensor linear_scores(const torch::Tensor& q, const torch::Tensor& k, bool causal,
                                       const torch::Tensor& run, int64_t begin, int64_t end) {
  return pair_products(q.slice(2, begin, end), k, linear_pairs(q, k, causal, run, begin, end));
}

/// Everything n x n.
ATTZOO_API LinearSums sums_by_definition(const torch::Tensor& q, const torch::Tensor& k,
                                         const torch::Tensor& v, bool causal,
                                         const torch::Tensor& run) {
  const auto visible = linear_pairs(q, k, causal, run, 0, q.size(2));
  const auto s = pair_products(q, k, visible);
  return {sum_over_pairs(s, v, visible), s.sum(-1)};
}

/// Every query collects every key.
ATTZOO_API LinearSums sums_over_all(const torch::Tensor& q, const torch::Tensor& k,
                                    const torch::Tensor& v) {
  const auto keys = k.transpose(-2, -1);
  if (q.size(2) == 1) {  // as in decoding: two products with vectors
    const auto scores = torch::matmul(q, keys);
    return {torch::matmul(scores, v), scores.sum(-1)};
  }
  return {torch::matmul(q, torch::matmul(keys, v)),
          torch::matmul(q, k.sum(2).unsqueeze(-1)).squeeze(-1)};
}

ATTZOO_API LinearSums linear_sums(const torch::Tensor& q, const torch::Tensor& k,
                                  const torch::Tensor& v, bool causal) {
  if (eager_reference()) return sums_by_definition(q, k, v, causal, {});
  const int64_t extra = k.size(2) - q.size(2), from = std::max<int64_t>(extra, 0);
  if (!causal || (q.size(2) == 1 && extra >= 0)) return sums_over_all(q, k, v);
  const auto own_part = [&](const torch::Tensor& t) {
    // Where the first queries see nothing: keys of zeros before the first.
    return extra < 0 ? torch::constant_pad_nd(t, {0, 0, -extra, 0}) : t.slice(2, from);
  };
  const auto own_k = own_part(k), own_v = own_part(v);
  const LinearSums own{causal_scan(q, own_k, own_v, false), (q * own_k.cumsum(2)).sum(-1)};
  if (extra <= 0) return own;
  const auto head = sums_over_all(q, k.slice(2, 0, extra), v.slice(2, 0, extra));
  return {own.values + head.values, own.normalizer + head.normalizer};
}

ATTZOO_API LinearSums linear_sums_after(const LinearState& before, const torch::Tensor& q,
                                        const torch::Tensor& k, const torch::Tensor& v) {
  const auto near = linear_sums(q, k, v, /*causal=*/true);
  if (!before.kv.defined()) return near;
  return {near.values + torch::matmul(q, before.kv),
          near.normalizer + torch::matmul(q, before.k.unsqueeze(-1)).squeeze(-1)};
}

ATTZOO_API LinearState state_after(const LinearState& before, const torch::Tensor& k,
                                   const torch::Tensor& v) {
  const LinearState more{torch::matmul(k.transpose(-2, -1), v), k.sum(2)};
  if (!before.kv.defined()) return more;
  return {before.kv + more.kv, before.k + more.k};
}

ATTZOO_API LinearSums packed_linear_sums(const torch::Tensor& q, const torch::Tensor& k,
                                         const torch::Tensor& v, bool causal,
                                         const Packing& packing) {
  if (eager_reference()) return sums_by_definition(q, k, v, causal, packing.run);
  if (q.numel() == 0) return linear_sums(q, k, v, causal);
  // Where each sequence has documents of its own, all sequences are one long row of documents.
  const bool one_row = packing.run.size(0) == 1;
  const int64_t B = q.size(0), S = q.size(2);
  const auto split = [&](const torch::Tensor& t) {  // [B, H, S, F] -> [1, H, B * S, F], by document
    const auto row = one_row ? t : t.transpose(0, 1).flatten(1, 2).unsqueeze(0);
    return row.split_with_sizes(packing.lengths, 2);
  };
  const auto join = [&](const std::vector<torch::Tensor>& parts) {
    const auto row = torch::cat(parts, 2);
    return one_row ? row : row.squeeze(0).unflatten(1, {B, S}).transpose(0, 1);
  };
  const auto qs = split(q), ks = split(k), vs = split(v);
  std::vector<torch::Tensor> values, normalizers;
  for (size_t d = 0; d < qs.size(); ++d) {
    auto sums = linear_sums(qs[d], ks[d], vs[d], causal);
    values.push_back(std::move(sums.values));
    normalizers.push_back(std::move(sums.normalizer));
  }
  return {join(values), join(normalizers)};
}

ATTZOO_API torch::Tensor over_normalizer(const torch::Tensor& t, const torch::Tensor& normalizer,
                                         double eps) {
  const auto divisor = normalizer + eps;
  return t / divisor.masked_fill(divisor == 0, std::numeric_limits<double>::infinity());
}

}  // namespace attzoo::core
