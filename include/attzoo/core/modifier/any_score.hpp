#pragma once
/// \file
/// Score modifiers of any type as one type, and their chains, made at run time.

#include <attzoo/core/modifier/any_mask.hpp>
#include <attzoo/core/modifier/score_values.hpp>

#include <algorithm>
#include <memory>
#include <vector>

namespace attzoo::core {

class AnyScore;

/// A score modifier that is no chain of others, of any type.
class ScorePart : public AnyPart {
 public:
  virtual torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const = 0;
  virtual Symbol symbol(const Symbol& s, const SymbolPair& pair) const = 0;
  virtual void learnable(std::vector<Learnable>& out) const = 0;
  virtual AnyScore resolve(const Shape& n) const = 0;
  virtual torch::Tensor sink() const = 0;
  virtual AnyScore placed(const torch::Tensor& places) const = 0;
  virtual AnyScore at(const PairNumbers& numbers) const = 0;
};
template <class M>
class ScoreOf;

/// Any score modifier by value, cheap to copy. A default constructed one changes nothing.
class AnyScore {
 public:
  static constexpr bool is_score = true;

  AnyScore() = default;
  // Not this class itself, first: Clang would ask the concept whether it can be copied, and so on.
  template <class M>
  requires(!std::same_as<M, AnyScore> && ScoreMod<M>)
      AnyScore(M score) {  // NOLINT: any modifier is one
    if constexpr (!std::same_as<M, IdentityScore>) {
      parts_.push_back(std::make_shared<ScoreOf<M>>(std::move(score)));
    }
  }

  /// Whether scores stay as they are.
  bool is_identity() const { return parts_.empty(); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    auto changed = s;
    for (const auto& part : parts_) {
      changed = part->evaluate(part == parts_.front() ? changed : g.counted(changed), g);
    }
    return changed;
  }
  /// Throws c10::NotImplementedError where a part has no such form.
  Symbol symbol(Symbol s, const SymbolPair& pair) const {
    for (const auto& part : parts_) s = part->symbol(s, pair);
    return s;
  }
  void check(const Shape& n, const torch::Device& device) const {
    int sinks = 0;
    for (const auto& part : parts_) {
      part->check(n, device);
      sinks += part->sink().defined();
    }
    TORCH_CHECK_VALUE(sinks <= 1, "sink: given twice");
  }
  void tensors(Captured& out) const {
    for (const auto& part : parts_) part->tensors(out);
  }
  /// The tensors that may learn, in the order of its parts.
  void learnable(std::vector<Learnable>& out) const {
    for (const auto& part : parts_) part->learnable(out);
  }
  /// What takes its place in a problem: learnable tensors as backends read them.
  AnyScore resolve(const Shape& n) const {
    return each([&](const ScorePart& part) { return part.resolve(n); });
  }
  /// Logits [H] in the softmax's denominator; undefined: none.
  torch::Tensor sink() const {
    for (const auto& part : parts_) {
      if (auto sink = part->sink(); sink.defined()) return sink;
    }
    return {};
  }
  /// Whether a part of it counts queries from the first one, wherever that stands among the keys.
  bool is_raw() const {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& p) { return p->is_raw(); });
  }
  /// Whether a part of it counts in documents and has not been told where tokens stand in theirs.
  bool asks_places() const {
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const auto& p) { return p->asks_places(); });
  }
  /// The same with the places of all keys, int64 [1 or B, S].
  AnyScore placed(const torch::Tensor& places) const {
    return each([&](const ScorePart& part) { return part.placed(places); });
  }
  /// The same in a problem whose queries and keys have other numbers.
  AnyScore at(const PairNumbers& numbers) const {
    return each([&](const ScorePart& part) { return part.at(numbers); });
  }
  /// Whether a backend's form knows all its parts, and that form.
  bool has_form(const std::type_info& type) const {
    return std::all_of(parts_.begin(), parts_.end(),
                       [&](const auto& p) { return p->form(type, nullptr, nullptr); });
  }
  template <class Form>
  Form form(const Shape& n) const {
    Form all;
    for (const auto& part : parts_) {
      Form form;
      TORCH_INTERNAL_ASSERT(part->form(typeid(Form), &n, &form));
      all = chain(std::move(all), std::move(form));
    }
    return all;
  }

  /// a, then b.
  friend AnyScore chain(AnyScore a, const AnyScore& b) {
    a.parts_.insert(a.parts_.end(), b.parts_.begin(), b.parts_.end());
    return a;
  }

 private:
  template <class F>
  AnyScore each(const F& f) const {
    AnyScore all;
    for (const auto& part : parts_) all = chain(std::move(all), f(*part));
    return all;
  }

  std::vector<std::shared_ptr<const ScorePart>> parts_;  // one after the other
};

/// A score modifier whose pairs have other numbers here. No backend has a form of it.
struct ScoreAt {
  static constexpr bool is_score = true;
  AnyScore score;
  PairNumbers numbers;
  void check(const Shape&, const torch::Device& device) const { score.check(numbers.of, device); }
  void tensors(Captured& out) const { score.tensors(out); }
  void learnable(std::vector<Learnable>& out) const { score.learnable(out); }
  ScoreAt resolve(const Shape&) const { return {score.resolve(numbers.of), numbers}; }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return score.evaluate(s, g.at(numbers));
  }
};

template <class M>
class ScoreOf final : public Part<M, ScorePart, kernel::Score<float>, kernel::Score<double>> {
  using Base = Part<M, ScorePart, kernel::Score<float>, kernel::Score<double>>;

 public:
  using Base::Base, Base::m;
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const override {
    return m.evaluate(s, g);
  }
  Symbol symbol([[maybe_unused]] const Symbol& s,
                [[maybe_unused]] const SymbolPair& pair) const override {
    if constexpr (requires { m.symbol(s, pair); }) return m.symbol(s, pair);
    TORCH_CHECK_NOT_IMPLEMENTED(false, "a score modifier of this type has no symbolic form");
  }
  void learnable([[maybe_unused]] std::vector<Learnable>& out) const override {
    if constexpr (requires { m.learnable(out); }) m.learnable(out);
  }
  AnyScore resolve([[maybe_unused]] const Shape& n) const override {
    if constexpr (requires { m.resolve(n); }) return m.resolve(n);
    return m;
  }
  torch::Tensor sink() const override {
    if constexpr (requires { m.sink(); }) return m.sink();
    return {};
  }
  AnyScore placed([[maybe_unused]] const torch::Tensor& places) const override {
    if constexpr (requires { m.placed(places); }) {
      if (m.asks_places()) return m.placed(places);
    }
    return m;
  }
  AnyScore at(const PairNumbers& numbers) const override {
    if constexpr (requires { m.at(numbers); }) return m.at(numbers);
    return ScoreAt{AnyScore(m), numbers};
  }
};

template <ScoreMod A, ScoreMod B>
AnyScore operator+(A a, B b) {
  return chain(AnyScore(std::move(a)), AnyScore(std::move(b)));
}

/// What a mask tensor says: bool who attends, floating what is added to the scores.
struct MaskAndBias {
  AnyMask mask;
  AnyScore bias;
};
/// Of a tensor that broadcasts to [B, H, L, S]; of an undefined one nothing.
inline MaskAndBias mask_and_bias(const torch::Tensor& rank4) {
  if (!rank4.defined()) return {};
  if (rank4.scalar_type() == torch::kBool) return {TensorMask{rank4}, {}};
  return {{}, TensorBias{rank4}};
}

}  // namespace attzoo::core

namespace attzoo {
using core::operator+;
}
