#pragma once
/// \file
/// What a mechanism attends with: queries, keys and values by heads, and where they stand.

#include <attzoo/core/documents.hpp>
#include <attzoo/functional/result.hpp>
#include <attzoo/module/row_buffer.hpp>

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

namespace attzoo {

namespace core {

/// Where the tokens of a call with a cache stand, and which keys it still has.
struct Past {
  int64_t offset = 0;    ///< tokens in the cache before this call
  int64_t capacity = 0;  ///< of the cache
  /// int64 [B, L] of the new tokens; undefined: offset, offset + 1 ...
  torch::Tensor positions = {};
  torch::Tensor padding = {};  ///< int64 [B], tokens before the first real one; undefined: none
  RowNumbers keys = {};        ///< which tokens the keys are
  torch::Tensor real = {};     ///< bool [B, S], keys that may be attended to; undefined: all
  torch::Tensor global = {};   ///< bool [1 or B, S], keys that are global tokens; undefined: none
  std::optional<torch::ScalarType> dtype = std::nullopt;  ///< of the output
  std::shared_ptr<const int64_t> changes = nullptr;       ///< of the cache, counted
  int64_t seen = 0;                                       ///< the number of them at this call

  /// The places of the keys in their sequences, negative ones of padding: int64 [1 or B, S].
  torch::Tensor places() const {
    const auto token = keys.tensor().unsqueeze(0);
    return padding.defined() ? token - padding.unsqueeze(1) : token;
  }
  /// Weights that are read before the cache changes: its keys do not stay.
  LazyWeights guard(LazyWeights weights) const {
    auto sizes = weights.sizes().vec();
    return {std::move(sizes),
            [weights = std::move(weights), now = changes, then = seen](int64_t begin, int64_t end) {
              TORCH_CHECK_VALUE(*now == then,
                                "LazyWeights: the cache has gone on since, and these weights need "
                                "the keys that it had; read them before its next call: "
                                "torch::Tensor w = result.weights;");
              return weights.rows(begin, end);
            }};
  }
};

/// Where the tokens of a call stand: in which documents, and behind which of a cache.
struct CallPlaces {
  Packing packing = {};
  std::optional<Past> past = std::nullopt;
};

}  // namespace core

/// Queries, keys and values split into heads: [B, H, L, dh], [B, Hkv, S, dh], [B, Hkv, S, dh], the
/// documents that they belong to, with a cache what it says, and what multiplies the output
/// [B, H, L, dh] if it is gated.
struct Heads {
  torch::Tensor q = {}, k = {}, v = {};
  core::Packing packing = {};
  std::optional<core::Past> past = std::nullopt;
  torch::Tensor gate = {};
};

}  // namespace attzoo
