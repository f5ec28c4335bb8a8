#pragma once
/// \file
/// Packed batches: several documents one after another in a row, each of which sees itself alone.

#include <attzoo/core/checks.hpp>

#include <cstdint>
#include <functional>
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
  /// int64 [R, S], R = 1 or B: numbered from 0 within each row; undefined for who keeps them apart.
  torch::Tensor run = {};
  torch::Tensor position = {};        ///< int64 [R, S]: the place of a token within its document
  std::vector<int64_t> lengths = {};  ///< of all runs, row after row

  bool defined() const { return position.defined(); }

  /// One value for every document as one for every token: [R, S].
  ATTZOO_API torch::Tensor spread(const std::vector<int64_t>& values) const;
};

/// The runs of documents that check_documents() has seen. Throws c10::ValueError if the tokens of a
/// document do not lie together: its positions would have no meaning.
ATTZOO_API Packing pack(const Documents& d, std::string_view who);

/// Each document by itself: f gets the rows of one in every tensor [B, H, S, ..], as [1 or B, H, n,
/// ..], undefined ones as they are; the tensors of n rows that it gives, joined again.
ATTZOO_API std::vector<torch::Tensor> by_document(
    const Packing& packing, const std::vector<torch::Tensor>& tensors,
    const std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>& f);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

namespace attzoo::core {

/// What to write, for an error where lengths came instead of offsets.
inline const char* if_lengths(bool they_are) {
  return they_are ? "; these look like lengths, whose offsets are "
                    "torch::cat({torch::zeros(1, torch::kInt64), lengths.cumsum(0)})"
                  : "";
}

ATTZOO_API void check_documents(const Documents& d, std::string_view who) {
  TORCH_CHECK_VALUE(d.offsets.defined() != d.ids.defined(), who,
                    ": documents are given either by offsets [n + 1] or by ids [S] or [B, S], got ",
                    d.defined() ? "both" : "neither");
  const bool by_offsets = d.offsets.defined();
  const auto& t = by_offsets ? d.offsets : d.ids;
  const char* name = by_offsets ? "offsets" : "ids";
  check_dense(t, who, name);
  TORCH_CHECK_TYPE(torch::isIntegralType(t.scalar_type(), /*includeBool=*/false), who, ": ", name,
                   " must be integers, got ", t.scalar_type());
  if (!by_offsets) {
    TORCH_CHECK_VALUE(t.dim() == 1 || t.dim() == 2, who,
                      ": ids must have shape [S] or [B, S], got ", t.sizes());
    return;
  }
  TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) >= 1, who,
                    ": offsets must have shape [n + 1] and begin with 0, got shape ", t.sizes());
  const auto ends = t.to(torch::kInt64);
  TORCH_CHECK_VALUE(ends[0].item<int64_t>() == 0, who, ": offsets must begin with 0, got ",
                    ends[0].item<int64_t>(), if_lengths(ends.min().item<int64_t>() >= 0));
  const auto falls = (ends.slice(0, 1) < ends.slice(0, 0, -1)).nonzero().flatten();
  if (falls.numel() == 0) return;
  const auto at = falls[0].item<int64_t>();
  TORCH_CHECK_VALUE(false, who, ": offsets must not decrease, got ", ends[at + 1].item<int64_t>(),
                    " after ", ends[at].item<int64_t>(),
                    if_lengths(ends.min().item<int64_t>() >= 0));
}

ATTZOO_API void check_documents_fit(const Documents& d, const Shape& n, const torch::Device& device,
                                    std::string_view who) {
  const auto& t = d.offsets.defined() ? d.offsets : d.ids;
  TORCH_CHECK_VALUE(t.device() == device, who, ": ", d.offsets.defined() ? "offsets" : "ids",
                    " must be on ", device, ", got ", t.device());
  if (d.offsets.defined()) {
    const auto last = d.offsets[-1].item<int64_t>();
    TORCH_CHECK_VALUE(last == n.S, who, ": the last offset must be S=", n.S, ", got ", last,
                      if_lengths(d.offsets.sum().item<int64_t>() == n.S));
  } else {
    TORCH_CHECK_VALUE(t.size(-1) == n.S && (t.dim() == 1 || t.size(0) == n.B || t.size(0) == 1),
                      who, ": ids must have shape [S] or [B, S] with B=", n.B, " S=", n.S, ", got ",
                      t.sizes());
  }
  TORCH_CHECK_VALUE(n.L <= n.S, who, ": the queries must be the last keys, L <= S, got L=", n.L,
                    " S=", n.S);
}

ATTZOO_API torch::Tensor document_ids(const Documents& d) {
  if (d.ids.defined()) {
    const auto ids = d.ids.to(torch::kInt64);
    return ids.dim() == 1 ? ids.unsqueeze(0) : ids;
  }
  return torch::repeat_interleave(d.offsets.to(torch::kInt64).diff()).unsqueeze(0);
}

ATTZOO_API torch::Tensor Packing::spread(const std::vector<int64_t>& values) const {
  const auto per_run = torch::tensor(values, torch::kInt64), n = torch::tensor(lengths);
  return torch::repeat_interleave(per_run, n).view(run.sizes()).to(run.device());
}

ATTZOO_API Packing pack(const Documents& d, std::string_view who) {
  const auto ids = document_ids(d);
  const int64_t R = ids.size(0), S = ids.size(1);
  if (ids.numel() == 0) return {ids, ids, {}};
  const auto borders = [&](const torch::Tensor& t) {  // [R, S - 1]: another than before
    return t.slice(1, 1) != t.slice(1, 0, S - 1);
  };
  const auto begins =
      torch::cat({torch::ones({R, 1}, ids.options().dtype(torch::kBool)), borders(ids)}, 1);
  const auto run = begins.cumsum(1) - 1;
  const auto different = borders(std::get<0>(ids.sort(1))).sum(1);
  TORCH_CHECK_VALUE(torch::equal(run.select(1, S - 1), different), who,
                    ": the tokens of a document must lie together, got ids that come back after "
                    "other ones; sort the tokens by document");
  const auto place = torch::arange(S, ids.options());
  const auto begin = std::get<0>((place * begins).cummax(1));
  const auto starts = torch::cat(
      {begins.flatten().nonzero().flatten().cpu(), torch::full({1}, R * S, torch::kInt64)});
  const auto lengths = starts.diff().contiguous();
  const auto* data = lengths.const_data_ptr<int64_t>();
  return {run, place - begin, {data, data + lengths.numel()}};
}

ATTZOO_API std::vector<torch::Tensor> by_document(
    const Packing& packing, const std::vector<torch::Tensor>& tensors,
    const std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>& f) {
  // Where each sequence has documents of its own, all sequences are one long row of documents.
  const bool one_row = packing.run.size(0) == 1;
  const int64_t B = tensors[0].size(0), S = tensors[0].size(2);
  const auto runs = packing.lengths.size();
  std::vector<std::vector<torch::Tensor>> split, made;
  for (const auto& t : tensors) {
    if (!t.defined()) {
      split.emplace_back(runs);
      continue;
    }
    const auto row = one_row ? t : t.transpose(0, 1).flatten(1, 2).unsqueeze(0);
    split.push_back(row.split_with_sizes(packing.lengths, 2));
  }
  for (size_t d = 0; d < runs; ++d) {
    std::vector<torch::Tensor> own;
    for (const auto& parts : split) own.push_back(parts[d]);
    auto parts = f(own);
    made.resize(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) made[i].push_back(std::move(parts[i]));
  }
  std::vector<torch::Tensor> joined;
  for (const auto& parts : made) {
    const auto row = torch::cat(parts, 2);
    joined.push_back(one_row ? row : row.squeeze(0).unflatten(1, {B, S}).transpose(0, 1));
  }
  return joined;
}

}  // namespace attzoo::core

#endif
