#pragma once
/// \file
/// Masks of any type as one type, and their compositions, made at run time.

#include <attzoo/core/cpu/mask_forms.hpp>
#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/core/unchanged.hpp>

#include <memory>
#include <type_traits>

namespace attzoo::core {

/// Any mask by value, cheap to copy. A default constructed one lets everybody attend.
class AnyMask {
 public:
  static constexpr bool is_mask = true;

  AnyMask() = default;
  // Not this class itself, first: Clang would ask the concept whether it can be copied, and so on.
  template <class M>
  requires(!std::same_as<M, AnyMask> && MaskMod<M>) AnyMask(M mask) {  // NOLINT: any mask is one
    if constexpr (!std::same_as<M, FullMask>) box_ = std::make_shared<Box<M>>(std::move(mask));
  }

  /// Whether nothing is masked.
  bool is_full() const { return !box_; }
  /// The mask itself if it is an M, else null: for who reads descriptions.
  template <MaskMod M>
  const M* get_if() const {
    const auto* box = dynamic_cast<const Box<M>*>(box_.get());
    return box ? &box->mask : nullptr;
  }

  torch::Tensor evaluate(const Grid& g) const {
    return box_ ? box_->evaluate(g) : FullMask().evaluate(g);
  }
  void check(const Shape& n, const torch::Device& device) const {
    if (box_) box_->check(n, device);
  }
  void tensors(Captured& out) const {
    if (box_) box_->tensors(out);
  }
  /// Whether a part of it counts queries from the first one, wherever that stands among the keys.
  bool is_raw() const { return box_ && box_->is_raw(); }
  /// Whether a part of it counts in documents and has not been told where tokens stand in theirs.
  bool asks_places() const { return box_ && box_->asks_places(); }
  /// The same with the places of all keys, int64 [1 or B, S].
  AnyMask placed(const torch::Tensor& places) const {
    return asks_places() ? box_->placed(places) : *this;
  }
  /// Whether the CPU's kernels know all its parts.
  bool has_cpu_form() const { return !box_ || box_->has_cpu_form(); }
  /// The form for those kernels, if there is one.
  kernel::Mask on_cpu(const Shape& n) const { return box_ ? box_->on_cpu(n) : kernel::Mask(); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual torch::Tensor evaluate(const Grid& g) const = 0;
    virtual void check(const Shape& n, const torch::Device& device) const = 0;
    virtual void tensors(Captured& out) const = 0;
    virtual bool is_raw() const = 0;
    virtual bool asks_places() const = 0;
    virtual AnyMask placed(const torch::Tensor& places) const = 0;
    virtual bool has_cpu_form() const = 0;
    virtual kernel::Mask on_cpu(const Shape& n) const = 0;
  };
  template <MaskMod M>
  struct Box final : Interface {
    M mask;
    explicit Box(M m) : mask(std::move(m)) {}
    torch::Tensor evaluate(const Grid& g) const override { return mask.evaluate(g); }
    void check([[maybe_unused]] const Shape& n,
               [[maybe_unused]] const torch::Device& device) const override {
      if constexpr (requires { mask.check(n, device); }) mask.check(n, device);
    }
    void tensors([[maybe_unused]] Captured& out) const override {
      if constexpr (requires { mask.tensors(out); }) mask.tensors(out);
    }
    bool is_raw() const override {
      if constexpr (requires { mask.is_raw(); }) return mask.is_raw();
      return false;
    }
    bool asks_places() const override {
      if constexpr (requires { mask.asks_places(); }) return mask.asks_places();
      return false;
    }
    AnyMask placed([[maybe_unused]] const torch::Tensor& places) const override {
      if constexpr (requires { mask.placed(places); }) return mask.placed(places);
      return {};
    }
    bool has_cpu_form() const override {
      if constexpr (requires { mask.has_cpu_form(); }) return mask.has_cpu_form();
      return requires { cpu_form(mask, Shape()); };
    }
    kernel::Mask on_cpu([[maybe_unused]] const Shape& n) const override {
      if constexpr (requires { cpu_form(mask, n); }) return cpu_form(mask, n);
      TORCH_INTERNAL_ASSERT(false, "a mask without a form for the CPU's kernels");
    }
  };

  std::shared_ptr<const Interface> box_;
};

/// Two masks.
struct MaskPair {
  static constexpr bool is_mask = true;
  AnyMask a, b;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const;
  bool is_raw() const { return a.is_raw() || b.is_raw(); }
  bool asks_places() const { return a.asks_places() || b.asks_places(); }
  bool has_cpu_form() const { return a.has_cpu_form() && b.has_cpu_form(); }
};

/// Pairs that both masks let attend.
struct AndMask : MaskPair {
  AndMask placed(const torch::Tensor& p) const { return {{a.placed(p), b.placed(p)}}; }
  torch::Tensor evaluate(const Grid& g) const;
};

/// Pairs that one of the masks lets attend.
struct OrMask : MaskPair {
  OrMask placed(const torch::Tensor& p) const { return {{a.placed(p), b.placed(p)}}; }
  torch::Tensor evaluate(const Grid& g) const;
};

/// Pairs that the mask forbids.
struct NotMask {
  static constexpr bool is_mask = true;
  AnyMask a;
  void check(const Shape& n, const torch::Device& device) const { a.check(n, device); }
  void tensors(Captured& out) const { a.tensors(out); }
  bool is_raw() const { return a.is_raw(); }
  bool asks_places() const { return a.asks_places(); }
  NotMask placed(const torch::Tensor& places) const { return {a.placed(places)}; }
  bool has_cpu_form() const { return a.has_cpu_form(); }
  torch::Tensor evaluate(const Grid& g) const;
};

ATTZOO_API kernel::Mask cpu_form(const AndMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const OrMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const NotMask& m, const Shape& n);

// Operators beside the types, so that they are found without `using namespace attzoo`.

ATTZOO_API AnyMask all_of(AnyMask a, AnyMask b);
template <MaskMod A, MaskMod B>
AnyMask operator&&(A a, B b) {
  return all_of(std::move(a), std::move(b));
}
ATTZOO_API AnyMask any_of(AnyMask a, AnyMask b);
template <MaskMod A, MaskMod B>
AnyMask operator||(A a, B b) {
  return any_of(std::move(a), std::move(b));
}
template <MaskMod A>
AnyMask operator!(A a) {
  return NotMask{std::move(a)};
}
// As of bool tensors.
template <MaskMod A, MaskMod B>
AnyMask operator&(A a, B b) {
  return all_of(std::move(a), std::move(b));
}
template <MaskMod A, MaskMod B>
AnyMask operator|(A a, B b) {
  return any_of(std::move(a), std::move(b));
}
template <MaskMod A>
AnyMask operator~(A a) {
  return NotMask{std::move(a)};
}

/// How each tile of 64 x 64 pairs is covered by a mask, made once (block_mask()).
struct BlockMask {
  static constexpr bool is_mask = true;
  AnyMask mask;
  int64_t L, S;
  std::shared_ptr<const kernel::TileCover> tiles;
  Unchanged unchanged;  // what the tiles were made of

  BlockMask(AnyMask of, const Shape& n);
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { mask.tensors(out); }
  bool asks_places() const { return mask.asks_places(); }
  /// Throws c10::ValueError: the tiles were made of other places.
  AnyMask placed(const torch::Tensor& places) const;
  bool has_cpu_form() const { return mask.has_cpu_form(); }
  torch::Tensor evaluate(const Grid& g) const { return mask.evaluate(g); }
};
ATTZOO_API kernel::Mask cpu_form(const BlockMask& m, const Shape& n);

/// If the mask, or the score beside it, counts in documents: the places of all keys in those that
/// the mask keeps apart, int64 [1 or B, S]; undefined if it keeps none apart. Throws
/// c10::ValueError for documents that do not fit the problem or do not lie together.
ATTZOO_API torch::Tensor asked_places(const AnyMask& mask, bool score_asks, const Shape& n,
                                      const torch::Device& device);

}  // namespace attzoo::core

namespace attzoo {
using core::operator&&;
using core::operator||;
using core::operator!;
using core::operator&;
using core::operator|;
using core::operator~;
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/any_mask.ipp>
#endif
