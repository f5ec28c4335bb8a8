#pragma once
/// \file
/// Masks and score modifiers of random operators, in the forms that run on tensors and as symbols.

#include <attzoo/core/modifier/any_score.hpp>
#include <attzoo/core/modifier/tensor_lane.hpp>

#include <cstdint>
#include <random>
#include <vector>

namespace attzoo::testing {

/// A tree of operators over the arguments of a modifier, on any one type that mixes with numbers.
struct Tree {
  int op = 0;
  int64_t integer = 0;
  double real = 0;
  std::vector<Tree> of = {};
};

class RandomTrees {
 public:
  explicit RandomTrees(unsigned seed) : random_(seed) {}

  Tree whole(int depth) {
    return make(depth, 5, 10, 20, [&] { return whole(depth - 1); });
  }
  Tree truth(int depth) {
    if (depth <= 0) return {30 + below(6), 0, 0, {whole(1), whole(1)}};
    switch (below(5)) {
      case 0:
        return {40 + below(2), 0, 0, {truth(depth - 1), truth(depth - 1)}};
      case 1:
        return {42, 0, 0, {truth(depth - 1)}};
      case 2:
        return {30 + below(6), 0, 0, {real(depth - 1), real(depth - 1)}};
      default:
        return {30 + below(6), 0, 0, {whole(depth - 1), whole(depth - 1)}};
    }
  }
  /// A floating number that depends on no score.
  Tree real(int depth) {
    if (depth <= 0) return {50, 0, quarter(), {}};
    if (below(4) == 0) return {60 + below(3), 0, 0, {whole(depth - 1), real(depth - 1)}};
    if (below(5) == 0) return {65, 0, 0, {truth(depth - 1), real(depth - 1), real(depth - 1)}};
    return {60 + below(5), 0, 0, {real(depth - 1), real(depth - 1)}};
  }
  Tree score(int depth) {
    if (depth <= 0) return {70, 0, 0, {}};
    switch (below(6)) {
      case 0:
        return {80 + below(6), 0, 0, {score(depth - 1)}};
      case 1:
        return {60 + below(2), 0, 0, {score(depth - 1), real(depth - 1)}};
      case 2:
        return {60 + below(2), 0, 0, {whole(depth - 1), score(depth - 1)}};
      case 3:
        return {65, 0, 0, {truth(depth - 1), score(depth - 1), score(depth - 1)}};
      case 4:
        return {62, 0, 0, {score(depth - 1), {80, 0, 0, {score(depth - 1)}}}};
      default:
        return {60 + below(2), 0, 0, {score(depth - 1), score(depth - 1)}};
    }
  }

 private:
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  double quarter() { return 0.25 * (below(41) - 20); }
  template <class F>
  Tree make(int depth, int leaves, int first, int last, const F& of) {
    if (depth <= 0 || below(4) == 0) return {below(leaves), below(23) - 11, 0, {}};
    return {first + below(last - first), 0, 0, {of(), of()}};
  }

  std::mt19937 random_;
};

template <class V>
V value(const Tree& t, const V& s, const V& b, const V& h, const V& q, const V& kv) {
  const auto at = [&](size_t i) { return value<V>(t.of[i], s, b, h, q, kv); };
  switch (t.op) {
    case 0:
      return b;
    case 1:
      return h;
    case 2:
      return q;
    case 3:
      return kv;
    case 4:
      return q * 0 + t.integer;
    case 10:
      return at(0) + at(1);
    case 11:
      return at(0) - at(1);
    case 12:
      return at(0) * at(1);
    case 13:
      return at(0) / at(1);
    case 14:
      return at(0) % at(1);
    case 15:
      return min(at(0), at(1));
    case 16:
      return max(at(0), at(1));
    case 17:
      return (at(0) & at(1)) - (at(0) | 3);
    case 18:
      return (at(0) ^ at(1)) + (abs(at(0)) << 2) - (at(1) >> 1);
    case 19:
      return where(at(0) < at(1), relu(at(0)), clamp(at(1), -4, 9));
    case 30:
      return at(0) < at(1);
    case 31:
      return at(0) <= at(1);
    case 32:
      return at(0) > at(1);
    case 33:
      return at(0) >= at(1);
    case 34:
      return at(0) == at(1);
    case 35:
      return at(0) != at(1);
    case 40:
      return at(0) && at(1);
    case 41:
      return at(0) || at(1);
    case 42:
      return !at(0);
    case 50:
      return q * 0.0 + t.real;
    case 60:
      return at(0) + at(1);
    case 61:
      return at(0) - at(1);
    case 62:
      return at(0) * at(1);
    case 63:
      return floor(at(0) / (abs(at(1)) + 0.5));
    case 64:
      return min(at(0), max(at(1), 0.5));
    case 65:
      return where(at(0), at(1), at(2));
    case 70:
      return s;
    case 80:
      return tanh(at(0));
    case 81:
      return sigmoid(at(0));
    case 82:
      return sin(at(0));
    case 83:
      return -abs(at(0));
    case 84:
      return sqrt(at(0) * at(0) + 1);
    default:
      return at(0) / 3;
  }
}

/// A mask that is the truth of such a tree.
struct RandomMask {
  static constexpr bool is_mask = true;
  Tree tree;
  torch::Tensor evaluate(const core::Grid& g) const {
    using core::TensorLane;
    const TensorLane q(g.q);
    return value<TensorLane>(tree, q, TensorLane(g.b), TensorLane(g.h), q, TensorLane(g.kv)).t;
  }
  core::Symbol symbol(const core::SymbolPair& p) const {
    return value<core::Symbol>(tree, p.q, p.b, p.h, p.q, p.kv);
  }
};

/// A score modifier that is such a tree, and an entry of a table [H, N] more, at a place that is a
/// tree as well, if there is a table.
struct RandomScore {
  static constexpr bool is_score = true;
  Tree tree;
  torch::Tensor table = {};
  Tree place = {};
  void tensors(core::Captured& out) const {
    if (table.defined()) out.push_back(table);
  }
  void learnable(std::vector<core::Learnable>& out) const {
    if (table.defined()) out.push_back({table, {-1, 0, -1, -1}});
  }
  torch::Tensor evaluate(const torch::Tensor& s, const core::Grid& g) const {
    using core::TensorLane;
    const TensorLane b(g.b), h(g.h), q(g.q), kv(g.kv);
    const auto changed = value<TensorLane>(tree, TensorLane(s), b, h, q, kv).t.to(s.scalar_type());
    if (!table.defined()) return changed;
    const auto at = abs(value<TensorLane>(place, q, b, h, q, kv) % table.size(1)).t;
    return changed + g.counted(torch::index(table, {g.h, at})).to(s.scalar_type());
  }
  core::Symbol symbol(const core::Symbol& s, const core::SymbolPair& p) const {
    const auto changed = value<core::Symbol>(tree, s, p.b, p.h, p.q, p.kv);
    if (!table.defined()) return changed;
    const auto at = abs(value<core::Symbol>(place, p.q, p.b, p.h, p.q, p.kv) % table.size(1));
    return changed + core::SymbolPair::of(table, {p.h, at});
  }
};

}  // namespace attzoo::testing
