#pragma once
/// \file
/// Masks of any type as one type, and their compositions, made at run time.

#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/core/modifier/part.hpp>
#include <attzoo/core/unchanged.hpp>

#include <functional>
#include <memory>
#include <type_traits>

namespace attzoo::core {

class AnyMask;
struct MaskNode;

/// A mask that is composed of no others, of any type.
class MaskPart : public AnyPart {
 public:
  virtual torch::Tensor evaluate(const Grid& g) const = 0;
  virtual Symbol symbol(const SymbolPair& pair) const = 0;
  virtual kernel::Mask reach(const Shape& n) const = 0;
  virtual WindowSize window_size(const Shape& n) const = 0;
  virtual const DocumentsMask* documents() const = 0;
  virtual AnyMask placed(const torch::Tensor& places) const = 0;
  virtual AnyMask at(const PairNumbers& numbers) const = 0;
};
template <class M>
class MaskOf;

/// Any mask by value, cheap to copy. A default constructed one lets everybody attend.
class AnyMask {
 public:
  static constexpr bool is_mask = true;

  AnyMask() = default;
  // Not this class itself, first: Clang would ask the concept whether it can be copied, and so on.
  template <class M>
  requires(!std::same_as<M, AnyMask> && MaskMod<M>) AnyMask(M mask) {  // NOLINT: any mask is one
    if constexpr (!std::same_as<M, FullMask>) set(std::make_shared<MaskOf<M>>(std::move(mask)));
  }

  /// Whether nothing is masked.
  bool is_full() const { return !node_; }
  torch::Tensor evaluate(const Grid& g) const;
  /// Whether a pair may attend. Throws c10::NotImplementedError where a part has no such form.
  Symbol symbol(const SymbolPair& pair) const;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const;
  /// Whether a part of it counts queries from the first one, wherever that stands among the keys.
  bool is_raw() const;
  /// Whether a part of it counts in documents and has not been told where tokens stand in theirs.
  bool asks_places() const;
  /// The same with the places of all keys, int64 [1 or B, S].
  AnyMask placed(const torch::Tensor& places) const;
  /// The same pairs in a problem whose queries and keys have other numbers.
  AnyMask at(const PairNumbers& numbers) const;
  /// The documents that it keeps apart; null without any.
  const DocumentsMask* documents() const;

  /// Which keys are reached, for any device: kernel::reach() says of what queries.
  kernel::Mask reach(const Shape& n) const;
  /// Of a full, a causal or a window mask, and of such composed by &&.
  WindowSize window_size(const Shape& n) const;
  /// Whether a backend's form knows all its parts, and that form.
  bool has_form(const std::type_info& type) const;
  template <class Form>
  Form form(const Shape& n) const {
    return fold<Form>([&](const MaskPart& part) {
      Form form;
      TORCH_INTERNAL_ASSERT(part.form(typeid(Form), &n, &form));
      return form;
    });
  }

  friend AnyMask all_of(AnyMask a, AnyMask b);
  friend AnyMask any_of(AnyMask a, AnyMask b);
  friend AnyMask none_of(AnyMask a);

 private:
  explicit AnyMask(MaskNode node);
  void set(std::shared_ptr<const MaskPart> part);
  /// Whether `f` says so of all parts; it asks no more after the first that it denies.
  bool all_parts(const std::function<bool(const MaskPart&)>& f) const;
  /// What all_of(), any_of() and none_of() make of what `of` says of the parts; an R() is
  /// everybody.
  template <class R, class F>
  R fold(const F& of) const;

  std::shared_ptr<const MaskNode> node_;
};

/// One mask, or two of which both or one let a pair attend, or one that does not.
struct MaskNode {
  enum class Op { kPart, kAll, kAny, kNone };
  Op op;
  std::shared_ptr<const MaskPart> part;
  AnyMask a, b;
};

template <class R, class F>
R AnyMask::fold(const F& of) const {
  if (!node_) return R();
  const auto &a = node_->a, &b = node_->b;
  switch (node_->op) {
    case MaskNode::Op::kAll:
      return all_of(a.fold<R>(of), b.fold<R>(of));
    case MaskNode::Op::kAny:
      return any_of(a.fold<R>(of), b.fold<R>(of));
    case MaskNode::Op::kNone:
      return none_of(a.fold<R>(of));
    default:
      return of(*node_->part);
  }
}

/// A mask whose pairs have other numbers here. No backend has a form of it.
struct MaskAt {
  static constexpr bool is_mask = true;
  AnyMask mask;
  PairNumbers numbers;
  void check(const Shape&, const torch::Device& device) const { mask.check(numbers.of, device); }
  void tensors(Captured& out) const { mask.tensors(out); }
  torch::Tensor evaluate(const Grid& g) const { return mask.evaluate(g.at(numbers)); }
};

template <class M>
class MaskOf final : public Part<M, MaskPart, kernel::Mask> {
 public:
  using Part<M, MaskPart, kernel::Mask>::Part, Part<M, MaskPart, kernel::Mask>::m;
  torch::Tensor evaluate(const Grid& g) const override { return m.evaluate(g); }
  Symbol symbol([[maybe_unused]] const SymbolPair& pair) const override {
    if constexpr (requires { m.symbol(pair); }) return m.symbol(pair);
    TORCH_CHECK_NOT_IMPLEMENTED(false, "a mask of this type has no symbolic form");
  }
  kernel::Mask reach([[maybe_unused]] const Shape& n) const override {
    if constexpr (requires { m.reach(n); }) return m.reach(n);
    if constexpr (requires { m.fits_kernel(); }) {
      if (!m.fits_kernel()) return kernel::anywhere();
    }
    if constexpr (requires { m.bind(n); }) return kernel::reach_of(m.bind(n));
    return kernel::anywhere();
  }
  WindowSize window_size([[maybe_unused]] const Shape& n) const override {
    if constexpr (requires { m.window_size(n); }) return m.window_size(n);
    return {.known = false};
  }
  const DocumentsMask* documents() const override {
    if constexpr (requires { m.kept_apart(); }) return m.kept_apart();
    return nullptr;
  }
  AnyMask placed([[maybe_unused]] const torch::Tensor& places) const override {
    if constexpr (requires { m.placed(places); }) {
      if (m.asks_places()) return m.placed(places);
    }
    return m;
  }
  AnyMask at(const PairNumbers& numbers) const override {
    if constexpr (requires { m.at(numbers); }) return m.at(numbers);
    return MaskAt{m, numbers};
  }
};

// Operators beside the types, so that they are found without `using namespace attzoo`; & | ~ as of
// bool tensors.

ATTZOO_API AnyMask all_of(AnyMask a, AnyMask b);
ATTZOO_API AnyMask any_of(AnyMask a, AnyMask b);
ATTZOO_API AnyMask none_of(AnyMask a);
template <MaskMod A, MaskMod B>
AnyMask operator&&(A a, B b) {
  return all_of(std::move(a), std::move(b));
}
template <MaskMod A, MaskMod B>
AnyMask operator&(A a, B b) {
  return all_of(std::move(a), std::move(b));
}
template <MaskMod A, MaskMod B>
AnyMask operator||(A a, B b) {
  return any_of(std::move(a), std::move(b));
}
template <MaskMod A, MaskMod B>
AnyMask operator|(A a, B b) {
  return any_of(std::move(a), std::move(b));
}
template <MaskMod A>
AnyMask operator!(A a) {
  return none_of(std::move(a));
}
template <MaskMod A>
AnyMask operator~(A a) {
  return none_of(std::move(a));
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
  bool is_raw() const { return mask.is_raw(); }
  bool asks_places() const { return mask.asks_places(); }
  /// Throws c10::ValueError: the tiles were made of other places.
  AnyMask placed(const torch::Tensor& places) const;
  /// That of the mask alone.
  AnyMask at(const PairNumbers& numbers) const { return mask.at(numbers); }
  const DocumentsMask* kept_apart() const { return mask.documents(); }
  torch::Tensor evaluate(const Grid& g) const { return mask.evaluate(g); }
  Symbol symbol(const SymbolPair& pair) const { return mask.symbol(pair); }
  WindowSize window_size(const Shape& n) const { return mask.window_size(n); }
  kernel::Mask reach(const Shape& n) const { return tiled(mask.reach(n), tiles); }
  bool has_form(const std::type_info& type) const { return mask.has_form(type); }
};
template <class Form>
Form form_of(std::type_identity<Form>, const BlockMask& m, const Shape& n) {
  return tiled(m.mask.form<Form>(n), m.tiles);
}

/// Where the tensors of a mask lie; the CPU if it has none.
ATTZOO_API torch::Device device_of(const AnyMask& mask);

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

#ifdef ATTZOO_DEFINE_CORE

#include <algorithm>

namespace attzoo::core {

ATTZOO_API AnyMask::AnyMask(MaskNode node) : node_(std::make_shared<MaskNode>(std::move(node))) {}
ATTZOO_API void AnyMask::set(std::shared_ptr<const MaskPart> part) {
  node_ = std::make_shared<MaskNode>(MaskNode{MaskNode::Op::kPart, std::move(part), {}, {}});
}

ATTZOO_API AnyMask all_of(AnyMask a, AnyMask b) {
  if (a.is_full()) return b;
  if (b.is_full()) return a;
  return AnyMask(MaskNode{MaskNode::Op::kAll, nullptr, std::move(a), std::move(b)});
}
ATTZOO_API AnyMask any_of(AnyMask a, AnyMask b) {
  if (a.is_full() || b.is_full()) return {};
  return AnyMask(MaskNode{MaskNode::Op::kAny, nullptr, std::move(a), std::move(b)});
}
ATTZOO_API AnyMask none_of(AnyMask a) {
  return AnyMask(MaskNode{MaskNode::Op::kNone, nullptr, std::move(a), {}});
}

ATTZOO_API bool AnyMask::all_parts(const std::function<bool(const MaskPart&)>& f) const {
  if (!node_) return true;
  return node_->part ? f(*node_->part) : node_->a.all_parts(f) && node_->b.all_parts(f);
}
ATTZOO_API void AnyMask::check(const Shape& n, const torch::Device& device) const {
  all_parts([&](const MaskPart& part) { return part.check(n, device), true; });
}
ATTZOO_API void AnyMask::tensors(Captured& out) const {
  all_parts([&](const MaskPart& part) { return part.tensors(out), true; });
}
ATTZOO_API bool AnyMask::is_raw() const {
  return !all_parts([](const MaskPart& part) { return !part.is_raw(); });
}
ATTZOO_API bool AnyMask::asks_places() const {
  return !all_parts([](const MaskPart& part) { return !part.asks_places(); });
}
ATTZOO_API bool AnyMask::has_form(const std::type_info& type) const {
  return all_parts([&](const MaskPart& part) { return part.form(type, nullptr, nullptr); });
}

ATTZOO_API torch::Tensor AnyMask::evaluate(const Grid& g) const {
  if (!node_) return FullMask().evaluate(g);
  const auto &a = node_->a, &b = node_->b;
  switch (node_->op) {
    case MaskNode::Op::kAll:
      return torch::logical_and(a.evaluate(g), b.evaluate(g));
    case MaskNode::Op::kAny:
      return torch::logical_or(a.evaluate(g), b.evaluate(g));
    case MaskNode::Op::kNone:
      return torch::logical_not(a.evaluate(g));
    default:
      return node_->part->evaluate(g);
  }
}
ATTZOO_API Symbol AnyMask::symbol(const SymbolPair& pair) const {
  return fold<SymbolTruth>([&](const MaskPart& part) { return part.symbol(pair); }).truth;
}
ATTZOO_API AnyMask AnyMask::placed(const torch::Tensor& places) const {
  return fold<AnyMask>([&](const MaskPart& part) { return part.placed(places); });
}
ATTZOO_API AnyMask AnyMask::at(const PairNumbers& numbers) const {
  return fold<AnyMask>([&](const MaskPart& part) { return part.at(numbers); });
}
ATTZOO_API kernel::Mask AnyMask::reach(const Shape& n) const {
  return fold<kernel::Mask>([&](const MaskPart& part) { return part.reach(n); });
}
ATTZOO_API WindowSize AnyMask::window_size(const Shape& n) const {
  return fold<WindowSize>([&](const MaskPart& part) { return part.window_size(n); });
}
ATTZOO_API const DocumentsMask* AnyMask::documents() const {
  if (!node_ || node_->op == MaskNode::Op::kAny || node_->op == MaskNode::Op::kNone) return nullptr;
  if (node_->part) return node_->part->documents();
  const auto* first = node_->a.documents();
  return first ? first : node_->b.documents();
}

/// Evaluates a mask one row of tiles at a time.
ATTZOO_API std::shared_ptr<const kernel::TileCover> tile_cover(const AnyMask& mask,
                                                               const Shape& n) {
  constexpr int64_t kTile = 64;
  const auto device = device_of(mask);
  const int64_t rows = (n.L + kTile - 1) / kTile, columns = (n.S + kTile - 1) / kTile;
  auto tiles = std::make_shared<kernel::TileCover>();
  tiles->tile = kTile;
  tiles->batches = static_cast<int>(n.B);
  tiles->heads = static_cast<int>(n.H);
  tiles->rows = static_cast<int>(rows);
  tiles->columns = static_cast<int>(columns);
  tiles->cover.resize(static_cast<size_t>(n.B * n.H * rows * columns));
  const auto by_tile = [&](const torch::Tensor& t, bool padding) {  // [B, H, S] -> [.., 64]
    return torch::constant_pad_nd(t, {0, columns * kTile - n.S}, padding)
        .view({n.B, n.H, columns, kTile});
  };
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = row * kTile, end = std::min(n.L, begin + kTile);
    const auto allowed =
        mask.evaluate(Grid(n, begin, end, device)).expand({n.B, n.H, end - begin, n.S});
    const auto any = by_tile(allowed.any(2), false).any(-1).to(torch::kInt32);
    const auto all = by_tile(allowed.all(2), true).all(-1).to(torch::kInt32);
    const auto cover = (any + all).cpu().contiguous();  // 0 empty, 1 partial, 2 full
    const int* from = cover.const_data_ptr<int>();
    for (int64_t head = 0; head < n.B * n.H; ++head) {
      for (int64_t column = 0; column < columns; ++column) {
        tiles->cover[static_cast<size_t>((head * rows + row) * columns + column)] =
            static_cast<kernel::Cover>(from[head * columns + column]);
      }
    }
  }
  return tiles;
}

ATTZOO_API torch::Device device_of(const AnyMask& mask) {
  Captured held;
  mask.tensors(held);
  for (const auto& t : held) {
    if (t.defined()) return t.device();
  }
  return torch::kCPU;
}

ATTZOO_API BlockMask::BlockMask(AnyMask of, const Shape& n)
    : mask(std::move(of)), L(n.L), S(n.S), tiles(tile_cover(mask, n)) {
  Captured read;
  mask.tensors(read);
  unchanged = Unchanged(read);
}
ATTZOO_API void BlockMask::check(const Shape& n, const torch::Device& device) const {
  TORCH_CHECK_VALUE(n.L == L && n.S == S && (tiles->batches == 1 || tiles->batches == n.B) &&
                        (tiles->heads == 1 || tiles->heads == n.H),
                    "block_mask: made for B=", tiles->batches, " H=", tiles->heads, " L=", L,
                    " S=", S, ", got B=", n.B, " H=", n.H, " L=", n.L, " S=", n.S);
  mask.check(n, device);
  unchanged.check("block_mask");
}
ATTZOO_API AnyMask BlockMask::placed(const torch::Tensor&) const {
  TORCH_CHECK_VALUE(false,
                    "block_mask: its mask counts in documents (in_document), which come with the "
                    "call, after its tiles were made; pass the mask itself");
}
ATTZOO_API torch::Tensor asked_places(const AnyMask& mask, bool score_asks, const Shape& n,
                                      const torch::Device& device) {
  const auto* apart = score_asks || mask.asks_places() ? mask.documents() : nullptr;
  if (!apart) return {};
  apart->check(n, device);
  return pack(apart->documents, "in_document").position;
}

}  // namespace attzoo::core

#endif
