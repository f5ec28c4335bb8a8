#pragma once
/// \file
/// What a user composes to say who attends to whom, and how scores are changed.
///
/// Masks say which pairs (query q, key kv) may attend; they compose with `&&`, `||` and `!`. Score
/// modifiers change a score before the softmax; they compose with `+`, applied left to right.
/// `mask_mod(f)` and `score_mod(f)` make one from any callable: f(b, h, q, kv) -> truth value, and
/// f(score, b, h, q, kv) -> score, FlexAttention's names and order (Dong et al., "Flex Attention: A
/// Programming Model for Generating Optimized Attention Kernels", 2024, arXiv:2412.05496).

#include <attzoo/core/inputs.hpp>
#include <attzoo/core/tensor_lane.hpp>

#include <concepts>
#include <utility>

namespace attzoo {

namespace core {

/// A piece of the [B, H, L, S] score grid for the eager reference: the index of every entry, as
/// tensors that broadcast against each other, and the lengths of the whole.
struct Grid {
  Shape shape;
  int64_t q_begin, q_end;     // the rows present
  torch::Tensor b, h, q, kv;  // [B,1,1,1] [1,H,1,1] [1,1,rows,1] [1,1,1,S], int64

  Grid(const Shape& n, int64_t begin, int64_t end, const torch::Device& device)
      : shape(n), q_begin(begin), q_end(end) {
    auto index = [&](int64_t from, int64_t to, std::vector<int64_t> sizes) {
      return torch::arange(from, to, torch::dtype(torch::kInt64).device(device)).view(sizes);
    };
    b = index(0, n.B, {n.B, 1, 1, 1});
    h = index(0, n.H, {1, n.H, 1, 1});
    q = index(begin, end, {1, 1, end - begin, 1});
    kv = index(0, n.S, {1, 1, 1, n.S});
  }
};

/// The rows of a tensor [.., L or 1, S or 1] that a grid holds.
inline torch::Tensor grid_rows(const torch::Tensor& t, const Grid& g) {
  return t.size(2) == 1 ? t : t.slice(2, g.q_begin, g.q_end);
}

template <class F>
concept MaskCallable = requires(const F& f, const TensorLane& i) {
  { f(i, i, i, i) } -> std::convertible_to<TensorLane>;
};
template <class F>
concept ScoreCallable = requires(const F& f, const TensorLane& i) {
  { f(i, i, i, i, i) } -> std::convertible_to<TensorLane>;
};

/// A captured tensor against the sizes that the problem asks for; 1 always broadcasts.
inline void check_captured(const torch::Tensor& t, std::vector<int64_t> sizes,
                           const torch::Device& device, const char* who, const char* shape,
                           const Shape& n) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; fits && d < t.dim(); ++d) {
    const int64_t want = sizes[static_cast<size_t>(d)];
    fits = t.size(d) == want || t.size(d) == 1;
  }
  TORCH_CHECK_VALUE(fits, who, ": the tensor must have shape ", shape, " with B=", n.B, " H=", n.H,
                    " L=", n.L, " S=", n.S, " (or 1 to broadcast), got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == device, who, ": the tensor must be on ", device, ", got ",
                    t.device());
}

/// Holds what a modifier captured against the problem that it meets.
template <class M>
void check_modifier(const M& m, const Shape& n, const torch::Device& device) {
  if constexpr (requires { m.check(n, device); }) m.check(n, device);
}

}  // namespace core

/// Something that says which pairs may attend. `evaluate` is its meaning on tensors: true = attend,
/// broadcastable to [B, H, rows, S].
template <class M>
concept MaskMod = M::is_mask && requires(const M& m, const core::Grid& g) {
  { m.evaluate(g) } -> std::same_as<torch::Tensor>;
};

/// Something that changes scores. `evaluate` is its meaning on tensors [B, H, rows, S].
template <class M>
concept ScoreMod = M::is_score &&
    requires(const M& m, const torch::Tensor& s, const core::Grid& g) {
  { m.evaluate(s, g) } -> std::same_as<torch::Tensor>;
};

// ---- masks --------------------------------------------------------------------------------------

namespace core {

/// A mask made of a callable on indices.
template <MaskCallable F>
struct MaskFunction {
  static constexpr bool is_mask = true;
  F f;
  torch::Tensor evaluate(const Grid& g) const {
    return TensorLane(f(TensorLane(g.b), TensorLane(g.h), TensorLane(g.q), TensorLane(g.kv)))
        .t.to(torch::kBool);
  }
};

struct FullMask {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const Grid& g) const {
    return torch::ones({1, 1, 1, 1}, g.kv.options().dtype(torch::kBool));
  }
};

struct CausalMask {
  static constexpr bool is_mask = true;
  bool top_left = false;
  bool enabled = true;  // a module's run-time switch: off means full

  int64_t offset(const Shape& n) const { return top_left ? 0 : n.S - n.L; }
  torch::Tensor evaluate(const Grid& g) const {
    if (!enabled) return FullMask{}.evaluate(g);
    return g.kv <= g.q + offset(g.shape);
  }
};

/// q's index among the keys: rows are aligned so that the last query meets the last key.
inline torch::Tensor aligned_query(const Grid& g) { return g.q + (g.shape.S - g.shape.L); }

struct WindowMask {
  static constexpr bool is_mask = true;
  int64_t left, right;
  torch::Tensor evaluate(const Grid& g) const {
    const auto distance = aligned_query(g) - g.kv;
    return torch::logical_and(distance <= left, distance >= -right);
  }
};

struct DilatedMask {
  static constexpr bool is_mask = true;
  int64_t rate;
  torch::Tensor evaluate(const Grid& g) const {
    return (aligned_query(g) - g.kv).remainder(rate) == 0;
  }
};

/// Blocks of `size` positions that start at offset, offset + period, ...; from `end` on there are
/// none. Two positions attend if one block holds both.
struct BlocksMask {
  static constexpr bool is_mask = true;
  int64_t size, period, offset, end;

  torch::Tensor evaluate(const Grid& g) const {
    const auto [q_block, q_inside] = locate(aligned_query(g));
    const auto [kv_block, kv_inside] = locate(g.kv);
    return torch::logical_and(q_block == kv_block, torch::logical_and(q_inside, kv_inside));
  }

 private:
  std::pair<torch::Tensor, torch::Tensor> locate(const torch::Tensor& i) const {
    const auto block = torch::div(i - offset, period, "floor");
    const auto within = i - offset - block * period;
    return {block, torch::logical_and(torch::logical_and(within < size, block >= 0),
                                      block * period + offset < end)};
  }
};

struct PrefixMask {
  static constexpr bool is_mask = true;
  int64_t length;
  torch::Tensor evaluate(const Grid& g) const { return g.kv < length; }
};

struct DocumentsMask {
  static constexpr bool is_mask = true;
  torch::Tensor document;  // int64 [S]: the document of every position
  void check(const Shape& n, const torch::Device& device) const {
    TORCH_CHECK_VALUE(document.size(0) == n.S && n.L <= n.S,
                      "documents: the last offset must be S=", n.S, " and L <= S, got ",
                      document.size(0), " and L=", n.L);
    TORCH_CHECK_VALUE(document.device() == device, "documents: offsets must be on ", device,
                      ", got ", document.device());
  }
  torch::Tensor evaluate(const Grid& g) const {
    const auto of_query =
        document.slice(0, g.shape.S - g.shape.L + g.q_begin, g.shape.S - g.shape.L + g.q_end);
    return of_query.view({1, 1, -1, 1}) == document.view({1, 1, 1, -1});
  }
};

struct GlobalTokensMask {
  static constexpr bool is_mask = true;
  torch::Tensor is_global;  // bool [1 or B, S]
  bool queries = true, keys = true;
  void check(const Shape& n, const torch::Device& device) const {
    TORCH_CHECK_VALUE((is_global.size(0) == n.B || is_global.size(0) == 1) &&
                          is_global.size(1) == n.S && n.L <= n.S,
                      "global_tokens: is_global must have shape [S] or [B, S] with B=", n.B,
                      " S=", n.S, ", and L <= S, got ", is_global.sizes(), " and L=", n.L);
    TORCH_CHECK_VALUE(is_global.device() == device, "global_tokens: is_global must be on ", device,
                      ", got ", is_global.device());
  }
  torch::Tensor evaluate(const Grid& g) const {
    const int64_t offset = g.shape.S - g.shape.L;
    const auto q =
        is_global.slice(1, offset + g.q_begin, offset + g.q_end).unsqueeze(1).unsqueeze(3);
    const auto kv = is_global.unsqueeze(1).unsqueeze(1);
    if (!keys) return q;
    return queries ? torch::logical_or(q, kv) : kv;
  }
};

struct TensorMask {
  static constexpr bool is_mask = true;
  torch::Tensor mask;  // bool, rank 4, broadcastable; undefined: nothing is masked
  void check(const Shape& n, const torch::Device& device) const {
    if (!mask.defined()) return;
    check_captured(mask, {n.B, n.H, n.L, n.S}, device, "mask_tensor",
                   "[L, S], [B, L, S] or [B, H, L, S]", n);
  }
  torch::Tensor evaluate(const Grid& g) const {
    return mask.defined() ? grid_rows(mask, g) : FullMask{}.evaluate(g);
  }
};

template <MaskMod A, MaskMod B>
struct AndMask {
  static constexpr bool is_mask = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  torch::Tensor evaluate(const Grid& g) const {
    return torch::logical_and(a.evaluate(g), b.evaluate(g));
  }
};

template <MaskMod A, MaskMod B>
struct OrMask {
  static constexpr bool is_mask = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  torch::Tensor evaluate(const Grid& g) const {
    return torch::logical_or(a.evaluate(g), b.evaluate(g));
  }
};

template <MaskMod A>
struct NotMask {
  static constexpr bool is_mask = true;
  A a;
  void check(const Shape& n, const torch::Device& device) const { check_modifier(a, n, device); }
  torch::Tensor evaluate(const Grid& g) const { return torch::logical_not(a.evaluate(g)); }
};

}  // namespace core

/// Every query attends to every key.
inline core::FullMask full() { return {}; }

/// Which corner of a non-square score grid the causal diagonal starts from.
enum class CausalAlignment {
  kBottomRight,  ///< the last query sees all keys: kv <= q + S - L
  kTopLeft,      ///< the first query sees the first key only: kv <= q
};

/// No query attends to a later key. The alignments are equal when L == S.
inline core::CausalMask causal(CausalAlignment alignment = CausalAlignment::kBottomRight) {
  return {alignment == CausalAlignment::kTopLeft};
}

/// No limit on one side of a window.
inline constexpr int64_t kUnbounded = int64_t{1} << 40;

/// Query i attends to the keys i - left ... i + right, both included; kUnbounded lifts a side. With
/// L != S, i is aligned to the bottom right, as in causal(). Throws for a negative argument.
inline core::WindowMask window(int64_t left, int64_t right) {
  TORCH_CHECK_VALUE(left >= 0 && right >= 0, "window: left and right must be >= 0, got left=", left,
                    " right=", right);
  return {left, right};
}

/// Query i attends to the keys j with i = j modulo rate. Throws for a rate below 1.
inline core::DilatedMask dilated(int64_t rate) {
  TORCH_CHECK_VALUE(rate >= 1, "dilated: rate must be >= 1, got ", rate);
  return {rate};
}

/// Positions attend within their block of `size`: floor(i / size) == floor(j / size). Throws for a
/// size below 1.
inline core::BlocksMask blocks(int64_t size) {
  TORCH_CHECK_VALUE(size >= 1, "blocks: size must be >= 1, got ", size);
  return {size, size, 0, kUnbounded};
}

/// Everybody attends to the first `length` keys: `prefix(p) || causal()` is a prefix language
/// model. Throws for a negative length.
inline core::PrefixMask prefix(int64_t length) {
  TORCH_CHECK_VALUE(length >= 0, "prefix: length must be >= 0, got ", length);
  return {length};
}

/// Sequences packed one after another attend only within themselves. `offsets` [n + 1] int64: 0,
/// the ends of the documents, the last of them S. Throws on another shape, dtype or order.
inline core::DocumentsMask documents(const torch::Tensor& offsets) {
  TORCH_CHECK_TYPE(offsets.defined() && torch::isIntegralType(offsets.scalar_type(), false),
                   "documents: offsets must be an integer tensor");
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets[0].item<int64_t>() == 0,
                    "documents: offsets must have shape [n + 1] and begin with 0, got ",
                    offsets.sizes());
  const auto lengths = offsets.to(torch::kInt64).diff();
  TORCH_CHECK_VALUE(lengths.numel() == 0 || lengths.min().item<int64_t>() >= 0,
                    "documents: offsets must not decrease");
  return {torch::repeat_interleave(lengths)};
}

/// Global tokens attend to everybody and everybody attends to them (Longformer, arXiv:2004.05150).
/// `is_global` [S] or [B, S], any dtype, nonzero = global. Throws on another rank.
inline core::GlobalTokensMask global_tokens(const torch::Tensor& is_global) {
  TORCH_CHECK_VALUE(is_global.defined() && (is_global.dim() == 1 || is_global.dim() == 2),
                    "global_tokens: is_global must have shape [S] or [B, S]");
  const auto flags = is_global.to(torch::kBool);
  return {flags.dim() == 1 ? flags.unsqueeze(0) : flags};
}

/// A mask from any callable f(b, h, q, kv) -> truth value, written with operators that also work on
/// lanes and tensors: `mask_mod([](auto b, auto h, auto q, auto kv) { return (q - kv) % 3 == 0;
/// })`.
template <core::MaskCallable F>
core::MaskFunction<F> mask_mod(F f) {
  return {std::move(f)};
}

/// A mask from a bool tensor (true = attend), [L, S], [B, L, S] or [B, H, L, S]; sizes of 1
/// broadcast. Throws c10::Error on another dtype or rank.
inline core::TensorMask mask_tensor(const torch::Tensor& mask) {
  TORCH_CHECK_VALUE(mask.defined() && mask.dim() >= 2 && mask.dim() <= 4,
                    "mask_tensor: expected a tensor [L, S], [B, L, S] or [B, H, L, S]");
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool, "mask_tensor: expected bool, got ",
                   mask.scalar_type());
  return {core::mask_rank4(mask)};
}

template <MaskMod A, MaskMod B>
auto operator&&(A a, B b) {
  if constexpr (std::is_same_v<A, core::FullMask>) {
    return b;
  } else if constexpr (std::is_same_v<B, core::FullMask>) {
    return a;
  } else {
    return core::AndMask<A, B>{std::move(a), std::move(b)};
  }
}
template <MaskMod A, MaskMod B>
core::OrMask<A, B> operator||(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <MaskMod A>
core::NotMask<A> operator!(A a) {
  return {std::move(a)};
}

// ---- scores -------------------------------------------------------------------------------------

namespace core {

struct IdentityScore {
  static constexpr bool is_score = true;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const { return s; }
};

template <ScoreCallable F>
struct ScoreFunction {
  static constexpr bool is_score = true;
  F f;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return TensorLane(f(TensorLane(s), TensorLane(g.b), TensorLane(g.h), TensorLane(g.q),
                        TensorLane(g.kv)))
        .t.to(s.scalar_type());
  }
};

struct AlibiScore {
  static constexpr bool is_score = true;
  torch::Tensor slopes;  // [H]
  void check(const Shape& n, const torch::Device& device) const {
    check_captured(slopes, {n.H}, device, "alibi", "[H]", n);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    const auto distance = (aligned_query(g) - g.kv).abs().to(s.scalar_type());
    return s - slopes.to(s.scalar_type()).view({1, -1, 1, 1}) * distance;
  }
};

struct SoftcapScore {
  static constexpr bool is_score = true;
  double cap;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid&) const {
    return torch::tanh(s / cap) * cap;
  }
};

struct TensorBias {
  static constexpr bool is_score = true;
  torch::Tensor bias;  // floating, rank 4, broadcastable; undefined: nothing is added
  void check(const Shape& n, const torch::Device& device) const {
    if (!bias.defined()) return;
    check_captured(bias, {n.B, n.H, n.L, n.S}, device, "bias_tensor",
                   "[L, S], [B, L, S] or [B, H, L, S]", n);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return bias.defined() ? s + grid_rows(bias, g).to(s.scalar_type()) : s;
  }
};

template <ScoreMod A, ScoreMod B>
struct ChainScore {
  static constexpr bool is_score = true;
  A a;
  B b;
  void check(const Shape& n, const torch::Device& device) const {
    check_modifier(a, n, device);
    check_modifier(b, n, device);
  }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return b.evaluate(a.evaluate(s, g), g);
  }
};

}  // namespace core

/// A score modifier from any callable f(score, b, h, q, kv) -> score. Use the functions that attzoo
/// finds for you by their plain names (tanh, exp, log, sqrt, abs, min, max, where):
/// `score_mod([](auto s, auto, auto, auto, auto) { using std::tanh; return 20.0 * tanh(s / 20.0);
/// })`.
template <core::ScoreCallable F>
core::ScoreFunction<F> score_mod(F f) {
  return {std::move(f)};
}

/// Attention with linear biases: s - slopes[h] * |q - kv| (Press et al., 2021, arXiv:2108.12409).
/// `slopes` [H], floating; differentiable. Throws on another rank or dtype.
inline core::AlibiScore alibi(const torch::Tensor& slopes) {
  core::check_floating(slopes, "alibi", "slopes");
  TORCH_CHECK_VALUE(slopes.dim() == 1, "alibi: slopes must have shape [H], got ", slopes.sizes());
  return {slopes};
}

/// Bounds scores smoothly: cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118). Throws unless cap > 0.
inline core::SoftcapScore softcap(double cap) {
  TORCH_CHECK_VALUE(cap > 0, "softcap: cap must be > 0, got ", cap);
  return {cap};
}

/// Adds a floating tensor to the scores, [L, S], [B, L, S] or [B, H, L, S]; sizes of 1 broadcast.
/// Differentiable with respect to the tensor. Throws c10::Error on another dtype or rank.
inline core::TensorBias bias_tensor(const torch::Tensor& bias) {
  core::check_floating(bias, "bias_tensor", "bias");
  TORCH_CHECK_VALUE(bias.dim() >= 2 && bias.dim() <= 4,
                    "bias_tensor: expected [L, S], [B, L, S] or [B, H, L, S], got ", bias.sizes());
  return {core::mask_rank4(bias)};
}

template <ScoreMod A, ScoreMod B>
auto operator+(A a, B b) {
  if constexpr (std::is_same_v<A, core::IdentityScore>) {
    return b;
  } else if constexpr (std::is_same_v<B, core::IdentityScore>) {
    return a;
  } else {
    return core::ChainScore<A, B>{std::move(a), std::move(b)};
  }
}

}  // namespace attzoo
