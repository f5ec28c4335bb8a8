#pragma once
/// \file
/// What a mask and a score modifier are, and the score grid that the eager reference hands them.

#include <attzoo/core/checks.hpp>
#include <attzoo/core/unchanged.hpp>

#include <concepts>
#include <type_traits>
#include <vector>

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

/// Tensors that modifiers hold.
using Captured = std::vector<torch::Tensor>;

/// Appends the tensors that a mask or a score modifier reads whenever it is evaluated or bound, so
/// that a change of them in place can be noticed. What holds one has a member `tensors(out)`.
template <class M>
void held_tensors(const M& m, Captured& out) {
  if constexpr (requires { m.tensors(out); }) m.tensors(out);
}

/// Holds what a modifier captured against the problem that it meets.
template <class M>
void check_modifier(const M& m, const Shape& n, const torch::Device& device) {
  if constexpr (requires { m.check(n, device); }) m.check(n, device);
}

}  // namespace core

/// Something that says which pairs may attend. `evaluate` is its meaning on tensors: true = attend,
/// broadcastable to [B, H, rows, S]; `bind` is its form for the fused kernel on CPU.
template <class M>
concept MaskMod = M::is_mask && requires(const M& m, const core::Grid& g) {
  { m.evaluate(g) } -> std::same_as<torch::Tensor>;
  m.bind(g.shape);
};

/// Something that changes scores. `evaluate` is its meaning on tensors [B, H, rows, S]; `bind` is
/// its form for the fused kernel on CPU, which points into the tensors that `keep` holds.
template <class M>
concept ScoreMod = M::is_score &&
    requires(const M& m, const torch::Tensor& s, const core::Grid& g, core::Captured& keep) {
  { m.evaluate(s, g) } -> std::same_as<torch::Tensor>;
  m.template bind<float>(g.shape, keep);
};

}  // namespace attzoo
