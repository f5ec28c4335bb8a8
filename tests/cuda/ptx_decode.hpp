#pragma once
/// \file One PTX instruction on its way from text to an Operation.

#include <cfenv>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ptx_machine.hpp"

namespace attzoo::ptx {

/// A register: its place in the file and its bytes a lane, 0 for a predicate.
struct Slot {
  uint32_t place = 0;
  uint32_t width = 0;
};

/// The registers of a kernel; literals and addresses are registers that hold them from the start.
class RegisterFile {
 public:
  Slot add(uint32_t width) {
    const Slot slot{static_cast<uint32_t>(image_.size()), width};
    image_.resize(image_.size() + (width == 0 ? 8 : width * kLanes));
    Shared::poison(image_.data() + slot.place, image_.size() - slot.place);
    return slot;
  }

  Slot constant(uint64_t value, uint32_t width) {
    if (width == 0) value = value == 0 ? 0 : kFull;
    if (width > 0 && width < 8) value &= (1ull << (8 * width)) - 1;
    const auto [known, fresh] = constants_.try_emplace({value, width});
    if (fresh) {
      known->second = add(width);
      std::byte* to = image_.data() + known->second.place;
      if (width == 0) std::memcpy(to, &value, 4);
      for (int l = 0; width > 0 && l < kLanes; ++l) put_wide(to, width, l, value);
    }
    return known->second;
  }

  const std::vector<std::byte>& image() const { return image_; }

 private:
  std::vector<std::byte> image_;
  std::map<std::pair<uint64_t, uint32_t>, Slot> constants_;
};

/// Turns a name that is no literal into a register.
class Names {
 public:
  virtual ~Names() = default;
  /// Null if there is no such name; the width is the one a constant address is wanted in.
  virtual std::optional<Slot> find(const std::string& name, uint32_t width) = 0;
};

/// The opcode's parts, the operands' texts and the operation they become.
class Decoding {
 public:
  Decoding(const std::string& opcode, std::vector<std::string> operands, RegisterFile& file,
           Names& names)
      : parts(split(opcode, '.')), x(std::move(operands)), file_(file), names_(names) {}

  bool has(const char* part) const {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  }
  const std::string& name() const { return parts.front(); }
  const std::string& type() const { return parts.back(); }
  const std::string& type_before() const { return parts[parts.size() - 2]; }

  /// A register that is written; its width must be the one given, or any if that is 1.
  Slot to(const std::string& text, uint32_t width) {
    if (text == "_") return file_.add(width);
    const auto slot = names_.find(text, width);
    if (!slot) throw Error("unknown register " + text);
    return checked(*slot, width, text);
  }

  /// A register, a literal or an address that is read.
  Slot from(const std::string& text, uint32_t width, bool floating = false) {
    if (text.empty()) throw Error("missing operand");
    if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
      return file_.constant(literal(text, floating, width), width == 1 ? 8 : width);
    }
    const auto slot = names_.find(text, width);
    if (!slot) throw Error("unknown name " + text);
    return checked(*slot, width, text);
  }

  /// A predicate that is read; one with ! before it becomes the place's bits flipped by `flips`.
  uint32_t predicate(std::string text, uint32_t& flips) {
    flips = text[0] == '!' ? kFull : 0;
    return from(text.substr(flips != 0), 0).place;
  }

  Slot scratch(uint32_t width) { return file_.add(width); }

  /// The address operand [base + displacement], into r[at], small[7] and number.
  void address(std::string text, size_t at) {
    if (text.size() < 2 || text[0] != '[') throw Error("not an address: " + text);
    text = trim(text.substr(1, text.size() - 2));
    const auto plus = text.find('+');
    if (plus != std::string::npos) op.number = std::stoll(text.substr(plus + 1), nullptr, 0);
    const Slot base = from(trim(text.substr(0, plus)), 1);
    op.r[at] = base.place;
    op.small[7] = static_cast<uint8_t>(base.width);
  }

  /// The parts of {a, b, c}, or the text itself.
  static std::vector<std::string> list(const std::string& text) {
    return text[0] == '{' ? split(text.substr(1, text.size() - 2), ',')
                          : std::vector<std::string>{text};
  }

  std::vector<std::string> parts, x;
  Operation op;

 private:
  static Slot checked(Slot slot, uint32_t width, const std::string& text) {
    if (width != 1 && slot.width != width) {
      throw Error("operand " + text + " has " + std::to_string(8 * slot.width) + " bits, not " +
                  std::to_string(8 * width));
    }
    return slot;
  }

  RegisterFile& file_;
  Names& names_;
};

/// Two numbers of 16 bits whose arithmetic is that of float.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <class F, class R, class... A, size_t... I>
inline void apply_indexed(Warp& w, const Operation& o, uint32_t mask, std::index_sequence<I...>) {
  std::byte* to = w.registers + o.r[0];
  const std::byte* from[] = {w.registers + o.r[1 + I]...};
  if (mask == kFull) {
    for (int l = 0; l < kLanes; ++l) put<R>(to, l, F{}(get<A>(from[I], l)...));
  } else {
    for (int l = 0; l < kLanes; ++l) {
      if (mask >> l & 1) put<R>(to, l, F{}(get<A>(from[I], l)...));
    }
  }
}

/// r[0] = F(r[1], r[2], ...) in the lanes of the mask.
template <class F, class R, class... A>
void apply(Warp& w, const Operation& o, uint32_t mask) {
  apply_indexed<F, R, A...>(w, o, mask, std::index_sequence_for<A...>{});
}

/// Whether a type's literals are those of floating numbers.
template <class T>
inline constexpr bool kFloating = std::is_floating_point_v<T>;

/// Makes the operation r[0] = F(sources), of these types.
template <class R, class... A, class F>
bool elementwise(Decoding& d, F) {
  d.op.execute = &apply<F, R, A...>;
  d.op.r[0] = d.to(d.x.at(0), sizeof(R)).place;
  size_t i = 1;
  ((d.op.r[i] = d.from(d.x.at(i), sizeof(A), kFloating<A>).place, ++i), ...);
  return true;
}

/// The operation of N sources of one type, for an integer type of the instruction.
template <int N, class T, class F>
bool same_type(Decoding& d, F f) {
  if constexpr (N == 1) return elementwise<T, T>(d, f);
  if constexpr (N == 2) return elementwise<T, T, T>(d, f);
  if constexpr (N == 3) return elementwise<T, T, T, T>(d, f);
  if constexpr (N == 4) return elementwise<T, T, T, T, T>(d, f);
}

template <int N, class F>
bool on_integers(Decoding& d, F f) {
  const std::string& t = d.type();
  if (t == "s32") return same_type<N, int32_t>(d, f);
  if (t == "u32" || t == "b32") return same_type<N, uint32_t>(d, f);
  if (t == "s64") return same_type<N, int64_t>(d, f);
  if (t == "u64" || t == "b64") return same_type<N, uint64_t>(d, f);
  if (t == "s16") return same_type<N, int16_t>(d, f);
  if (t == "u16" || t == "b16") return same_type<N, uint16_t>(d, f);
  return false;
}

/// For instructions on bits, whose signedness says nothing.
template <int N, class F>
bool on_bits(Decoding& d, F f) {
  const size_t bytes = type_bytes(d.type());
  if (bytes == 4) return same_type<N, uint32_t>(d, f);
  if (bytes == 8) return same_type<N, uint64_t>(d, f);
  return bytes == 2 && same_type<N, uint16_t>(d, f);
}

}  // namespace attzoo::ptx
