#pragma once
/// \file Loads, stores, atomics and asynchronous copies of PTX.

#include "ptx_number.hpp"

namespace attzoo::ptx {

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kFree };
using Places = std::array<std::byte*, kLanes>;
using Addresses = std::array<uint64_t, kLanes>;

/// The lanes' addresses: the base register r[at] plus the displacement.
inline Addresses addresses(const Warp& w, const Operation& o, size_t at) {
  Addresses out;
  const std::byte* base = w.registers + o.r[at];
  for (int l = 0; l < kLanes; ++l) {
    out[static_cast<size_t>(l)] =
        (o.small[7] == 8 ? get<uint64_t>(base, l) : get<uint32_t>(base, l)) +
        static_cast<uint64_t>(o.number);
  }
  return out;
}

/// The trips that n lanes' accesses of the same size take to the 32 banks of 4 bytes.
inline unsigned wavefronts_of(const uint64_t* address, const uint32_t* lanes, size_t n,
                              size_t unit) {
  std::array<std::array<uint64_t, kLanes>, 32> seen;
  std::array<uint8_t, 32> count{};
  const size_t banks = 128 / unit;
  unsigned most = n > 0;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t word = address[lanes[i]] / unit;
    auto& places = seen[word % banks];
    uint8_t& used = count[word % banks];
    if (std::find(places.begin(), places.begin() + used, word) != places.begin() + used) continue;
    places[used++] = word;
    most = std::max<unsigned>(most, used);
  }
  return most;
}

/// Counts an access to shared memory; lanes of 8 or 16 bytes come in two or four parts.
inline void count_wavefronts(Wavefronts& all, const Addresses& a, uint32_t mask, size_t bytes) {
  const size_t unit = std::max<size_t>(bytes, 4), lanes = std::min<size_t>(128 / unit, kLanes);
  for (size_t first = 0; first < kLanes; first += lanes) {
    std::array<uint32_t, kLanes> here;
    size_t n = 0;
    for (size_t l = first; l < first + lanes; ++l) {
      if (mask >> l & 1) here[n++] = static_cast<uint32_t>(l);
    }
    all.taken += wavefronts_of(a.data(), here.data(), n, unit);
    all.ideal += n > 0;
  }
}

inline std::byte* local_place(const Warp& w, uint64_t address, size_t bytes) {
  const auto begin = reinterpret_cast<uint64_t>(w.block->local.data());
  if (address < begin || address + bytes > begin + w.block->local.size()) {
    throw Error("local address out of range: " + std::to_string(address));
  }
  if (address % bytes != 0) throw Error("misaligned local address: " + std::to_string(address));
  return reinterpret_cast<std::byte*>(address);
}

inline bool is_local(const Warp& w, uint64_t address) {
  const auto begin = reinterpret_cast<uint64_t>(w.block->local.data());
  return address >= begin && address < begin + w.block->local.size();
}

/// The place of a lane's access.
inline std::byte* place(Warp& w, Space space, uint64_t address, size_t bytes, Access access) {
  if (space == Space::kGeneric) {
    space = is_local(w, address) ? Space::kLocal : Space::kGlobal;
    if (address >= kSharedWindow && address < 2 * kSharedWindow) {
      space = Space::kShared;
      address -= kSharedWindow;
    }
  }
  if (space == Space::kShared) return w.block->shared.at(address, bytes, w.index, access);
  if (space == Space::kLocal) return local_place(w, address, bytes);
  if (space == Space::kFree) return reinterpret_cast<std::byte*>(address);
  return w.block->global->at(address, bytes);
}

/// The lanes' places of an access to the address in r[at].
inline Places places(Warp& w, const Operation& o, uint32_t mask, size_t at, size_t bytes,
                     Access access) {
  const Addresses a = addresses(w, o, at);
  const Space space = static_cast<Space>(o.small[6]);
  if (space == Space::kShared) {
    Statistics& s = *w.block->statistics;
    count_wavefronts(access == Access::kRead ? s.loads : s.stores, a, mask, bytes);
  }
  Places out{};
  each_lane(mask, [&](int l) {
    const size_t i = static_cast<size_t>(l);
    out[i] = place(w, space, a[i], bytes, access);
  });
  return out;
}

/// Loads small[0] elements of type M into registers of type R from r[1] on.
template <class M, class R>
void load(Warp& w, const Operation& o, uint32_t mask) {
  const size_t n = o.small[0];
  const Places p = places(w, o, mask, 0, n * sizeof(M), Access::kRead);
  for (size_t i = 0; i < n; ++i) {
    std::byte* to = w.registers + o.r[1 + i];
    each_lane(mask, [&](int l) {
      put<R>(to, l, static_cast<R>(get<M>(p[static_cast<size_t>(l)], static_cast<int>(i))));
    });
  }
}

template <class M, class R>
void store(Warp& w, const Operation& o, uint32_t mask) {
  const size_t n = o.small[0];
  const Places p = places(w, o, mask, 0, n * sizeof(M), Access::kWrite);
  for (size_t i = 0; i < n; ++i) {
    const std::byte* from = w.registers + o.r[1 + i];
    each_lane(mask, [&](int l) {
      put<M>(p[static_cast<size_t>(l)], static_cast<int>(i), static_cast<M>(get<R>(from, l)));
    });
  }
}

inline Space space_of(const Decoding& d) {
  for (const auto& part : d.parts) {
    if (part.rfind("shared", 0) == 0) return Space::kShared;
    if (part == "global") return Space::kGlobal;
    if (part == "local") return Space::kLocal;
    if (part == "const" || part.rfind("param", 0) == 0) return Space::kFree;
  }
  return Space::kGeneric;
}

/// The function for memory of one type and registers of the width.
template <class M>
Operation::Function transfer_of(bool loads, uint32_t width) {
  using Widened = std::conditional_t<std::is_signed_v<M>, int64_t, uint64_t>;
  using Word = std::conditional_t<std::is_signed_v<M>, int32_t, uint32_t>;
  using Short = std::conditional_t<std::is_signed_v<M>, int16_t, uint16_t>;
  if (width < sizeof(M)) throw Error("a register narrower than the memory's type");
  if (width == 8) return loads ? &load<M, Widened> : &store<M, Widened>;
  if (width == 4) return loads ? &load<M, Word> : &store<M, Word>;
  return loads ? &load<M, Short> : &store<M, Short>;
}

inline bool decode_transfer(Decoding& d) {
  const bool loads = d.name() != "st";
  const auto registers = Decoding::list(d.x.at(loads ? 0 : 1));
  const std::string& t = d.type();
  d.address(d.x.at(loads ? 1 : 0), 0);
  uint32_t width = 0;
  for (size_t i = 0; i < registers.size(); ++i) {
    const uint32_t literal_bytes = static_cast<uint32_t>(std::max<size_t>(type_bytes(t), 2));
    const bool is_literal = registers[i][0] != '%' && registers[i] != "_";
    const uint32_t wanted = is_literal || registers[i] == "_" ? literal_bytes : 1;
    const Slot slot =
        loads ? d.to(registers[i], wanted) : d.from(registers[i], wanted, t[0] == 'f');
    if (width != 0 && slot.width != width) throw Error("a vector of registers of several widths");
    width = slot.width;
    d.op.r[1 + i] = slot.place;
  }
  d.op.small[0] = static_cast<uint8_t>(registers.size());
  d.op.small[6] = static_cast<uint8_t>(space_of(d));
  const bool sign = t[0] == 's';
  switch (type_bytes(t)) {
    case 1:
      d.op.execute = sign ? transfer_of<int8_t>(loads, width) : transfer_of<uint8_t>(loads, width);
      break;
    case 2:
      d.op.execute =
          sign ? transfer_of<int16_t>(loads, width) : transfer_of<uint16_t>(loads, width);
      break;
    case 4:
      d.op.execute =
          sign ? transfer_of<int32_t>(loads, width) : transfer_of<uint32_t>(loads, width);
      break;
    case 8:
      d.op.execute = transfer_of<uint64_t>(loads, width);
      break;
    default:
      return false;
  }
  return true;
}

/// An atomic operation F(old, b, c) of type T on r[1], whose old value goes to r[0] if small[1].
template <class F, class T>
void atomic(Warp& w, const Operation& o, uint32_t mask) {
  const Places p = places(w, o, mask, 1, sizeof(T), Access::kAtomic);
  each_lane(mask, [&](int l) {
    std::byte* at = p[static_cast<size_t>(l)];
    const T old = get<T>(at, 0);
    put<T>(at, 0, F{}(old, get<T>(w.registers + o.r[2], l), get<T>(w.registers + o.r[3], l)));
    if (o.small[1]) put<T>(w.registers + o.r[0], l, old);
  });
}

template <class F>
bool atomic_typed(Decoding& d, F) {
  const size_t first = d.name() == "red" ? 0 : 1;
  const auto as = [&]<class T>(T) {
    d.op.execute = &atomic<F, T>;
    d.op.small[1] = static_cast<uint8_t>(first);
    if (first) d.op.r[0] = d.to(d.x[0], sizeof(T)).place;
    d.address(d.x.at(first), 1);
    d.op.r[2] = d.from(d.x.at(first + 1), sizeof(T), kFloating<T>).place;
    const bool third = d.x.size() > first + 2;
    d.op.r[3] = third ? d.from(d.x[first + 2], sizeof(T), kFloating<T>).place : d.op.r[2];
    d.op.small[6] = static_cast<uint8_t>(space_of(d));
    return true;
  };
  const std::string& t = d.type();
  if (t == "s32") return as(int32_t{});
  if (t == "s64") return as(int64_t{});
  if (t == "f32") return as(float{});
  if (t == "f64") return as(double{});
  if (t == "u32" || t == "b32") return as(uint32_t{});
  return (t == "u64" || t == "b64") && as(uint64_t{});
}

inline bool decode_atomic(Decoding& d) {
  const auto bits = [](auto f) {
    return [](auto a, auto b, auto) {
      if constexpr (std::is_integral_v<decltype(a)>) return decltype(a)(decltype(f){}(a, b));
      return a;
    };
  };
  if (d.has("add")) {
    return atomic_typed(d, [](auto a, auto b, auto) {
      using T = decltype(a);
      if constexpr (std::is_integral_v<T>)
        return static_cast<T>(uint64_t(a) + uint64_t(b));
      else
        return static_cast<T>(a + b);
    });
  }
  if (d.has("min")) return atomic_typed(d, [](auto a, auto b, auto) { return std::min(a, b); });
  if (d.has("max")) return atomic_typed(d, [](auto a, auto b, auto) { return std::max(a, b); });
  if (d.has("exch")) return atomic_typed(d, [](auto, auto b, auto) { return b; });
  if (d.has("cas")) return atomic_typed(d, [](auto a, auto b, auto c) { return a == b ? c : a; });
  if (d.has("and")) return atomic_typed(d, bits([](auto a, auto b) { return a & b; }));
  if (d.has("or")) return atomic_typed(d, bits([](auto a, auto b) { return a | b; }));
  if (d.has("xor")) return atomic_typed(d, bits([](auto a, auto b) { return a ^ b; }));
  if (d.has("inc")) return atomic_typed(d, bits([](auto a, auto b) { return a >= b ? 0 : a + 1; }));
  return d.has("dec") &&
         atomic_typed(d, bits([](auto a, auto b) { return a == 0 || a > b ? b : a - 1; }));
}

/// cp.async: the place in shared memory holds NaN until a wait covers the copy.
inline void copy_async(Warp& w, const Operation& o, uint32_t mask) {
  const uint8_t bytes = o.small[0];
  const uint32_t ignored = o.small[2] ? w.predicate(o.r[2]) ^ o.r[4] : 0;
  Addresses to{};
  each_lane(mask, [&](int l) {
    const size_t i = static_cast<size_t>(l);
    to[i] = get_wide(w.registers + o.r[0], o.small[5], l) + o.r[3];
    const uint64_t from =
        get_wide(w.registers + o.r[1], o.small[7], l) + static_cast<uint64_t>(o.number);
    const uint64_t valid = ignored >> l & 1 ? 0
                           : o.small[1]     ? get_wide(w.registers + o.r[2], 4, l)
                                            : bytes;
    if (valid > bytes) throw Error("cp.async of " + std::to_string(valid) + " bytes");
    Shared::poison(w.block->shared.at(to[i], bytes, w.index, Access::kWrite), bytes);
    const std::byte* source =
        valid > 0 ? place(w, Space::kGlobal, from, bytes, Access::kRead) : nullptr;
    w.copies.push_back({static_cast<uint32_t>(to[i]), source, bytes, static_cast<uint8_t>(valid),
                        static_cast<uint8_t>(l), w.groups[i]});
  });
  count_wavefronts(w.block->statistics->copies, to, mask, bytes);
}

/// Makes the lanes' copies appear that are older than the newest `number` groups, or all.
inline void wait_copies(Warp& w, const Operation& o, uint32_t mask) {
  std::erase_if(w.copies, [&](const Copy& c) {
    if (!(mask >> c.lane & 1)) return false;
    if (!o.small[0] && c.group + static_cast<uint64_t>(o.number) >= w.groups[c.lane]) return false;
    std::byte* to = w.block->shared.at(c.to, c.bytes, w.index, Access::kWrite);
    std::memset(to, 0, c.bytes);
    if (c.valid > 0) std::memcpy(to, c.from, c.valid);
    return true;
  });
}

inline void commit_copies(Warp& w, const Operation&, uint32_t mask) {
  each_lane(mask, [&](int l) { ++w.groups[static_cast<size_t>(l)]; });
}

inline bool decode_copy(Decoding& d) {
  if (d.has("commit_group")) {
    d.op.execute = &commit_copies;
    return true;
  }
  if (d.has("wait_group") || d.has("wait_all")) {
    d.op.execute = &wait_copies;
    d.op.small[0] = d.has("wait_all");
    d.op.number = d.has("wait_all") ? 0 : std::stoll(d.x.at(0));
    return true;
  }
  if ((!d.has("ca") && !d.has("cg")) || d.has("bulk")) return false;
  d.address(d.x.at(0), 0);
  d.op.small[5] = d.op.small[7];
  d.op.r[3] = static_cast<uint32_t>(std::exchange(d.op.number, 0));
  d.address(d.x.at(1), 1);
  d.op.small[0] = static_cast<uint8_t>(std::stoul(d.x.at(2)));
  if (d.x.size() == (d.has("L2::cache_hint") ? 4 : 3)) {
    d.op.execute = &copy_async;
    return true;
  }
  const bool predicate = d.x[3][0] == '!' || d.x[3].rfind("%p", 0) == 0;
  d.op.small[predicate ? 2 : 1] = 1;
  d.op.r[2] = predicate ? d.predicate(d.x[3], d.op.r[4]) : d.from(d.x[3], 4).place;
  d.op.execute = &copy_async;
  return true;
}

/// cvta: generic addresses of shared memory lie in a window, others are as they were.
inline bool decode_cvta(Decoding& d) {
  if (!d.has("shared")) return on_bits<1>(d, [](auto a) { return a; });
  if (d.has("to")) return on_bits<1>(d, [](auto a) { return decltype(a)(a - kSharedWindow); });
  return on_bits<1>(d, [](auto a) { return decltype(a)(a + kSharedWindow); });
}

/// isspacep: whether generic addresses are of a space; what is not shared or local is global.
inline bool decode_isspacep(Decoding& d) {
  d.op.r[0] = d.to(d.x.at(0), 0).place;
  d.op.r[1] = d.from(d.x.at(1), 8).place;
  d.op.small[0] = static_cast<uint8_t>(space_of(d));
  d.op.execute = [](Warp& w, const Operation& o, uint32_t mask) {
    uint32_t& to = w.predicate(o.r[0]);
    each_lane(mask, [&](int l) {
      const uint64_t a = get<uint64_t>(w.registers + o.r[1], l);
      const bool shared = a >= kSharedWindow && a < 2 * kSharedWindow;
      const Space space = shared ? Space::kShared : is_local(w, a) ? Space::kLocal : Space::kGlobal;
      to = (to & ~(1u << l)) | static_cast<uint32_t>(static_cast<uint8_t>(space) == o.small[0])
                                   << l;
    });
  };
  return true;
}

inline bool decode_memory(Decoding& d) {
  const std::string& n = d.name();
  if (n == "ld" || n == "st" || n == "ldu") return decode_transfer(d);
  if (n == "cvta") return decode_cvta(d);
  if (n == "isspacep") return decode_isspacep(d);
  if (n == "atom" || n == "red") return decode_atomic(d);
  if (n == "cp" && d.has("async")) return decode_copy(d);
  if (n == "membar" || n == "fence" || n == "prefetch" || n == "prefetchu" || n == "nanosleep") {
    d.op.execute = [](Warp&, const Operation&, uint32_t) {};
    return true;
  }
  return false;
}

}  // namespace attzoo::ptx
