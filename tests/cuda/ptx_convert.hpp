#pragma once
/// \file Comparisons, predicates, moves and conversions of PTX.

#include "ptx_number.hpp"

namespace attzoo::ptx {

/// Stores a comparison: r[0] gets it and r[3], if there is one, its opposite, each combined with
/// the predicate r[4] by small[2]: 0 not at all, 1 and, 2 or, 3 xor.
inline void store_comparison(Warp& w, const Operation& o, uint32_t mask, uint32_t bits) {
  const uint32_t other = w.predicate(o.r[4]) ^ o.r[5];
  const auto combine = [&](uint32_t b) {
    return o.small[2] == 0   ? b
           : o.small[2] == 1 ? b & other
           : o.small[2] == 2 ? b | other
                             : b ^ other;
  };
  const auto store = [&](uint32_t place, uint32_t b) {
    w.predicate(place) = (w.predicate(place) & ~mask) | (b & mask);
  };
  store(o.r[0], combine(bits));
  if (o.small[3]) store(o.r[3], combine(~bits));
}

template <class F, class T>
void compare(Warp& w, const Operation& o, uint32_t mask) {
  const std::byte *a = w.registers + o.r[1], *b = w.registers + o.r[2];
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) {
    bits |= static_cast<uint32_t>(F{}(get<T>(a, l), get<T>(b, l))) << l;
  }
  store_comparison(w, o, mask, bits);
}

/// Compares 16-bit numbers as floats, or floats without subnormals.
template <class F>
struct AsFloats {
  static float value(float x) { return flush(x); }
  static float value(Half x) { return to_float(x); }
  static float value(Bfloat x) { return to_float(x); }
  template <class T>
  bool operator()(T a, T b) const {
    return F{}(value(a), value(b));
  }
};

template <class F>
bool compare_typed(Decoding& d, F) {
  const auto as = [&]<class T, class G>(T, G) {
    d.op.execute = &compare<G, T>;
    d.op.r[1] = d.from(d.x.at(1), sizeof(T), kFloating<T>).place;
    d.op.r[2] = d.from(d.x.at(2), sizeof(T), kFloating<T>).place;
    return true;
  };
  const std::string& t = d.type();
  if (t == "f32") return d.has("ftz") ? as(0.0f, AsFloats<F>{}) : as(0.0f, F{});
  if (t == "f64") return as(0.0, F{});
  if (t == "f16") return as(Half{}, AsFloats<F>{});
  if (t == "bf16") return as(Bfloat{}, AsFloats<F>{});
  if (t == "s32") return as(int32_t{}, F{});
  if (t == "s64") return as(int64_t{}, F{});
  if (t == "s16") return as(int16_t{}, F{});
  const size_t bytes = type_bytes(t);
  return bytes == 4 ? as(uint32_t{}, F{}) : bytes == 8 ? as(uint64_t{}, F{}) : as(uint16_t{}, F{});
}

inline bool compare_by_name(Decoding& d, const std::string& c) {
  const auto either = [](auto a, auto b) { return a != a || b != b; };
  using Unordered = decltype(either);
  if (c == "eq") return compare_typed(d, [](auto a, auto b) { return a == b; });
  if (c == "ne")
    return compare_typed(d, [](auto a, auto b) { return a != b && !Unordered{}(a, b); });
  if (c == "lt" || c == "lo") return compare_typed(d, [](auto a, auto b) { return a < b; });
  if (c == "le" || c == "ls") return compare_typed(d, [](auto a, auto b) { return a <= b; });
  if (c == "gt" || c == "hi") return compare_typed(d, [](auto a, auto b) { return a > b; });
  if (c == "ge" || c == "hs") return compare_typed(d, [](auto a, auto b) { return a >= b; });
  if (c == "equ")
    return compare_typed(d, [](auto a, auto b) { return a == b || Unordered{}(a, b); });
  if (c == "neu") return compare_typed(d, [](auto a, auto b) { return a != b; });
  if (c == "ltu") return compare_typed(d, [](auto a, auto b) { return !(a >= b); });
  if (c == "leu") return compare_typed(d, [](auto a, auto b) { return !(a > b); });
  if (c == "gtu") return compare_typed(d, [](auto a, auto b) { return !(a <= b); });
  if (c == "geu") return compare_typed(d, [](auto a, auto b) { return !(a < b); });
  if (c == "num") return compare_typed(d, [](auto a, auto b) { return !Unordered{}(a, b); });
  return c == "nan" && compare_typed(d, either);
}

/// setp.lt.and.f32 p|q, a, b, c and its shorter forms.
inline bool decode_setp(Decoding& d) {
  const auto targets = split(d.x.at(0), '|');
  if (!compare_by_name(d, d.parts.at(1))) return false;
  d.op.r[0] = d.to(targets[0], 0).place;
  d.op.r[4] = d.op.r[0];
  d.op.small[2] = static_cast<uint8_t>(d.has("and") ? 1 : d.has("or") ? 2 : d.has("xor") ? 3 : 0);
  if (d.op.small[2]) d.op.r[4] = d.predicate(d.x.at(3), d.op.r[5]);
  if (targets.size() > 1) {
    d.op.small[3] = 1;
    d.op.r[3] = d.to(targets[1], 0).place;
  }
  return true;
}

/// What testp asks of a floating number.
inline bool decode_testp(Decoding& d) {
  const auto test = [&](auto f) {
    d.x.push_back(d.x.at(1));
    d.op.r[0] = d.to(d.x.at(0), 0).place;
    d.op.r[4] = d.op.r[0];
    return compare_typed(d, f);
  };
  if (d.has("finite"))
    return test([](auto a, auto) { return std::isfinite(static_cast<double>(a)); });
  if (d.has("infinite"))
    return test([](auto a, auto) { return std::isinf(static_cast<double>(a)); });
  if (d.has("number")) return test([](auto a, auto) { return a == a; });
  if (d.has("notanumber")) return test([](auto a, auto) { return a != a; });
  const auto normal = [](auto a, auto) {
    return std::isfinite(static_cast<double>(a)) &&
           std::fabs(a) >= std::numeric_limits<decltype(a)>::min();
  };
  if (d.has("normal")) return test(normal);
  return d.has("subnormal") && test([](auto a, auto b) {
           return a != 0 && std::isfinite(static_cast<double>(a)) && !decltype(normal){}(a, b);
         });
}

template <class T>
void select(Warp& w, const Operation& o, uint32_t mask) {
  const uint32_t chosen = w.predicate(o.r[3]) ^ o.r[4];
  const std::byte *a = w.registers + o.r[1], *b = w.registers + o.r[2];
  std::byte* to = w.registers + o.r[0];
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) put<T>(to, l, get<T>(chosen >> l & 1 ? a : b, l));
  }
}

inline bool decode_selp(Decoding& d) {
  const uint32_t bytes = static_cast<uint32_t>(type_bytes(d.type()));
  const bool floating = d.type()[0] == 'f';
  d.op.execute = bytes == 8   ? &select<uint64_t>
                 : bytes == 4 ? &select<uint32_t>
                              : &select<uint16_t>;
  d.op.r[0] = d.to(d.x.at(0), bytes).place;
  for (size_t i = 1; i < 3; ++i) d.op.r[i] = d.from(d.x.at(i), bytes, floating).place;
  d.op.r[3] = d.predicate(d.x.at(3), d.op.r[4]);
  return true;
}

/// slct.f32.s32 d, a, b, c: a where c is not negative.
inline bool decode_slct(Decoding& d) {
  const auto choose = [&](auto value, auto sign) {
    using T = decltype(value);
    return elementwise<T, T, T, decltype(sign)>(d, [](T a, T b, auto c) { return c >= 0 ? a : b; });
  };
  const bool wide = type_bytes(d.type_before()) == 8;
  if (d.type() == "f32") return wide ? choose(uint64_t{}, 0.0f) : choose(uint32_t{}, 0.0f);
  return wide ? choose(uint64_t{}, int32_t{}) : choose(uint32_t{}, int32_t{});
}

/// and, or, xor, not and mov of predicates; small[0] says which.
inline void on_predicates(Warp& w, const Operation& o, uint32_t mask) {
  const uint32_t a = w.predicate(o.r[1]) ^ o.r[3], b = w.predicate(o.r[2]) ^ o.r[4];
  const uint32_t all[] = {a & b, a | b, a ^ b, ~a, a};
  uint32_t& to = w.predicate(o.r[0]);
  to = (to & ~mask) | (all[o.small[0]] & mask);
}

inline bool decode_predicate(Decoding& d) {
  static const std::vector<std::string> names{"and", "or", "xor", "not", "mov"};
  const auto known = std::find(names.begin(), names.end(), d.name());
  if (known == names.end()) return false;
  d.op.small[0] = static_cast<uint8_t>(known - names.begin());
  d.op.execute = &on_predicates;
  d.op.r[0] = d.to(d.x.at(0), 0).place;
  d.op.r[1] = d.predicate(d.x.at(1), d.op.r[3]);
  d.op.r[2] = d.predicate(d.x.size() > 2 ? d.x[2] : d.x[1], d.op.r[4]);
  return true;
}

/// Makes one register of several (small[0] of small[1] bytes), or several of one.
template <bool PACKS>
void repack(Warp& w, const Operation& o, uint32_t mask) {
  const size_t parts = o.small[0], bytes = o.small[1];
  each_lane(mask, [&](int l) {
    std::byte* whole = w.registers + o.r[0] + static_cast<size_t>(l) * parts * bytes;
    std::byte copy[16];
    if (!PACKS) std::memcpy(copy, whole, parts * bytes);
    for (size_t i = 0; i < parts; ++i) {
      std::byte* part = w.registers + o.r[1 + i] + static_cast<size_t>(l) * bytes;
      std::memcpy(PACKS ? copy + i * bytes : part, PACKS ? part : copy + i * bytes, bytes);
    }
    if (PACKS) std::memcpy(whole, copy, parts * bytes);
  });
}

inline bool decode_mov(Decoding& d) {
  const uint32_t bytes = static_cast<uint32_t>(type_bytes(d.type()));
  const bool packs = d.x.at(1)[0] == '{', unpacks = d.x.at(0)[0] == '{';
  if (!packs && !unpacks) {
    if (d.type() == "f32") return same_type<1, float>(d, [](auto a) { return a; });
    if (d.type() == "f64") return same_type<1, double>(d, [](auto a) { return a; });
    return on_bits<1>(d, [](auto a) { return a; });
  }
  const auto parts = Decoding::list(d.x.at(packs ? 1 : 0));
  const uint32_t each = bytes / static_cast<uint32_t>(parts.size());
  d.op.execute = packs ? &repack<true> : &repack<false>;
  d.op.small = {static_cast<uint8_t>(parts.size()), static_cast<uint8_t>(each)};
  d.op.r[0] = packs ? d.to(d.x.at(0), bytes).place : d.from(d.x.at(1), bytes).place;
  for (size_t i = 0; i < parts.size(); ++i) {
    d.op.r[1 + i] = packs ? d.from(parts[i], each).place : d.to(parts[i], each).place;
  }
  return true;
}

/// A number on its way between two types: an integer, with its sign, or a double.
struct Wide {
  int64_t integer = 0;
  double floating = 0;
};

enum class Kind : uint8_t { kUnsigned, kSigned, kHalf, kBfloat, kFloat, kDouble };

inline Kind kind_of(const std::string& type) {
  if (type == "f16") return Kind::kHalf;
  if (type == "bf16") return Kind::kBfloat;
  if (type == "f32") return Kind::kFloat;
  if (type == "f64") return Kind::kDouble;
  return type[0] == 's' ? Kind::kSigned : Kind::kUnsigned;
}

inline Wide widen(uint64_t bits, Kind kind, unsigned bytes) {
  const int unused = 64 - 8 * static_cast<int>(bytes);
  switch (kind) {
    case Kind::kHalf:
      return {0, to_float(Half{static_cast<uint16_t>(bits)})};
    case Kind::kBfloat:
      return {0, to_float(Bfloat{static_cast<uint16_t>(bits)})};
    case Kind::kFloat:
      return {0, std::bit_cast<float>(static_cast<uint32_t>(bits))};
    case Kind::kDouble:
      return {0, std::bit_cast<double>(bits)};
    case Kind::kSigned:
      return {static_cast<int64_t>(bits << unused) >> unused, 0};
    default:
      return {static_cast<int64_t>(bits << unused >> unused), 0};
  }
}

/// The nearest number of an integer type; NaN becomes 0.
inline uint64_t clamped(double value, Kind kind, unsigned bytes) {
  const double limit = std::ldexp(1, 8 * static_cast<int>(bytes) - (kind == Kind::kSigned));
  const uint64_t last = ~0ull >> (64 - 8 * bytes + (kind == Kind::kSigned));
  if (std::isnan(value)) return 0;
  if (value >= limit) return last;
  if (kind == Kind::kUnsigned) return value <= 0 ? 0 : static_cast<uint64_t>(value);
  return value < -limit ? ~last : static_cast<uint64_t>(static_cast<int64_t>(value));
}

/// The nearest number of an integer type to another integer.
inline uint64_t clamped(int64_t value, Kind from, Kind to, unsigned bytes) {
  const uint64_t last = ~0ull >> (64 - 8 * bytes + (to == Kind::kSigned));
  const bool negative = from == Kind::kSigned && value < 0;
  if (!negative) return std::min(static_cast<uint64_t>(value), last);
  if (to == Kind::kUnsigned) return 0;
  return value < ~static_cast<int64_t>(last) ? ~last : static_cast<uint64_t>(value);
}

template <class T>
inline T from_integer(int64_t value, Kind from) {
  return from == Kind::kSigned ? static_cast<T>(value)
                               : static_cast<T>(static_cast<uint64_t>(value));
}

/// A conversion: small holds rounding, saturation, and of source and target kind, bytes and width;
/// number says whether a floating result is made whole (1) or subnormals are flushed (2).
inline void convert(Warp& w, const Operation& o, uint32_t mask) {
  const Kind from = static_cast<Kind>(o.small[2]), to = static_cast<Kind>(o.small[3]);
  const bool from_floats = from >= Kind::kHalf, to_floats = to >= Kind::kHalf;
  const unsigned bytes = o.small[5];
  each_lane(mask, [&](int l) {
    Wide v = widen(get_wide(w.registers + o.r[1], o.small[6], l), from, o.small[4]);
    if (o.number & 2 && from == Kind::kFloat) v.floating = flush(static_cast<float>(v.floating));
    if (o.number & 1) v.floating = std::nearbyint(v.floating);
    if (o.small[1] && from_floats && to_floats) {
      v.floating = v.floating > 0 ? std::min(v.floating, 1.0) : 0;
    }
    uint64_t bits = 0;
    if (!to_floats && from_floats) {
      bits = clamped(v.floating, to, bytes);
    } else if (!to_floats) {
      bits = o.small[1] ? clamped(v.integer, from, to, bytes) : static_cast<uint64_t>(v.integer);
      bits = static_cast<uint64_t>(widen(bits, to, bytes).integer);  // a wider register
    } else if (to == Kind::kDouble) {
      bits =
          std::bit_cast<uint64_t>(from_floats ? v.floating : from_integer<double>(v.integer, from));
    } else if (to == Kind::kFloat) {
      float f = from_floats ? static_cast<float>(v.floating) : from_integer<float>(v.integer, from);
      if (o.number & 2) f = flush(f);
      bits = std::bit_cast<uint32_t>(f);
    } else {
      const double f = from_floats ? v.floating : from_integer<double>(v.integer, from);
      bits = to == Kind::kHalf ? to_small<Half>(f).bits : to_small<Bfloat>(f).bits;
    }
    put_wide(w.registers + o.r[0], o.small[7], l, bits);
  });
}

/// cvt.rn.bf16x2.f32 d, a, b: a in the upper half.
inline bool decode_cvt_pair(Decoding& d) {
  const auto pair = [&](auto small) {
    using T = decltype(small);
    if (d.has("relu")) {
      return elementwise<uint32_t, float, float>(d, [](float a, float b) {
        const auto one = [](float f) { return to_small<T>(f < 0 ? 0 : f).bits; };
        return static_cast<uint32_t>(one(a)) << 16 | one(b);
      });
    }
    return elementwise<uint32_t, float, float>(d, [](float a, float b) {
      return static_cast<uint32_t>(to_small<T>(a).bits) << 16 | to_small<T>(b).bits;
    });
  };
  return (d.type_before() == "f16x2" ? pair(Half{}) : pair(Bfloat{})) && adjust(d);
}

/// The float with 10 bits of mantissa, ties away from zero or to even.
template <bool EVEN>
inline uint32_t to_tf32(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7f800000u) == 0x7f800000u) return u;
  return (u + 0xfffu + (EVEN ? u >> 13 & 1 : 1)) & ~0x1fffu;
}

/// Frequent conversions, by functions that need no case distinctions.
inline bool decode_quick_cvt(Decoding& d) {
  const std::string to = d.type_before(), from = d.type(), both = to + "." + from;
  if (to == "f16x2" || to == "bf16x2") return from == "f32" && decode_cvt_pair(d);
  if (to == "tf32" && d.has("rna"))
    return elementwise<uint32_t, float>(d, [](float f) { return to_tf32<false>(f); });
  if (to == "tf32")
    return elementwise<uint32_t, float>(d, [](float f) { return to_tf32<true>(f); });
  if (d.parts.size() > 4 || (d.parts.size() == 4 && !d.has("rn"))) return false;
  if (both == "s64.s32")
    return elementwise<int64_t, int32_t>(d, [](int32_t a) { return int64_t{a}; });
  if (both == "u64.u32")
    return elementwise<uint64_t, uint32_t>(d, [](uint32_t a) { return uint64_t{a}; });
  if (both == "u32.u64" || both == "s32.s64" || both == "s32.u64" || both == "u32.s64") {
    return elementwise<uint32_t, uint64_t>(d, [](uint64_t a) { return static_cast<uint32_t>(a); });
  }
  if (both == "f32.s32")
    return elementwise<float, int32_t>(d, [](int32_t a) { return static_cast<float>(a); });
  if (both == "f32.u32")
    return elementwise<float, uint32_t>(d, [](uint32_t a) { return static_cast<float>(a); });
  return both == "f32.bf16" && elementwise<float, Bfloat>(d, [](Bfloat a) { return to_float(a); });
}

inline bool decode_cvt(Decoding& d) {
  try {
    if (decode_quick_cvt(d)) return true;
  } catch (const Error&) {  // registers wider than the types: the general way
  }
  const std::string to = d.type_before(), from = d.type();
  const Slot source = d.from(d.x.at(1), 1, from[0] == 'f'), target = d.to(d.x.at(0), 1);
  const bool whole = d.has("rni") || d.has("rzi") || d.has("rmi") || d.has("rpi");
  const auto mode = [&](const char* f, const char* i) { return d.has(f) || d.has(i); };
  const int rounding = mode("rz", "rzi") ? 1 : mode("rm", "rmi") ? 2 : mode("rp", "rpi") ? 3 : 0;
  const auto byte = [](auto n) { return static_cast<uint8_t>(n); };
  d.op.small = {byte(rounding),         0,
                byte(kind_of(from)),    byte(kind_of(to)),
                byte(type_bytes(from)), byte(type_bytes(to)),
                byte(source.width),     byte(target.width)};
  d.op.number = (whole ? 1 : 0) | (d.has("ftz") ? 2 : 0);
  d.op.r[0] = target.place;
  d.op.r[1] = source.place;
  d.op.small[1] = d.has("sat");
  d.op.execute = &convert;
  if (rounding == 0) return true;
  d.op.inner = &convert;
  d.op.execute = [](Warp& w, const Operation& o, uint32_t mask) {
    static constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    std::fesetround(kModes[o.small[0]]);
    o.inner(w, o, mask);
    std::fesetround(FE_TONEAREST);
  };
  return true;
}

/// Any of the instructions of this file.
inline bool decode_conversion(Decoding& d) {
  const std::string& n = d.name();
  if (n == "setp") return decode_setp(d);
  if (n == "testp") return decode_testp(d);
  if (n == "selp") return decode_selp(d);
  if (n == "slct") return decode_slct(d);
  if (n == "mov" && d.type() != "pred") return decode_mov(d);
  if (n == "cvt") return decode_cvt(d);
  return d.type() == "pred" && d.name() != "vote" && decode_predicate(d);
}

}  // namespace attzoo::ptx
