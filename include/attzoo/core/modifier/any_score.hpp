#pragma once
/// \file
/// Score modifiers of any type as one type, and their chains, made at run time.

#include <attzoo/core/cpu/score_forms.hpp>
#include <attzoo/core/modifier/any_mask.hpp>
#include <attzoo/core/modifier/score_values.hpp>

#include <memory>
#include <vector>

namespace attzoo::core {

/// Any score modifier by value, cheap to copy. A default constructed one changes nothing.
class AnyScore {
 public:
  static constexpr bool is_score = true;

  AnyScore() = default;
  // Not this class itself, first: Clang would ask the concept whether it can be copied, and so on.
  template <class M>
  requires(!std::same_as<M, AnyScore> && ScoreMod<M>)
      AnyScore(M score) {  // NOLINT: any modifier is one
    if constexpr (!std::same_as<M, IdentityScore>)
      box_ = std::make_shared<Box<M>>(std::move(score));
  }

  /// Whether scores stay as they are.
  bool is_identity() const { return !box_; }
  /// The modifier itself if it is an M, else null.
  template <ScoreMod M>
  const M* get_if() const {
    const auto* box = dynamic_cast<const Box<M>*>(box_.get());
    return box ? &box->score : nullptr;
  }

  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return box_ ? box_->evaluate(s, g) : s;
  }
  void check(const Shape& n, const torch::Device& device) const {
    if (box_) box_->check(n, device);
  }
  void tensors(Captured& out) const {
    if (box_) box_->tensors(out);
  }
  /// The tensors that may learn, in the order of its parts.
  void learnable(std::vector<Learnable>& out) const {
    if (box_) box_->learnable(out);
  }
  /// What takes its place in a problem: learnable tensors as backends read them.
  AnyScore resolve(const Shape& n) const { return box_ ? box_->resolve(n) : AnyScore(); }
  /// Logits [H] in the softmax's denominator; undefined: none.
  torch::Tensor sink() const { return box_ ? box_->sink() : torch::Tensor(); }
  /// Whether a part of it counts queries from the first one, wherever that stands among the keys.
  bool is_raw() const { return box_ && box_->is_raw(); }
  /// Whether a part of it counts in documents and has not been told where tokens stand in theirs.
  bool asks_places() const { return box_ && box_->asks_places(); }
  /// The same with the places of all keys, int64 [1 or B, S].
  AnyScore placed(const torch::Tensor& places) const {
    return asks_places() ? box_->placed(places) : *this;
  }
  /// Whether the CPU's kernels know all its parts.
  bool has_cpu_form() const { return !box_ || box_->has_cpu_form(); }
  /// The form for those kernels in T = float or double, if there is one.
  template <class T>
  kernel::Score<T> on_cpu(const Shape& n) const {
    return box_ ? box_->on_cpu(n, T()) : kernel::Score<T>();
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const = 0;
    virtual void check(const Shape& n, const torch::Device& device) const = 0;
    virtual void tensors(Captured& out) const = 0;
    virtual void learnable(std::vector<Learnable>& out) const = 0;
    virtual AnyScore resolve(const Shape& n) const = 0;
    virtual torch::Tensor sink() const = 0;
    virtual bool is_raw() const = 0;
    virtual bool asks_places() const = 0;
    virtual AnyScore placed(const torch::Tensor& places) const = 0;
    virtual bool has_cpu_form() const = 0;
    virtual kernel::Score<float> on_cpu(const Shape& n, float) const = 0;
    virtual kernel::Score<double> on_cpu(const Shape& n, double) const = 0;
  };
  template <ScoreMod M>
  struct Box final : Interface {
    M score;
    explicit Box(M m) : score(std::move(m)) {}
    torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const override {
      return score.evaluate(s, g);
    }
    void check([[maybe_unused]] const Shape& n,
               [[maybe_unused]] const torch::Device& device) const override {
      if constexpr (requires { score.check(n, device); }) score.check(n, device);
    }
    void tensors([[maybe_unused]] Captured& out) const override {
      if constexpr (requires { score.tensors(out); }) score.tensors(out);
    }
    void learnable([[maybe_unused]] std::vector<Learnable>& out) const override {
      if constexpr (requires { score.learnable(out); }) score.learnable(out);
    }
    AnyScore resolve([[maybe_unused]] const Shape& n) const override {
      if constexpr (requires { score.resolve(n); }) return score.resolve(n);
      return score;
    }
    torch::Tensor sink() const override {
      if constexpr (requires { score.sink(); }) return score.sink();
      return {};
    }
    bool is_raw() const override {
      if constexpr (requires { score.is_raw(); }) return score.is_raw();
      return false;
    }
    bool asks_places() const override {
      if constexpr (requires { score.asks_places(); }) return score.asks_places();
      return false;
    }
    AnyScore placed([[maybe_unused]] const torch::Tensor& places) const override {
      if constexpr (requires { score.placed(places); }) return score.placed(places);
      return {};
    }
    bool has_cpu_form() const override {
      if constexpr (requires { score.has_cpu_form(); }) return score.has_cpu_form();
      return requires { cpu_form(score, Shape(), float()); };
    }
    kernel::Score<float> on_cpu(const Shape& n, float) const override { return form<float>(n); }
    kernel::Score<double> on_cpu(const Shape& n, double) const override { return form<double>(n); }
    template <class T>
    kernel::Score<T> form([[maybe_unused]] const Shape& n) const {
      if constexpr (requires { cpu_form(score, n, T()); }) return cpu_form(score, n, T());
      TORCH_INTERNAL_ASSERT(false, "a score modifier without a form for the CPU's kernels");
    }
  };

  std::shared_ptr<const Interface> box_;
};

/// a, then b.
struct ChainScore {
  static constexpr bool is_score = true;
  AnyScore a, b;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const;
  void learnable(std::vector<Learnable>& out) const;
  AnyScore resolve(const Shape& n) const;
  torch::Tensor sink() const;
  bool is_raw() const { return a.is_raw() || b.is_raw(); }
  bool asks_places() const { return a.asks_places() || b.asks_places(); }
  AnyScore placed(const torch::Tensor& places) const;
  bool has_cpu_form() const { return a.has_cpu_form() && b.has_cpu_form(); }
  torch::Tensor evaluate(const torch::Tensor& s, const Grid& g) const {
    return b.evaluate(g.counted(a.evaluate(s, g)), g);
  }
};

template <class T>
kernel::Score<T> cpu_form(const ChainScore& m, const Shape& n, T) {
  return kernel::chain(m.a.on_cpu<T>(n), m.b.on_cpu<T>(n));
}

ATTZOO_API AnyScore chain(AnyScore a, AnyScore b);
template <ScoreMod A, ScoreMod B>
AnyScore operator+(A a, B b) {
  return chain(std::move(a), std::move(b));
}

/// What a mask tensor says: bool who attends, floating what is added to the scores.
struct MaskAndBias {
  AnyMask mask;
  AnyScore bias;
};
/// Of a tensor that broadcasts to [B, H, L, S]; of an undefined one nothing.
ATTZOO_API MaskAndBias mask_and_bias(const torch::Tensor& rank4);

}  // namespace attzoo::core

namespace attzoo {
using core::operator+;
}

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/any_score.ipp>
#endif
