#pragma once
/// \file Integer, floating and logic instructions of PTX.

#include "ptx_number.hpp"

namespace attzoo::ptx {

template <class T>
inline T divide(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(-static_cast<uint64_t>(a));
  }
  return static_cast<T>(a / b);
}

template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}

template <class T>
inline T high_product(T a, T b) {
  __extension__ using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
}

template <class T>
inline T saturated_sum(T a, int64_t b) {
  const int64_t sum = static_cast<int64_t>(a) + b;
  return static_cast<T>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX));
}

/// The smaller number, or the only one that is not NaN, or NaN if one suffices for that.
template <bool LARGER, bool NANS, class T>
inline T extreme(T a, T b) {
  if (a != a) return NANS ? a : b;
  if (b != b) return NANS ? b : a;
  if (a == b) return std::signbit(a) == LARGER ? b : a;  // -0 is below 0
  return (a < b) != LARGER ? a : b;
}

template <bool LARGER, bool NANS>
inline bool decode_float_extreme(Decoding& d) {
  if (d.x.size() == 4) {
    return on_floats<3>(d, [](auto a, auto b, auto c) {
      return extreme<LARGER, NANS>(extreme<LARGER, NANS>(a, b), c);
    });
  }
  return on_floats<2>(d, [](auto a, auto b) { return extreme<LARGER, NANS>(a, b); });
}

inline bool decode_extreme(Decoding& d) {
  const bool larger = d.name() == "max";
  if (d.type().find('f') != std::string::npos) {
    if (d.has("NaN")) {
      return larger ? decode_float_extreme<true, true>(d) : decode_float_extreme<false, true>(d);
    }
    return larger ? decode_float_extreme<true, false>(d) : decode_float_extreme<false, false>(d);
  }
  if (d.x.size() == 4) {
    if (larger)
      return on_integers<3>(d, [](auto a, auto b, auto c) { return std::max({a, b, c}); });
    return on_integers<3>(d, [](auto a, auto b, auto c) { return std::min({a, b, c}); });
  }
  if (larger) return on_integers<2>(d, [](auto a, auto b) { return std::max(a, b); });
  return on_integers<2>(d, [](auto a, auto b) { return std::min(a, b); });
}

/// Products of the upper half, and of twice the width.
inline bool decode_wide(Decoding& d) {
  const bool adds = d.name() == "mad";
  const std::string& t = d.type();
  if (d.has("hi")) {
    if (adds) {
      return on_integers<3>(d, [](auto a, auto b, auto c) {
        return static_cast<decltype(a)>(static_cast<uint64_t>(high_product(a, b)) +
                                        static_cast<uint64_t>(c));
      });
    }
    return on_integers<2>(d, [](auto a, auto b) { return high_product(a, b); });
  }
  const auto wide = [&](auto narrow, auto result) {
    using A = decltype(narrow);
    using R = decltype(result);
    if (adds) {
      return elementwise<R, A, A, R>(d, [](A a, A b, R c) {
        return static_cast<R>(static_cast<uint64_t>(static_cast<R>(a) * static_cast<R>(b)) +
                              static_cast<uint64_t>(c));
      });
    }
    return elementwise<R, A, A>(
        d, [](A a, A b) { return static_cast<R>(static_cast<R>(a) * static_cast<R>(b)); });
  };
  if (t == "s32") return wide(int32_t{}, int64_t{});
  if (t == "u32") return wide(uint32_t{}, uint64_t{});
  if (t == "s16") return wide(int16_t{}, int32_t{});
  return t == "u16" && wide(uint16_t{}, uint32_t{});
}

/// A sum or difference that reads or leaves the lanes' carry: what it adds to is a product if
/// small[0] is 1 (its lower half) or 2 (its upper half).
template <class T>
void with_carry(Warp& w, const Operation& o, uint32_t mask) {
  const bool product = o.small[0] != 0, subtracts = o.small[1], reads = o.small[2];
  const std::byte* r = w.registers;
  uint32_t& carry = w.predicate(o.r[4]);
  each_lane(mask, [&](int l) {
    T x = get<T>(r + o.r[1], l), y = get<T>(r + o.r[product ? 3 : 2], l);
    if (o.small[0] == 1) x = static_cast<T>(x * get<T>(r + o.r[2], l));
    if (o.small[0] == 2) x = high_product<T>(x, get<T>(r + o.r[2], l));
    if (subtracts) y = ~y;
    const bool flag = carry >> l & 1, in = reads ? flag != subtracts : subtracts;
    const T sum = x + y + in;
    const bool out = sum < x || (in && sum == x);
    if (o.small[3]) carry = (carry & ~(1u << l)) | static_cast<uint32_t>(out != subtracts) << l;
    put<T>(w.registers + o.r[0], l, sum);
  });
}

inline bool decode_carry(Decoding& d, uint32_t carry) {
  const std::string& n = d.name();
  const bool reads = n == "addc" || n == "subc" || n == "madc";
  if (!reads && !d.has("cc")) return false;
  const bool product = n[0] == 'm', wide = type_bytes(d.type()) == 8;
  const bool high = d.has("hi") && d.type()[0] == 's';
  if (high) throw Error("signed upper products with a carry are not supported");
  d.op.execute = wide ? &with_carry<uint64_t> : &with_carry<uint32_t>;
  d.op.small = {static_cast<uint8_t>(product ? (d.has("hi") ? 2 : 1) : 0), n.rfind("sub", 0) == 0,
                reads, d.has("cc")};
  d.op.r[0] = d.to(d.x.at(0), wide ? 8 : 4).place;
  for (size_t i = 1; i < (product ? 4u : 3u); ++i) {
    d.op.r[i] = d.from(d.x.at(i), wide ? 8 : 4).place;
  }
  d.op.r[4] = carry;
  return true;
}

inline bool decode_integer(Decoding& d) {
  const std::string& n = d.name();
  using u64 = uint64_t;
  if ((n == "mul" || n == "mad") && (d.has("hi") || d.has("wide"))) return decode_wide(d);
  if (d.has("sat") && d.type() == "s32" && n == "add") {
    return elementwise<int32_t, int32_t, int32_t>(
        d, [](int32_t a, int32_t b) { return saturated_sum(a, b); });
  }
  if (d.has("sat") && d.type() == "s32" && n == "sub") {
    return elementwise<int32_t, int32_t, int32_t>(
        d, [](int32_t a, int32_t b) { return saturated_sum(a, -static_cast<int64_t>(b)); });
  }
  if (n == "add") {
    return on_integers<2>(d,
                          [](auto a, auto b) { return static_cast<decltype(a)>(u64(a) + u64(b)); });
  }
  if (n == "sub") {
    return on_integers<2>(d,
                          [](auto a, auto b) { return static_cast<decltype(a)>(u64(a) - u64(b)); });
  }
  if (n == "mul") {
    return on_integers<2>(d,
                          [](auto a, auto b) { return static_cast<decltype(a)>(u64(a) * u64(b)); });
  }
  if (n == "mad") {
    return on_integers<3>(d, [](auto a, auto b, auto c) {
      return static_cast<decltype(a)>(u64(a) * u64(b) + u64(c));
    });
  }
  if (n == "sad") {
    return on_integers<3>(d, [](auto a, auto b, auto c) {
      return static_cast<decltype(a)>(u64(c) + (a < b ? u64(b) - u64(a) : u64(a) - u64(b)));
    });
  }
  if (n == "div") return on_integers<2>(d, [](auto a, auto b) { return divide(a, b); });
  if (n == "rem") return on_integers<2>(d, [](auto a, auto b) { return remainder(a, b); });
  if (n == "neg")
    return on_integers<1>(d, [](auto a) { return static_cast<decltype(a)>(-u64(a)); });
  if (n == "abs") {
    return on_integers<1>(
        d, [](auto a) { return static_cast<decltype(a)>(a < 0 ? -u64(a) : u64(a)); });
  }
  return false;
}

template <class T>
inline T upper_part(T value) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(static_cast<double>(value)) &
                               ~0xffffffffull);
}

inline bool decode_function(Decoding& d) {
  const std::string& n = d.name();
  const bool coarse = d.type() == "f64" && d.has("approx");
  if (n == "rcp" && coarse)
    return on_floats<1>(d, [](auto a) { return decltype(a)(upper_part(1 / a)); });
  if (n == "rsqrt" && coarse) {
    return on_floats<1>(d, [](auto a) { return decltype(a)(upper_part(1 / std::sqrt(a))); });
  }
  if (n == "rcp") return on_floats<1>(d, [](auto a) { return 1 / a; });
  if (n == "sqrt") return on_floats<1>(d, [](auto a) { return std::sqrt(a); });
  if (n == "rsqrt") {
    return on_floats<1>(d,
                        [](auto a) { return static_cast<decltype(a)>(1 / std::sqrt(double(a))); });
  }
  if (n == "sin") return on_floats<1>(d, [](auto a) { return std::sin(a); });
  if (n == "cos") return on_floats<1>(d, [](auto a) { return std::cos(a); });
  if (n == "ex2") return on_floats<1>(d, [](auto a) { return std::exp2(a); });
  if (n == "lg2") return on_floats<1>(d, [](auto a) { return std::log2(a); });
  return n == "tanh" && on_floats<1>(d, [](auto a) { return std::tanh(a); });
}

inline bool decode_float(Decoding& d) {
  const std::string& n = d.name();
  if (n == "add") return on_floats<2>(d, [](auto a, auto b) { return a + b; });
  if (n == "sub") return on_floats<2>(d, [](auto a, auto b) { return a - b; });
  if (n == "mul") return on_floats<2>(d, [](auto a, auto b) { return a * b; });
  if (n == "div") return on_floats<2>(d, [](auto a, auto b) { return a / b; });
  if (n == "fma" && d.has("relu")) {
    return on_floats<3>(d, [](auto a, auto b, auto c) {
      return extreme<true, true>(std::fma(a, b, c), decltype(a){0});
    });
  }
  if (n == "fma" || n == "mad") {
    return on_floats<3>(d, [](auto a, auto b, auto c) { return std::fma(a, b, c); });
  }
  if (n == "neg") return on_floats<1>(d, [](auto a) { return -a; });
  if (n == "abs") return on_floats<1>(d, [](auto a) { return std::fabs(a); });
  if (n == "copysign") return on_floats<2>(d, [](auto a, auto b) { return std::copysign(b, a); });
  return decode_function(d);
}

/// The bytes of two registers that the lower 16 bits of the selector name, of which the highest bit
/// of a nibble asks for the byte's sign.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(both >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}

template <class T>
inline T inserted(T from, T into, uint32_t at, uint32_t bits) {
  at &= 0xff;
  bits &= 0xff;
  for (uint32_t i = 0; i < bits && at + i < 8 * sizeof(T); ++i) {
    const T one = static_cast<T>(T{1} << (at + i));
    into = static_cast<T>((into & ~one) | (((from >> i) & 1) != 0 ? one : 0));
  }
  return into;
}

template <class T>
inline T extracted(T a, uint32_t at, uint32_t bits) {
  const uint32_t last = 8 * sizeof(T) - 1;
  at &= 0xff;
  bits &= 0xff;
  const bool sign = std::is_signed_v<T> && bits > 0 && (a >> std::min(at + bits - 1, last) & 1);
  T out = 0;
  for (uint32_t i = 0; i <= last; ++i) {
    const bool bit = i < bits && at + i <= last ? (a >> (at + i) & 1) != 0 : sign;
    out = static_cast<T>(out | static_cast<T>(bit) << i);
  }
  return out;
}

/// The highest bit that differs from the sign, or all ones.
template <class T>
inline uint32_t found_bit(T a) {
  using U = std::make_unsigned_t<T>;
  const U bits = static_cast<U>(a < 0 ? ~a : a);
  return bits == 0 ? kFull : static_cast<uint32_t>(std::bit_width(bits) - 1);
}

inline uint32_t funneled(uint32_t low, uint32_t high, uint32_t by, bool left, bool clamps) {
  const uint64_t both = low | static_cast<uint64_t>(high) << 32;
  by = clamps ? std::min(by, 32u) : by & 31;
  return static_cast<uint32_t>(left ? both << by >> 32 : both >> by);
}

template <int TABLE_BITS = 8>
inline uint32_t looked_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (int i = 0; i < TABLE_BITS; ++i) {
    if (!(table >> i & 1)) continue;
    out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return out;
}

/// Shifts take their distance as 32 bits.
inline bool decode_shift(Decoding& d) {
  const auto shift = [&](auto zero) {
    using T = decltype(zero);
    if (d.name() == "shl") {
      return elementwise<T, T, uint32_t>(d, [](T a, uint32_t by) {
        return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << by);
      });
    }
    return elementwise<T, T, uint32_t>(d, [](T a, uint32_t by) {
      const uint32_t last = 8 * sizeof(T) - 1;
      if (by > last) return static_cast<T>(a < 0 ? ~T{0} : T{0});
      return static_cast<T>(a >> by);
    });
  };
  const std::string& t = d.type();
  if (t == "s32") return shift(int32_t{});
  if (t == "s64") return shift(int64_t{});
  if (t == "s16") return shift(int16_t{});
  const size_t bytes = type_bytes(t);
  return bytes == 4 ? shift(uint32_t{}) : bytes == 8 ? shift(uint64_t{}) : shift(uint16_t{});
}

inline bool decode_bit_field(Decoding& d) {
  const auto extract = [&](auto zero) {
    using T = decltype(zero);
    return elementwise<T, T, uint32_t, uint32_t>(
        d, [](T a, uint32_t at, uint32_t bits) { return extracted(a, at, bits); });
  };
  const auto insert = [&](auto zero) {
    using T = decltype(zero);
    return elementwise<T, T, T, uint32_t, uint32_t>(
        d, [](T a, T b, uint32_t at, uint32_t bits) { return inserted(a, b, at, bits); });
  };
  const auto count = [&](auto zero) {
    using T = decltype(zero);
    using U = std::make_unsigned_t<T>;
    if (d.name() == "popc") {
      return elementwise<uint32_t, U>(d,
                                      [](U a) { return static_cast<uint32_t>(std::popcount(a)); });
    }
    if (d.name() == "clz") {
      return elementwise<uint32_t, U>(
          d, [](U a) { return static_cast<uint32_t>(std::countl_zero(a)); });
    }
    if (d.has("shiftamt")) {
      return elementwise<uint32_t, T>(d, [](T a) {
        const uint32_t bit = found_bit(a);
        return bit == kFull ? kFull : static_cast<uint32_t>(8 * sizeof(T) - 1 - bit);
      });
    }
    return elementwise<uint32_t, T>(d, [](T a) { return found_bit(a); });
  };
  const auto by_type = [&](auto f) {
    const std::string& t = d.type();
    if (t == "s32") return f(int32_t{});
    if (t == "s64") return f(int64_t{});
    return type_bytes(t) == 8 ? f(uint64_t{}) : f(uint32_t{});
  };
  if (d.name() == "bfe") return by_type(extract);
  if (d.name() == "bfi") return type_bytes(d.type()) == 8 ? insert(uint64_t{}) : insert(uint32_t{});
  return by_type(count);
}

inline bool decode_logic(Decoding& d) {
  const std::string& n = d.name();
  if (n == "and") return on_bits<2>(d, [](auto a, auto b) { return decltype(a)(a & b); });
  if (n == "or") return on_bits<2>(d, [](auto a, auto b) { return decltype(a)(a | b); });
  if (n == "xor") return on_bits<2>(d, [](auto a, auto b) { return decltype(a)(a ^ b); });
  if (n == "not") return on_bits<1>(d, [](auto a) { return decltype(a)(~a); });
  if (n == "shl" || n == "shr") return decode_shift(d);
  if (n == "bfe" || n == "bfi" || n == "popc" || n == "clz" || n == "bfind") {
    return decode_bit_field(d);
  }
  if (n == "brev") {
    return on_bits<1>(d, [](auto a) {
      decltype(a) out = 0;
      for (size_t i = 0; i < 8 * sizeof a; ++i) out = decltype(a)(out << 1 | (a >> i & 1));
      return out;
    });
  }
  if (n == "lop3")
    return same_type<4, uint32_t>(
        d, [](auto a, auto b, auto c, auto t) { return looked_up(a, b, c, t); });
  if (n == "prmt" && d.x.size() == 4 && d.type() == "b32") {
    return same_type<3, uint32_t>(d, [](auto a, auto b, auto c) { return permuted(a, b, c); });
  }
  if (n != "shf") return false;
  const auto shf = [&](auto left, auto clamps) {
    return same_type<3, uint32_t>(d, [](uint32_t a, uint32_t b, uint32_t c) {
      return funneled(a, b, c, decltype(left)::value, decltype(clamps)::value);
    });
  };
  if (d.has("l"))
    return d.has("clamp") ? shf(std::true_type{}, std::true_type{})
                          : shf(std::true_type{}, std::false_type{});
  return d.has("clamp") ? shf(std::false_type{}, std::true_type{})
                        : shf(std::false_type{}, std::false_type{});
}

}  // namespace attzoo::ptx
