#pragma once
/// \file
/// Packed batches: several documents one after another in a row, each of which sees itself alone.

#include <attzoo/core/checks.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace attzoo {

/// Which tokens of a packed batch belong together, in one of two forms: `{.offsets = t}` or
/// `{.ids = t}`.
struct Documents {
  /// Integers [n + 1]: 0, then the end of each document, the last of them S; the same in all
  /// sequences of the batch.
  torch::Tensor offsets = {};
  /// Integers [S] or [B, S]: tokens with equal numbers are one document.
  torch::Tensor ids = {};

  bool defined() const { return offsets.defined() || ids.defined(); }
};

}  // namespace attzoo

namespace attzoo::core {

/// Throws c10::Error unless exactly one form is given, in integers that can be read here.
ATTZOO_API void check_documents(const Documents& d, std::string_view who);

/// Holds documents that check_documents() has seen against the problem that they meet: on `device`,
/// of S tokens, and L <= S. Throws c10::ValueError.
ATTZOO_API void check_documents_fit(const Documents& d, const Shape& n, const torch::Device& device,
                                    std::string_view who);

/// The document of every position, int64 [1 or B, S]: equal numbers are one document.
ATTZOO_API torch::Tensor document_ids(const Documents& d);

/// What a module knows of a packed batch: every document as a run of tokens. Undefined without one.
struct Packing {
  torch::Tensor run;             ///< int64 [R, S], R = 1 or B: numbered from 0 within each row
  torch::Tensor position;        ///< int64 [R, S]: the place of a token within its document
  std::vector<int64_t> lengths;  ///< of all runs, row after row

  bool defined() const { return run.defined(); }

  /// One value for every document as one for every token: [R, S].
  ATTZOO_API torch::Tensor spread(const std::vector<int64_t>& values) const;
};

/// The runs of documents that check_documents() has seen. Throws c10::ValueError if the tokens of a
/// document do not lie together: its positions would have no meaning.
ATTZOO_API Packing pack(const Documents& d, std::string_view who);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/documents.ipp>
#endif
