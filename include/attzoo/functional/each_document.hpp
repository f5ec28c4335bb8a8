#pragma once
/// \file
/// Attention within each document of a packed batch, one after another.

#include <attzoo/config.hpp>
#include <attzoo/core/documents.hpp>
#include <attzoo/functional/result.hpp>

#include <functional>
#include <vector>

namespace attzoo::core {

/// The result of f for each document by itself, joined; see by_document(). Where `packing` is
/// undefined, f of all. Weights of a document are [1 or B, H, n, n], those between two are 0.
ATTZOO_API AttentionResult
attend_by_document(const Packing& packing, const std::vector<torch::Tensor>& tensors,
                   const std::function<AttentionResult(const std::vector<torch::Tensor>&)>& f);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <algorithm>
#include <utility>

namespace attzoo::core {

/// The weights of all documents, row after row of the batch.
inline LazyWeights join_weights(const Packing& packing, std::vector<LazyWeights> weights,
                                int64_t B) {
  const int64_t rows = packing.run.size(0), S = packing.run.size(1);
  auto sizes = weights[0].sizes().vec();
  sizes[0] = B;
  sizes[2] = sizes[3] = S;
  return {
      sizes, [=, lengths = packing.lengths, of = std::move(weights)](int64_t begin, int64_t end) {
        std::vector<torch::Tensor> batch;
        for (size_t d = 0; batch.size() < static_cast<size_t>(rows);) {
          std::vector<torch::Tensor> parts;
          for (int64_t at = 0; at < S; at += lengths[d++]) {
            const int64_t from = std::max(begin, at), to = std::min(end, at + lengths[d]);
            if (from >= to) continue;
            parts.push_back(
                torch::constant_pad_nd(of[d].rows(from - at, to - at), {at, S - at - lengths[d]}));
          }
          auto shape = sizes;
          shape[0] = rows == 1 ? B : 1;
          shape[2] = 0;
          if (parts.empty()) parts.push_back(of[0].rows(0, 0).new_zeros(shape));
          batch.push_back(torch::cat(parts, 2));
        }
        return torch::cat(batch, 0);
      }};
}

ATTZOO_API AttentionResult
attend_by_document(const Packing& packing, const std::vector<torch::Tensor>& tensors,
                   const std::function<AttentionResult(const std::vector<torch::Tensor>&)>& f) {
  if (!packing.defined() || tensors[0].numel() == 0) return f(tensors);
  std::vector<LazyWeights> weights;
  const auto made = by_document(packing, tensors, [&](const std::vector<torch::Tensor>& own) {
    auto result = f(own);
    weights.push_back(std::move(result.weights));
    std::vector<torch::Tensor> parts{std::move(result.output)};
    if (result.lse.defined()) parts.push_back(std::move(result.lse));
    return parts;
  });
  return {made[0], join_weights(packing, std::move(weights), tensors[0].size(0)),
          made.size() > 1 ? made[1] : torch::Tensor()};
}

}  // namespace attzoo::core

#endif
