#pragma once
/// \file
/// What the passes over the tiles ask of matrix products, so that they can run on others.

#include <attzoo/kernel/attention/tiling.hpp>

#include <concepts>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// What one thread multiplies with, in its scratch memory: first set_queries(), with the backward
/// pass also set_gradients(), then for each tile set_tile() and the products. W is the number of
/// lanes, `row` the distance of rows, of which only those of the tile's keys are touched.
/// ```
///   Prepared             what is made once for all threads
///   Session              what a thread holds while it multiplies
///   tiling()             the best one for long patterns
///   q     [W x D]        the block's queries times `scale`, for the caller to fill
///   grad  [W x Dv]       the gradients of their outputs, likewise; null forward
///   scale                of the queries; the caller multiplies their gradients by it
///
///   unit                 of the scores; 1 unless softmax_step() alone sees them
///
///   scores               S^T [keys x W] = K Q^T / unit
///   weight_gradients     dP^T [keys x W] = V dO^T
///   add_values           O^T [Dv x W] += V^T P^T
///   add_value_gradients  dV [keys x Dv] += P^T dO
///   add_score_gradients  dK [keys x D] += dS^T Q and dQ^T [D x W] += K^T dS^T
/// ```
/// Features are padded() in q, grad, dV and dK. Who packs P^T for add_values may have it packed by
/// softmax_step():
/// ```
///   packed_weights()     where that puts the weights of the tile
///   add_packed_values    O^T += V^T P^T of these
/// ```
template <class P, class T>
// clang-format off
concept TileProducts =
    std::constructible_from<typename P::Prepared, const Problem<T>&, const Modifiers<T>&, Runtime&,
                            bool> &&
    requires(P p, const P ready, int n, int64_t row, const TilePosition& t, const T* from, T* to,
             const Problem<T>& problem, const Tiling& tiling, const typename P::Prepared& prepared,
             bool backward, Scratch<T>& memory) {
      typename P::Session;
      P(problem, tiling, prepared, backward, memory);
      { P::tiling(problem) } -> std::same_as<Tiling>;
      { p.q } -> std::convertible_to<T*>;
      { p.grad } -> std::convertible_to<T*>;
      { p.scale } -> std::convertible_to<T>;
      { p.unit } -> std::convertible_to<T>;
      p.set_queries(n);   // W
      p.set_gradients(n);
      p.set_tile(t, n);   // and the head of its keys
      ready.scores(to);
      ready.weight_gradients(to);
      ready.add_values(from, to);
      ready.add_value_gradients(from, to, row);
      ready.add_score_gradients(from, to, row, to);
    };
// clang-format on

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
