#pragma once
/// \file
/// One call of a recurrent mechanism: what its convolutions and recurrences go on from.

#include <attzoo/functional/recurrence.hpp>
#include <attzoo/module/call.hpp>
#include <attzoo/module/short_convolution.hpp>
#include <attzoo/module/state_cache.hpp>

#include <functional>
#include <optional>
#include <utility>

namespace attzoo::core {

/// t in float32 at least.
ATTZOO_API torch::Tensor wide(const torch::Tensor& t);

/// One call of a recurrent mechanism: its tokens, and what convolutions and recurrences keep of
/// those before. With a cache that was truncated, the tokens begin with some that it has already,
/// which are computed again.
class RecurrentCall {
 public:
  /// Of inputs that are checked.
  RecurrentCall(const torch::Tensor& x, const AttentionInputs& inputs, const CallPlaces& places);

  /// The tokens [B, n, input_dim].
  torch::Tensor x;
  /// Where they stand: each of `places` [1 or B, n] if that is defined, else from `offset` on.
  int64_t offset = 0;
  torch::Tensor places = {};

  /// Features t [B, n, C] of the tokens through a convolution, behind those of the tokens before.
  /// Tokens that are not real are zeros to it.
  torch::Tensor convolve(ShortConvolution& convolution, const torch::Tensor& t);
  /// Those of the token before each, [B, n, C]; zeros before the first one of a document.
  torch::Tensor shift(const torch::Tensor& t);
  /// recurrence(), behind the state of the tokens before: [B, HV, n, E], in v's dtype. Tokens that
  /// are not real leave the state as it is. Where dtypes differ, it computes in float32 at least.
  torch::Tensor recur(torch::Tensor q, torch::Tensor k, torch::Tensor v, RecurrenceOptions options);

  /// t [B, n, ..] of the tokens that were asked for, without those computed again: [B, L, ..].
  torch::Tensor asked(const torch::Tensor& t) const { return t.slice(1, again_); }
  /// Hands the tokens and what they leave behind to the cache, if there is one.
  void done() const;
  /// What the last recur() made its output of: [B, HV, L, L], none with a cache.
  LazyWeights weights = {};

 private:
  /// f(begin, end, state) of all tokens at once, or where a cache asks for what is kept in between,
  /// of those until there and the others; its output and state. `dim`: of the output's tokens.
  using Part = std::function<std::pair<torch::Tensor, torch::Tensor>(int64_t, int64_t,
                                                                     const torch::Tensor&)>;
  torch::Tensor in_parts(int64_t dim, const Part& f);
  Documents documents(int64_t begin, int64_t end) const;
  /// A state behind token i - 1 as the document of token j sees it: zeros, unless it is that one's.
  torch::Tensor seen_from(const torch::Tensor& state, int64_t i, int64_t j) const;
  /// t, or zeros for tokens that are not real; `dim`: of the tokens.
  torch::Tensor real_only(const torch::Tensor& t, int64_t dim) const;

  StateCache* cache_ = nullptr;
  std::optional<Past> past_;
  torch::Tensor run_;   // int64 [1 or B, n], documents; undefined: one
  torch::Tensor real_;  // bool [B, n]; undefined: all
  int64_t again_ = 0;   // tokens at the begin that the cache has already
  int64_t mark_ = 0;    // tokens behind which a cache wants to know what is kept; 0: it does not
  States before_, after_, at_mark_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/functional/short_convolution.hpp>

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/eye.h>

#include <vector>

namespace attzoo::core {

ATTZOO_API torch::Tensor wide(const torch::Tensor& t) { return t.to(compute_dtype(t)); }

ATTZOO_API RecurrentCall::RecurrentCall(const torch::Tensor& tokens, const AttentionInputs& inputs,
                                        const CallPlaces& where)
    : x(tokens),
      offset(inputs.position_offset),
      places(where.packing.position),
      past_(where.past),
      run_(where.packing.run),
      real_(inputs.key_padding_mask) {
  if (inputs.positions.defined()) {
    places = inputs.positions.dim() == 1 ? inputs.positions.unsqueeze(0) : inputs.positions;
  }
  if (!past_) return;
  cache_ = &static_cast<StateCache&>(inputs.cache.state());  // NOLINT: checked to be this module's
  const int64_t known = cache_->known().tokens;
  const auto again = cache_->to_compute_again();
  if (cache_->asks_between(x.size(1))) mark_ = again.size(1) + x.size(1) - kTakenBack;
  again_ = again.size(1);
  if (again_ > 0) x = torch::cat({again.to(x.scalar_type()), x}, 1);
  before_ = cache_->lend();
  if (run_.defined()) return;
  offset = known;
  if (!past_->padding.defined()) return;
  const auto place = torch::arange(offset, offset + x.size(1), past_->padding.options()) -
                     past_->padding.unsqueeze(1);
  real_ = place >= 0;
  places = place.clamp_min(0);
  offset = 0;
}

ATTZOO_API torch::Tensor RecurrentCall::convolve(ShortConvolution& convolution,
                                                 const torch::Tensor& t) {
  const auto all = real_only(t, 1);
  return in_parts(1, [&](int64_t begin, int64_t end, const torch::Tensor& state) {
    auto y = convolution->convolve(all.slice(1, begin, end), state, documents(begin, end));
    return std::pair(std::move(y.output), std::move(y.state));
  });
}

ATTZOO_API torch::Tensor RecurrentCall::shift(const torch::Tensor& t) {
  const auto all = real_only(t, 1);
  const auto weight = torch::tensor({1.0, 0.0}, t.options().requires_grad(false));
  return in_parts(1, [&](int64_t begin, int64_t end, const torch::Tensor& state) {
    auto y = short_convolution(
        all.slice(1, begin, end), weight.expand({t.size(2), 2}),
        {.silu = false, .initial_state = state, .documents = documents(begin, end)});
    return std::pair(std::move(y.output), std::move(y.state));
  });
}

/// Whether nobody but the call holds a state, so that it may be written over.
inline bool is_ours(const torch::Tensor& state) {
  return state.defined() && !state.requires_grad() && state.use_count() == 1 &&
         state.storage().use_count() == 1;
}

/// The options of the tokens [begin, end), behind a state.
inline RecurrenceOptions part_of(const RecurrenceOptions& o, int64_t begin, int64_t end) {
  const auto rows = [&](const torch::Tensor& t) {
    return t.defined() && t.dim() > 1 ? t.slice(2, begin, end) : t;
  };
  auto part = o;
  part.decay = rows(o.decay);
  part.beta = rows(o.beta);
  part.erase = rows(o.erase);
  part.a = rows(o.a);
  part.b = rows(o.b);
  return part;
}

/// weights v = output, row by row: what comes out where the values are unit vectors.
inline LazyWeights recurrence_weights(const torch::Tensor& q, const torch::Tensor& k,
                                      const torch::Tensor& v, const RecurrenceOptions& options,
                                      const torch::Tensor& run) {
  const int64_t B = v.size(0), H = v.size(1), n = v.size(2);
  return {{B, H, n, n},
          [q, k, options, run, B, H, n, of = v.options()](int64_t begin, int64_t end) {
            auto part = part_of(options, 0, end);
            if (run.defined()) part.documents.ids = run.slice(1, 0, end);
            const auto unit = torch::eye(end, of.requires_grad(false)).expand({B, H, end, end});
            const auto rows = recurrence(q.slice(2, 0, end), k.slice(2, 0, end), unit, part).output;
            return torch::constant_pad_nd(rows.slice(2, begin), {0, n - end});
          }};
}

ATTZOO_API torch::Tensor RecurrentCall::recur(torch::Tensor q, torch::Tensor k, torch::Tensor v,
                                              RecurrenceOptions options) {
  const auto dtype = v.scalar_type();
  if (q.scalar_type() != dtype || k.scalar_type() != dtype) q = wide(q), k = wide(k), v = wide(v);
  k = real_only(k, 2);
  v = real_only(v, 2);
  for (auto* t : {&options.beta, &options.erase, &options.a, &options.b}) *t = real_only(*t, 2);
  if (real_.defined() && options.decay.defined()) {
    if (options.decay.dim() == 1) {
      options.decay = options.decay.view({1, -1, 1}).expand({v.size(0), -1, v.size(2)});
    }
    options.decay = real_only(options.decay, 2);
  }
  if (!cache_) weights = recurrence_weights(q, k, v, options, run_);
  return in_parts(2, [&](int64_t begin, int64_t end, const torch::Tensor& state) {
    auto part = part_of(options, begin, end);
    part.inplace = is_ours(state) &&
                   !is_recorded({q, k, v, part.decay, part.beta, part.erase, part.a, part.b});
    part.initial_state = state;
    part.documents = documents(begin, end);
    const auto rows = [&](const torch::Tensor& t) { return t.slice(2, begin, end); };
    auto y = recurrence(rows(q), rows(k), rows(v), part);
    return std::pair(y.output.to(dtype), std::move(y.state));
  });
}

ATTZOO_API torch::Tensor RecurrentCall::in_parts(int64_t dim, const Part& f) {
  const size_t which = after_.size();
  const auto before = which < before_.size() ? std::move(before_[which]) : torch::Tensor();
  const int64_t n = x.size(1);
  if (mark_ == 0) {
    auto [all, state] = f(0, n, before);
    after_.push_back(std::move(state));
    return all;
  }
  auto [first, between] = f(0, mark_, before);
  at_mark_.push_back(seen_from(between, mark_, n - 1));
  auto [second, state] = f(mark_, n, seen_from(between, mark_, mark_));
  after_.push_back(std::move(state));
  return torch::cat({first, second}, dim);
}

ATTZOO_API Documents RecurrentCall::documents(int64_t begin, int64_t end) const {
  if (!run_.defined()) return {};
  return {.ids = run_.slice(1, begin, end)};
}

ATTZOO_API torch::Tensor RecurrentCall::seen_from(const torch::Tensor& state, int64_t i,
                                                  int64_t j) const {
  if (!run_.defined()) return state;
  const auto same = run_.select(1, i - 1) == run_.select(1, j);
  std::vector<int64_t> each(static_cast<size_t>(state.dim()), 1);
  each[0] = -1;
  return torch::where(same.view(each), state, torch::zeros({}, state.options()));
}

ATTZOO_API torch::Tensor RecurrentCall::real_only(const torch::Tensor& t, int64_t dim) const {
  if (!real_.defined() || !t.defined()) return t;
  std::vector<int64_t> sizes(static_cast<size_t>(t.dim()), 1);
  sizes[0] = t.size(0);
  sizes[static_cast<size_t>(dim)] = t.size(dim);
  return torch::where(real_.view(sizes), t, torch::zeros({}, t.options()));
}

ATTZOO_API void RecurrentCall::done() const {
  if (cache_) cache_->take(asked(x), after_, at_mark_, *past_);
}

}  // namespace attzoo::core

#endif
