#pragma once
// Definitions of performer_attention.hpp.

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/favor_by_chunks.hpp>
#include <attzoo/functional/performer_attention.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/linalg_qr.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace attzoo::core {

inline constexpr double kCausalEps = 1e-6;  // added to the sums of features, as performer-pytorch

ATTZOO_API double Favor::ratio() const {
  return relu ? 1 : 1 / std::sqrt(static_cast<double>(projection.size(0)));
}

ATTZOO_API FavorKeys FavorKeys::rows(int64_t begin, int64_t end) const {
  return {features.slice(2, begin, end), top.defined() ? top.slice(2, begin, end) : top};
}

/// P x', and |x'|^2 / 2 with a last dimension of 1.
inline std::pair<torch::Tensor, torch::Tensor> project_rows(const Favor& f,
                                                            const torch::Tensor& x) {
  const auto rows = f.projection.t() * std::sqrt(f.scale);
  return {torch::matmul(x, rows), x.square().sum(-1, /*keepdim=*/true) * (f.scale / 2)};
}
/// t + x, in t's memory unless autograd needs what is there.
inline torch::Tensor plus(torch::Tensor t, double x) {
  return is_recorded({t}) ? t + x : t.add_(x);
}

ATTZOO_API torch::Tensor favor_queries(const Favor& f, const torch::Tensor& q) {
  const auto [projected, half_square] = project_rows(f, q);
  if (f.relu) return torch::relu(projected) + f.eps;
  const auto less = half_square + projected.detach().amax(-1, /*keepdim=*/true);
  return plus(projected.sub_(less - std::log(f.ratio())).exp_(), f.eps * f.ratio());
}

ATTZOO_API FavorKeys favor_keys(const Favor& f, const torch::Tensor& k, const torch::Tensor& real) {
  const auto keep = [&](const torch::Tensor& t, double other) {
    return real.defined() ? torch::where(real, t, torch::full({}, other, t.options())) : t;
  };
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const auto [projected, half_square] = project_rows(f, k);
  if (f.relu) return {keep(torch::relu(projected) + f.eps, 0)};
  const auto top = keep(projected.detach().amax(-1, /*keepdim=*/true), kNone).squeeze(-1);
  return {keep(projected.sub_(half_square), kNone), top};
}

ATTZOO_API torch::Tensor values_and_ones(const torch::Tensor& v, const torch::Tensor& real) {
  auto ones = torch::ones({}, v.options().requires_grad(false));
  if (real.defined()) ones = real.to(v.scalar_type());
  return torch::cat({v, ones.expand({v.size(0), v.size(1), v.size(2), 1})}, -1);
}

/// 0 where there is no key yet.
inline torch::Tensor finite(const torch::Tensor& top) {
  return top.masked_fill(top == -std::numeric_limits<double>::infinity(), 0);
}
inline torch::Tensor first_top(const FavorState& state, const torch::Tensor& like) {
  if (state.top.defined()) return state.top;
  return torch::full({like.size(0), like.size(1), 1}, -std::numeric_limits<double>::infinity(),
                     like.options());
}
/// The largest projection up to each key.
inline torch::Tensor running_top(const torch::Tensor& before, const torch::Tensor& top) {
  return torch::maximum(std::get<0>(top.cummax(2)), before);
}
/// Features, but for eps, of keys that are scaled by `top`: F^(-1/2) exp(logs - top).
inline torch::Tensor scaled(const Favor& f, const torch::Tensor& logs, const torch::Tensor& top) {
  return (logs - (finite(top).unsqueeze(-1) - std::log(f.ratio()))).exp_();
}
/// What eps in each feature of the keys adds to the weights of a query.
inline torch::Tensor of_eps(const Favor& f, const torch::Tensor& q) {
  return q.sum(-1, /*keepdim=*/true) * (f.eps * f.ratio());
}

// The sums are scaled by the largest projection so far: where that grows, what was summed up before
// decays. Without a key before there is nothing that could.
ATTZOO_API torch::Tensor favor_go_on(const Favor& f, FavorState& state, const torch::Tensor& q,
                                     const FavorKeys& k, const torch::Tensor& v1) {
  if (f.relu) {
    const auto y = recur({.q = q, .k = k.features, .v = v1, .state = state.kv});
    state = {y.state};
    return y.out;
  }
  const auto before = first_top(state, k.top), top = running_top(before, k.top);
  const auto last = torch::cat({before, top.slice(2, 0, top.size(2) - 1)}, 2);
  const auto decay = torch::where(last.isinf(), torch::zeros_like(last), last - finite(top));
  const auto y = recur({.q = q,
                        .k = scaled(f, k.features, top),
                        .v = v1,
                        .decay = decay.unsqueeze(-1),
                        .state = state.kv});
  auto sums = v1.cumsum(2);
  if (state.v.defined()) sums = sums + state.v;
  state = {y.state, top.slice(2, top.size(2) - 1), sums.slice(2, sums.size(2) - 1)};
  return y.out + sums * of_eps(f, q);
}

ATTZOO_API FavorState favor_state_after(const Favor& f, const FavorState& before,
                                        const FavorKeys& k, const torch::Tensor& v1) {
  const auto add = [](const torch::Tensor& a, const torch::Tensor& b) {
    return a.defined() ? a + b : b;
  };
  if (f.relu) return {add(before.kv, torch::matmul(k.features.transpose(-2, -1), v1))};
  if (k.top.size(2) == 0 && before.kv.defined()) return before;
  const auto old = first_top(before, k.top);
  const auto top = k.top.size(2) == 0 ? old : torch::maximum(k.top.amax(2, /*keepdim=*/true), old);
  auto kv = torch::matmul(scaled(f, k.features, top).transpose(-2, -1), v1);
  if (before.kv.defined()) kv = kv + before.kv * (finite(old) - finite(top)).exp().unsqueeze(-1);
  return {kv, top, add(before.v, v1.sum(2, /*keepdim=*/true))};
}

ATTZOO_API torch::Tensor favor_output(const torch::Tensor& collected, const torch::Tensor& q) {
  const int64_t E = collected.size(-1) - 1;
  const auto more = q.sum(-1, /*keepdim=*/true) * kCausalEps;
  return over_normalizer(collected.narrow(-1, 0, E), collected.narrow(-1, E, 1) + more, 0);
}

/// One document's keys, as the weights need them.
struct FavorParts {
  torch::Tensor out, keys, top;
};

inline FavorParts favor_by_all_keys(const Favor& f, const torch::Tensor& q, const FavorKeys& k,
                                    const torch::Tensor& v1, const torch::Tensor& real,
                                    bool causal) {
  auto features = k.features;
  if (k.top.defined()) {
    const bool none = k.top.size(2) == 0;
    const auto top = none ? first_top({}, k.top) : k.top.amax(2, /*keepdim=*/true);
    features = plus(scaled(f, features, top), f.eps * f.ratio());
    if (real.defined()) features = features.masked_fill(real.logical_not(), 0);
  }
  const auto sums = linear_sums(q, features, v1.slice(-1, 0, v1.size(-1) - 1), causal, {});
  auto normalizer = sums.normalizer.unsqueeze(-1);
  if (causal) normalizer = normalizer + q.sum(-1, /*keepdim=*/true) * kCausalEps;
  return {over_normalizer(sums.values, normalizer, 0), features, {}};
}

/// The last query stands at the last key, and what is scaled is the largest so far.
inline FavorParts favor_by_running_max(const Favor& f, torch::Tensor q, FavorKeys k,
                                       torch::Tensor v1) {
  const int64_t L = q.size(2), S = v1.size(2), extra = S - L;
  FavorState state;
  const auto all_q = q;
  FavorParts parts{{}, k.features, {}};
  if (k.top.defined()) {
    parts.top = running_top(first_top({}, k.top), k.top);
    parts.keys = scaled(f, k.features, parts.top);
  }
  if (extra > 0) {
    state = favor_state_after(f, {}, k.rows(0, extra), v1.slice(2, 0, extra));
    k = k.rows(extra, S);
    v1 = v1.slice(2, extra);
  } else {
    q = q.slice(2, -extra);  // the first queries see nothing
  }
  auto sums = q.size(2) == 0 ? torch::zeros({q.size(0), q.size(1), 0, v1.size(3)}, q.options())
                             : favor_go_on(f, state, q, k, v1);
  if (extra < 0) sums = torch::constant_pad_nd(sums, {0, 0, -extra, 0});
  parts.out = favor_output(sums, all_q);
  return parts;
}

/// Rows of the weights: products of features, where the keys before the largest projection so far
/// have faded.
inline LazyWeights favor_weights(const Favor& f, const torch::Tensor& q, const FavorParts& k,
                                 const torch::Tensor& real, const torch::Tensor& run, bool causal,
                                 torch::ScalarType dtype) {
  return {{q.size(0), q.size(1), q.size(2), k.keys.size(2)},
          [f, q, k, real, run, causal, dtype](int64_t begin, int64_t end) {
            const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
            auto s = linear_scores(q, k.keys, causal, run, begin, end);
            const auto rows = q.slice(2, begin, end);
            if (k.top.defined()) {
              const int64_t extra = k.keys.size(2) - q.size(2);
              const auto at =
                  torch::arange(begin + extra, end + extra,
                                run.defined() ? run.options() : q.options().dtype(torch::kInt64));
              const auto top = finite(k.top);
              const auto own = top.index_select(2, at.clamp_min(0)).unsqueeze(-1);
              s = s * (top.unsqueeze(2) - own).clamp_max(0).exp();
              const auto ones = torch::ones_like(k.keys.narrow(-1, 0, 1));
              auto floor =
                  linear_scores(torch::ones_like(q.narrow(-1, 0, 1)),
                                real.defined() ? ones * real : ones, causal, run, begin, end);
              s = s + floor * of_eps(f, rows);
            }
            auto sum = s.sum(-1, /*keepdim=*/true);
            if (causal) sum = sum + rows.sum(-1, /*keepdim=*/true) * kCausalEps;
            return over_normalizer(s, sum, 0).to(dtype);
          }};
}

/// By operators on all tokens at once; k and v are zeros where a key is not `real` [B, 1, S, 1].
inline AttentionResult favor_by_tensors(const Favor& f, const torch::Tensor& q_in,
                                        const torch::Tensor& k, const torch::Tensor& v1,
                                        bool causal, bool max_of_all_keys,
                                        const torch::Tensor& real, const Packing& packing,
                                        torch::ScalarType dtype) {
  const auto q = favor_queries(f, q_in);
  const auto keys = favor_keys(f, k, real);
  const bool by_all = !causal || max_of_all_keys || f.relu;
  const auto one = [&](const std::vector<torch::Tensor>& t) {
    const FavorKeys own{t[1], t[2].defined() ? t[2].squeeze(-1) : t[2]};
    const auto parts = by_all ? favor_by_all_keys(f, t[0], own, t[3], t[4], causal)
                              : favor_by_running_max(f, t[0], own, t[3]);
    std::vector<torch::Tensor> made{parts.out, parts.keys};
    if (parts.top.defined()) made.push_back(parts.top.unsqueeze(-1));
    return made;
  };
  const auto top = keys.top.defined() ? keys.top.unsqueeze(-1) : keys.top;
  const std::vector<torch::Tensor> all{q, keys.features, top, v1, real};
  const bool packed = packing.run.defined() && q.numel() > 0;
  const auto made = packed ? by_document(packing, all, one) : one(all);
  const FavorParts parts{made[0], made[1], made.size() > 2 ? made[2].squeeze(-1) : torch::Tensor()};
  return {parts.out, favor_weights(f, q, parts, real, packing.run, causal, dtype), {}};
}

ATTZOO_API AttentionResult favor_attention(const Favor& f, const torch::Tensor& q,
                                           const torch::Tensor& k_in, const torch::Tensor& v_in,
                                           bool causal, bool max_of_all_keys,
                                           const torch::Tensor& real_in, const Packing& packing,
                                           torch::ScalarType dtype, const Unchanged& read) {
  auto k = k_in, v = v_in;
  torch::Tensor real;
  if (real_in.defined()) {
    leave_out(real_in, k, v);
    real = real_in.unsqueeze(1).unsqueeze(-1).expand({k.size(0), 1, -1, 1});
  }
  const auto v1 = values_and_ones(v, real);
  const Tensors inputs{q, k, v1};
  const bool has_tangents = std::any_of(
      inputs.begin(), inputs.end(), [](const torch::Tensor& t) { return t._fw_grad(0).defined(); });
  const bool by_chunks = !causal && !f.relu && !packing.run.defined() && q.device().is_cpu() &&
                         q.numel() > 0 && k.numel() > 0 && !has_tangents && !eager_reference();
  if (!by_chunks) {
    return favor_by_tensors(f, q, k, v1, causal, max_of_all_keys, real, packing, dtype);
  }
  auto own = f;
  own.projection = f.projection.clone();  // others may be drawn in its place
  const auto by_tensors = [=](const Tensors& x) {
    return favor_by_tensors(own, x[0], x[1], x[2], causal, max_of_all_keys, real, packing, dtype);
  };
  const auto output = differentiable(
      c10::make_intrusive<FavorByChunks>(f.projection, f.scale, f.eps, real,
                                         [=](const Tensors& x) { return by_tensors(x).output; }),
      inputs)[0];
  return {output,
          {{q.size(0), q.size(1), q.size(2), k.size(2)},
           [=](int64_t begin, int64_t end) {
             read.check("LazyWeights");
             const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
             return by_tensors(inputs).weights.rows(begin, end);
           }},
          {}};
}

/// Throws unless P fits q.
ATTZOO_API void check_projection(const torch::Tensor& p, const torch::Tensor& q) {
  constexpr const char* kName = "performer_attention";
  check_floating(p, kName, "projection");
  TORCH_CHECK_VALUE(p.dim() == 2 && p.size(0) > 0 && p.size(1) == q.size(3), kName,
                    ": projection must have shape [F, D=", q.size(3), "], got ", p.sizes());
  TORCH_CHECK_VALUE(p.device() == q.device(), kName, ": projection must be on q's device ",
                    q.device(), ", got ", p.device());
}

ATTZOO_API Packing check_performer_options(const torch::Tensor& q, const torch::Tensor& k,
                                           const PerformerAttentionOptions& options) {
  constexpr const char *kName = "performer_attention",
                       *kDocuments = "performer_attention: documents";
  const Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
  const auto& [scale, eps] = std::tie(options.scale, options.eps);
  TORCH_CHECK_VALUE(!scale || (*scale > 0 && is_valid_scale(*scale, q)), kName,
                    ": scale must be > 0 and at most 1e30 (float64: 1e300), got ",
                    scale.value_or(0));
  TORCH_CHECK_VALUE(!eps || (*eps >= 0 && std::isfinite(*eps)), kName,
                    ": eps must be finite and >= 0, got ", eps.value_or(0));
  const auto& padding = options.key_padding_mask;
  if (padding.defined()) check_key_padding(padding, n, q.device(), kName);
  if (!options.documents.defined()) return {};
  check_documents(options.documents, kDocuments);
  check_documents_fit(options.documents, n, q.device(), kDocuments);
  TORCH_CHECK_VALUE(n.L == n.S, kDocuments, " need as many queries as keys, got L=", n.L,
                    " S=", n.S);
  return pack(options.documents, kDocuments);
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API torch::Tensor orthogonal_features(int64_t features, int64_t head_dim,
                                             const OrthogonalFeaturesOptions& options) {
  TORCH_CHECK_VALUE(features > 0 && head_dim > 0,
                    "orthogonal_features: features and head_dim must be > 0, got ", features,
                    " and ", head_dim);
  std::optional<at::Generator> generator;
  if (options.seed) generator = at::make_generator<at::CPUGeneratorImpl>(*options.seed);
  const auto gaussian = [&](int64_t rows) {
    return torch::randn({rows, head_dim}, generator, torch::dtype(torch::kFloat32));
  };
  std::vector<torch::Tensor> blocks;
  for (int64_t row = 0; row < features; row += head_dim) {
    const auto [q, r] = at::linalg_qr(gaussian(head_dim));
    // By the signs of r every rotation is as likely as any other.
    const auto rows = (q * torch::where(r.diagonal() < 0, -1.0, 1.0).to(q.scalar_type())).t();
    blocks.push_back(rows.slice(0, 0, std::min(head_dim, features - row)));
  }
  const auto rows = torch::cat(blocks);
  if (options.equal_norms) return rows * std::sqrt(static_cast<double>(head_dim));
  return rows * gaussian(features).norm(2, {1}, /*keepdim=*/true);
}

ATTZOO_API AttentionResult performer_attention(const torch::Tensor& q, const torch::Tensor& k,
                                               const torch::Tensor& v,
                                               const torch::Tensor& projection,
                                               const PerformerAttentionOptions& options) {
  constexpr const char* kName = "performer_attention";
  core::check_qkv(kName, q, k, v);
  for (const auto* t : {&k, &v}) {
    TORCH_CHECK_VALUE(t->sizes().slice(0, 2) == q.sizes().slice(0, 2), kName,
                      ": k and v must have q's batch size and heads, q is ", q.sizes(), ", got ",
                      t->sizes());
  }
  core::check_projection(projection, q);
  const auto packing = core::check_performer_options(q, k, options);
  // Autocast would round the sums to the half type again.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto dtype = q.scalar_type(), wide = core::compute_dtype(q);
  const core::Favor favor{projection.detach().to(wide), options.relu_kernel,
                          options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))),
                          options.eps.value_or(options.relu_kernel ? 1e-3 : 1e-4)};
  auto result = core::favor_attention(favor, q.to(wide), k.to(wide), v.to(wide), options.causal,
                                      options.max_of_all_keys, options.key_padding_mask, packing,
                                      dtype, core::Unchanged({q, k}));
  result.output = result.output.to(dtype);
  return result;
}

}  // namespace attzoo
