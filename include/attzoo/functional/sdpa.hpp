#pragma once
/// \file
/// PyTorch's functional entry point: tensors of any rank, a mask as a tensor.

#include <attzoo/functional/attention.hpp>

namespace attzoo {

/// Options of `scaled_dot_product_attention`.
struct ScaledDotProductOptions {
  /// bool (true = attend) or floating (added); broadcast against the scores.
  torch::Tensor mask = {};
  double dropout = 0.0;      ///< probability in [0, 1] of dropping a weight
  double temperature = 1.0;  ///< divides the scores, > 0
};

namespace core {

struct ScaledDotProductAttention {
  AttentionResult operator()(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const ScaledDotProductOptions& options = {}) const;
};

}  // namespace core

/// softmax(q k^T / (sqrt(D) * temperature) + mask) v on tensors of any rank >= 2, whose leading
/// dimensions broadcast: q [..., L, D], k [..., S, D], v [..., S, Dv] -> output [..., L, Dv],
/// weights [..., L, S], lse [..., L].
/// Throws c10::Error on shapes that do not broadcast, integer masks and otherwise as attention().
/// Example: `scaled_dot_product_attention(q, k, v, {.temperature = 2.0})`. (An object, not a
/// function, lest ATen's function of this name be found by its arguments too.)
inline constexpr core::ScaledDotProductAttention scaled_dot_product_attention{};

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/functional/checks.hpp>

#include <ATen/ExpandUtils.h>

#include <cmath>
#include <initializer_list>
#include <vector>

namespace attzoo::core {

ATTZOO_API AttentionResult ScaledDotProductAttention::operator()(
    const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
    const ScaledDotProductOptions& options) const {
  constexpr const char* kName = "scaled_dot_product_attention";
  check_dropout(kName, options.dropout);
  check_qkv(kName, q, k, v, QkvForm::kAnyRank);
  const int64_t L = q.size(-2), S = k.size(-2), D = q.size(-1), Dv = v.size(-1);
  const double scale = 1.0 / (std::sqrt(static_cast<double>(D)) * options.temperature);
  TORCH_CHECK_VALUE(
      options.temperature > 0 && std::isfinite(options.temperature) && is_valid_scale(scale, q),
      kName,
      ": temperature must be > 0 and finite, and 1 / (sqrt(D) * temperature) at "
      "most 1e30 (float64: 1e300), got ",
      options.temperature);
  const auto leading = [](const torch::Tensor& t) {
    return t.sizes().slice(0, t.sizes().size() - 2);
  };
  TORCH_CHECK_VALUE(at::are_expandable(leading(q), leading(k)) &&
                        at::are_expandable(leading(q), leading(v)) &&
                        at::are_expandable(leading(k), leading(v)),
                    kName, ": the leading dimensions of q, k and v must broadcast, got ", q.sizes(),
                    ", ", k.sizes(), ", ", v.sizes());
  const auto lead = at::infer_size(at::infer_size(leading(q), leading(k)), leading(v));
  const auto with_tail = [&lead](std::initializer_list<int64_t> tail) {
    std::vector<int64_t> sizes(lead.begin(), lead.end());
    sizes.insert(sizes.end(), tail);
    return sizes;
  };
  for (const auto& sizes : {with_tail({L, D}), with_tail({S, D}), with_tail({S, Dv}),
                            with_tail({L, Dv}), with_tail({L, S})}) {
    TORCH_CHECK_VALUE(
        product_at_most(sizes, kMostElements), kName,
        ": too many elements for 64-bit numbers when broadcast: ", torch::IntArrayRef(sizes));
  }
  // The core's rank is 4: [leading dimensions, 1, length, features].
  const auto rank4 = [&](const torch::Tensor& t, int64_t rows, int64_t columns) {
    return t.expand(with_tail({rows, columns}))
        .reshape({c10::multiply_integers(lead), 1, rows, columns});
  };
  MaskAndBias said;
  if (options.mask.defined()) {
    check_dense(options.mask, kName, "mask");
    TORCH_CHECK_TYPE(options.mask.scalar_type() == torch::kBool ||
                         is_supported_float(options.mask.scalar_type()),
                     kName, ": mask must be bool (true = attend) or floating (added), got ",
                     options.mask.scalar_type(), "; for a 0/1 mask pass mask.to(torch::kBool)");
    TORCH_CHECK_VALUE(options.mask.device() == q.device(), kName, ": mask must be on q's device ",
                      q.device(), ", got ", options.mask.device());
    const auto scores = with_tail({L, S});
    TORCH_CHECK_VALUE(at::is_expandable_to(options.mask.sizes(), scores), kName,
                      ": mask must broadcast to the scores' shape ", torch::IntArrayRef(scores),
                      ", got ", options.mask.sizes());
    said = mask_and_bias(rank4(options.mask, L, S));
  }
  const auto r = attention(rank4(q, L, D), rank4(k, S, D), rank4(v, S, Dv), said.mask, said.bias,
                           {.scale = scale, .dropout = options.dropout}, /*private_qk=*/false);
  return {r.output.reshape(with_tail({L, Dv})),
          LazyWeights(with_tail({L, S}),
                      [lead, S, weights = r.weights](int64_t begin, int64_t end) {
                        std::vector<int64_t> sizes(lead.begin(), lead.end());
                        sizes.insert(sizes.end(), {end - begin, S});
                        return weights.rows(begin, end).reshape(sizes);
                      }),
          r.lse.reshape(with_tail({L}))};
}

}  // namespace attzoo::core

#endif
