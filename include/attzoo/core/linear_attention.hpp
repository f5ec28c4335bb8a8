#pragma once
/// \file
/// Linear attention without softmax: sums of (q_i . k_j) v_j over all keys, or over the earlier
/// ones. The sums grow with the length, beyond float16's 65504: callers pass float32 or float64.

#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/documents.hpp>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include <attzoo/kernel/scan.hpp>

namespace attzoo::core {

/// The scan by tensor operations, for other devices: within chunks by scores, from the chunks
/// before by the running sum of their k^T v. O(n F E) time, O(n F E / chunk) memory.
inline torch::Tensor scan_by_chunks(const torch::Tensor& q, const torch::Tensor& k,
                                    const torch::Tensor& v, bool reverse) {
  constexpr int64_t kChunk = 128;
  const int64_t n = q.size(2), chunks = (n + kChunk - 1) / kChunk;
  const auto split = [&](const torch::Tensor& t) {  // [B, H, chunks, kChunk, features]
    return torch::constant_pad_nd(t, {0, 0, 0, chunks * kChunk - n}).unflatten(2, {chunks, kChunk});
  };
  const auto qc = split(q), kc = split(k), vc = split(v);
  auto scores = torch::matmul(qc, kc.transpose(-2, -1));
  scores = reverse ? scores.triu() : scores.tril();
  auto sums = torch::matmul(kc.transpose(-2, -1), vc);  // [B, H, chunks, F, E]
  if (reverse) sums = sums.flip(2);
  // The chunks before, moved on by one: nothing is added and taken away again.
  auto before = torch::constant_pad_nd(sums.slice(2, 0, chunks - 1), {0, 0, 0, 0, 1, 0}).cumsum(2);
  if (reverse) before = before.flip(2);
  return (torch::matmul(scores, vc) + torch::matmul(qc, before)).flatten(2, 3).slice(2, 0, n);
}

inline torch::Tensor scan_forward(const torch::Tensor& any_q, const torch::Tensor& any_k,
                                  const torch::Tensor& any_v, bool reverse) {
  const auto q = plain(any_q), k = plain(any_k), v = plain(any_v);
  if (q.numel() == 0 || v.numel() == 0) {
    return torch::zeros({q.size(0), q.size(1), q.size(2), v.size(3)}, v.options());
  }
  if (q.device().is_cpu()) {
    auto out = empty_as(q, v.size(3), v.scalar_type());
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    const kernel::ScanProblem p{view(q),         view(k),         view(v),         view(out),
                                size(q.size(0)), size(q.size(1)), size(q.size(2)), size(q.size(3)),
                                size(v.size(3)), reverse};
    with_compute_type(q, [&]<class T>(T) {
      TorchRuntime runtime;
      kernel::scan<T>(p, runtime);
    });
    return out;
  }
  return scan_by_chunks(q, k, v, reverse);
}

/// out_i = sum over j <= i of (q_i . k_j) v_j; reverse: over j >= i. q, k [B, H, n, F],
/// v [B, H, n, E] -> [B, H, n, E]. Each gradient is such a sum again, so that derivatives of any
/// order run fused:  dq = scan(dO, v, k),  dk = reversed scan(v, dO, q),  dv = reversed
/// scan(k, q, dO).
struct CausalScan : torch::autograd::Function<CausalScan> {
  static torch::Tensor forward(torch::autograd::AutogradContext* ctx, const torch::Tensor& q,
                               const torch::Tensor& k, const torch::Tensor& v, bool reverse) {
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["reverse"] = reverse;
    return scan_forward(q, k, v, reverse);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &grad = grads[0];
    const bool reverse = ctx->saved_data["reverse"].toBool();
    return {apply(grad, v, k, reverse), apply(v, grad, q, !reverse), apply(k, q, grad, !reverse),
            torch::Tensor()};
  }
};

/// Values and normaliser [B, H, L, E], [B, H, L]: what each query collects of q [B, H, L, F],
/// k [B, H, S, F], v [B, H, S, E]. Causal aligns the last query with the last key.
struct LinearSums {
  torch::Tensor values, normalizer;
};
inline LinearSums linear_sums(const torch::Tensor& q, torch::Tensor k, torch::Tensor v,
                              bool causal) {
  const auto all = [&q](const torch::Tensor& keys, const torch::Tensor& vals) {
    return LinearSums{torch::matmul(q, torch::matmul(keys.transpose(-2, -1), vals)),
                      torch::matmul(q, keys.sum(2).unsqueeze(-1)).squeeze(-1)};
  };
  if (!causal) return all(k, v);
  const int64_t extra = k.size(2) - q.size(2);
  if (extra < 0) {  // the first queries see nothing: keys of zeros before the first
    k = torch::constant_pad_nd(k, {0, 0, -extra, 0});
    v = torch::constant_pad_nd(v, {0, 0, -extra, 0});
  }
  const int64_t from = std::max<int64_t>(extra, 0);
  const auto own = k.slice(2, from), own_v = v.slice(2, from);
  LinearSums sums{CausalScan::apply(q, own, own_v, false), (q * own.cumsum(2)).sum(-1)};
  if (extra > 0) {  // what all queries see
    const auto head = all(k.slice(2, 0, extra), v.slice(2, 0, extra));
    sums = {sums.values + head.values, sums.normalizer + head.normalizer};
  }
  return sums;
}

/// The same within every document of a packed batch, one after another.
inline LinearSums packed_linear_sums(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, bool causal, const Packing& packing) {
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

}  // namespace attzoo::core
