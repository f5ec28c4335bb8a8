#pragma once
/// \file What the lanes of a warp or the warps of a block do together: shuffles, votes, matrices,
/// barriers; and jumps.

#include "ptx_memory.hpp"
#include "ptx_number.hpp"

namespace attzoo::ptx {

/// Throws unless all 32 lanes are here.
inline void require_full(const Warp& w, uint32_t mask) { require_members(w, mask, kFull); }

/// Throws unless the lanes here are members, with all others that they name in r[at].
inline void require_named(const Warp& w, const Operation& o, uint32_t mask, size_t at) {
  each_lane(mask, [&](int l) {
    const uint32_t members = get<uint32_t>(w.registers + o.r[at], l);
    require_members(w, mask, members);
    if (!(members >> l & 1)) throw Error("lane " + std::to_string(l) + " is not in its own mask");
  });
}

enum class Shuffle : uint8_t { kIndex, kUp, kDown, kButterfly };

/// The lane a shuffle reads, and whether it lies in the segment.
inline std::pair<int, bool> shuffled(Shuffle kind, int lane, uint32_t by, uint32_t clamp) {
  const int b = static_cast<int>(by & 31), segment = static_cast<int>(clamp >> 8 & 31);
  const int low = lane & segment, high = low | (static_cast<int>(clamp & 31) & ~segment);
  int from = lane;
  if (kind == Shuffle::kUp) from = lane - b;
  if (kind == Shuffle::kDown) from = lane + b;
  if (kind == Shuffle::kButterfly) from = lane ^ b;
  if (kind == Shuffle::kIndex) from = low | (b & ~segment);
  const bool in = kind == Shuffle::kUp ? from >= high : from <= high;
  return {in ? from : lane, in};
}

inline void shuffle(Warp& w, const Operation& o, uint32_t mask) {
  require_named(w, o, mask, 4);
  std::array<uint32_t, kLanes> values;
  for (int l = 0; l < kLanes; ++l) {
    const bool here = mask >> l & 1;
    values[static_cast<size_t>(l)] =
        here ? get<uint32_t>(w.registers + o.r[1], l) : kPoison * 0x10001u;
  }
  uint32_t ins = 0;
  each_lane(mask, [&](int l) {
    const auto [from, in] =
        shuffled(static_cast<Shuffle>(o.small[0]), l, get<uint32_t>(w.registers + o.r[2], l),
                 get<uint32_t>(w.registers + o.r[3], l));
    ins |= static_cast<uint32_t>(in) << l;
    put<uint32_t>(w.registers + o.r[0], l, values[static_cast<size_t>(from)]);
  });
  if (o.small[1]) w.predicate(o.r[5]) = (w.predicate(o.r[5]) & ~mask) | ins;
}

inline bool decode_shuffle(Decoding& d) {
  const auto targets = split(d.x.at(0), '|');
  d.op.execute = &shuffle;
  d.op.small[0] = static_cast<uint8_t>(d.has("up")     ? Shuffle::kUp
                                       : d.has("down") ? Shuffle::kDown
                                       : d.has("bfly") ? Shuffle::kButterfly
                                                       : Shuffle::kIndex);
  d.op.r[0] = d.to(targets[0], 4).place;
  for (size_t i = 1; i < 5; ++i) d.op.r[i] = d.from(d.x.at(i), 4).place;
  d.op.small[1] = targets.size() > 1;
  if (targets.size() > 1) d.op.r[5] = d.to(targets[1], 0).place;
  return true;
}

/// vote.sync: small[0] is 0 for a ballot, 1 for all, 2 for any, 3 for uni.
inline void vote(Warp& w, const Operation& o, uint32_t mask) {
  require_named(w, o, mask, 2);
  const uint32_t bits = w.predicate(o.r[1]) ^ o.r[3];
  uint32_t truths = 0;
  each_lane(mask, [&](int l) {
    const uint32_t members = get<uint32_t>(w.registers + o.r[2], l), yes = bits & members;
    const bool all = yes == members, any = yes != 0;
    const bool truth = o.small[0] == 1 ? all : o.small[0] == 2 ? any : all || !any;
    truths |= static_cast<uint32_t>(truth) << l;
    if (o.small[0] == 0) put<uint32_t>(w.registers + o.r[0], l, yes);
  });
  if (o.small[0] != 0) w.predicate(o.r[0]) = (w.predicate(o.r[0]) & ~mask) | truths;
}

inline bool decode_vote(Decoding& d) {
  d.op.execute = &vote;
  d.op.small[0] = d.has("ballot") ? 0 : d.has("all") ? 1 : d.has("any") ? 2 : 3;
  d.op.r[0] = d.to(d.x.at(0), d.has("ballot") ? 4 : 0).place;
  d.op.r[1] = d.predicate(d.x.at(1), d.op.r[3]);
  d.op.r[2] = d.from(d.x.at(2), 4).place;
  return true;
}

/// match.any gives the members with the lane's value, match.all all of them or none.
inline void match(Warp& w, const Operation& o, uint32_t mask) {
  require_named(w, o, mask, 2);
  const std::byte* values = w.registers + o.r[1];
  uint32_t truths = 0;
  each_lane(mask, [&](int l) {
    const uint32_t members = get<uint32_t>(w.registers + o.r[2], l);
    uint32_t same = 0;
    each_lane(members, [&](int m) {
      const bool equal = get_wide(values, o.small[1], l) == get_wide(values, o.small[1], m);
      same |= static_cast<uint32_t>(equal) << m;
    });
    const bool all = same == members;
    truths |= static_cast<uint32_t>(all) << l;
    put<uint32_t>(w.registers + o.r[0], l, o.small[0] && !all ? 0 : same);
  });
  if (o.small[2]) w.predicate(o.r[3]) = (w.predicate(o.r[3]) & ~mask) | truths;
}

inline bool decode_match(Decoding& d) {
  const auto targets = split(d.x.at(0), '|');
  const uint8_t bytes = static_cast<uint8_t>(type_bytes(d.type()));
  d.op.execute = &match;
  d.op.small = {d.has("all"), bytes, targets.size() > 1};
  d.op.r[0] = d.to(targets[0], 4).place;
  d.op.r[1] = d.from(d.x.at(1), bytes).place;
  d.op.r[2] = d.from(d.x.at(2), 4).place;
  if (targets.size() > 1) d.op.r[3] = d.to(targets[1], 0).place;
  return true;
}

template <class F, class T>
void reduce(Warp& w, const Operation& o, uint32_t mask) {
  require_named(w, o, mask, 2);
  std::array<T, kLanes> results{};
  each_lane(mask, [&](int l) {
    T value = get<T>(w.registers + o.r[1], l);
    each_lane(get<uint32_t>(w.registers + o.r[2], l) & ~(1u << l),
              [&](int m) { value = F{}(value, get<T>(w.registers + o.r[1], m)); });
    results[static_cast<size_t>(l)] = value;
  });
  each_lane(mask, [&](int l) { put<T>(w.registers + o.r[0], l, results[static_cast<size_t>(l)]); });
}

inline bool decode_redux(Decoding& d) {
  const auto as = [&](auto f) {
    d.op.execute =
        d.type() == "s32" ? &reduce<decltype(f), int32_t> : &reduce<decltype(f), uint32_t>;
    for (size_t i = 0; i < 3; ++i)
      d.op.r[i] = (i ? d.from(d.x.at(i), 4) : d.to(d.x.at(0), 4)).place;
    return true;
  };
  if (d.type()[0] == 'f') return false;
  if (d.has("add"))
    return as([](auto a, auto b) { return decltype(a)(uint32_t(a) + uint32_t(b)); });
  if (d.has("min")) return as([](auto a, auto b) { return std::min(a, b); });
  if (d.has("max")) return as([](auto a, auto b) { return std::max(a, b); });
  if (d.has("and")) return as([](auto a, auto b) { return a & b; });
  if (d.has("or")) return as([](auto a, auto b) { return a | b; });
  return d.has("xor") && as([](auto a, auto b) { return a ^ b; });
}

/// ldmatrix and stmatrix: small[0] matrices of 8x8 numbers of 16 bits, the rows' places in lanes.
template <bool LOADS>
void move_matrices(Warp& w, const Operation& o, uint32_t mask) {
  require_full(w, mask);
  const Addresses a = addresses(w, o, 0);
  const size_t n = o.small[0];
  const bool transposed = o.small[1];
  for (size_t m = 0; m < n; ++m) {
    std::array<std::byte*, 8> rows;
    std::array<uint32_t, 8> lanes;
    for (size_t r = 0; r < 8; ++r) {
      lanes[r] = static_cast<uint32_t>(8 * m + r);
      rows[r] =
          w.block->shared.at(a[8 * m + r], 16, w.index, LOADS ? Access::kRead : Access::kWrite);
    }
    w.block->statistics->matrices.taken += wavefronts_of(a.data(), lanes.data(), 8, 16);
    ++w.block->statistics->matrices.ideal;
    for (size_t l = 0; l < kLanes; ++l) {
      std::byte* to = w.registers + o.r[1 + m] + 4 * l;
      for (size_t e = 0; e < 2; ++e) {
        const size_t row = transposed ? l % 4 * 2 + e : l / 4,
                     column = transposed ? l / 4 : l % 4 * 2 + e;
        std::byte *element = rows[row] + 2 * column, *half = to + 2 * e;
        std::memcpy(LOADS ? half : element, LOADS ? element : half, 2);
      }
    }
  }
}

inline bool decode_matrices(Decoding& d) {
  if (d.type() != "b16" || !d.has("m8n8") || space_of(d) != Space::kShared) return false;
  const bool loads = d.name() == "ldmatrix";
  const auto registers = Decoding::list(d.x.at(loads ? 0 : 1));
  d.address(d.x.at(loads ? 1 : 0), 0);
  d.op.execute = loads ? &move_matrices<true> : &move_matrices<false>;
  d.op.small[0] = static_cast<uint8_t>(registers.size());
  d.op.small[1] = d.has("trans");
  for (size_t i = 0; i < registers.size(); ++i) {
    d.op.r[1 + i] = (loads ? d.to(registers[i], 4) : d.from(registers[i], 4)).place;
  }
  return true;
}

struct Tf32 {
  static constexpr int kEach = 1;  ///< numbers in a register
  static float number(uint32_t bits, int) { return std::bit_cast<float>(bits & ~0x1fffu); }
};
template <class T>
struct Pair {
  static constexpr int kEach = 2;
  static float number(uint32_t bits, int e) {
    return to_float(T{static_cast<uint16_t>(bits >> (16 * e))});
  }
};

/// sums += a b for one row, four columns at a time.
template <int K>
inline void add_products(float (&sums)[8], const float (&a)[K], const float (&b)[K][8]) {
  using Four = float __attribute__((vector_size(16)));
  Four low, high, x, y;
  std::memcpy(&low, sums, 16);
  std::memcpy(&high, sums + 4, 16);
  for (int k = 0; k < K; ++k) {
    std::memcpy(&x, b[k], 16);
    std::memcpy(&y, b[k] + 4, 16);
    low += a[k] * x;
    high += a[k] * y;
  }
  std::memcpy(sums, &low, 16);
  std::memcpy(sums + 4, &high, 16);
}

/// d = a b + c of 16 x K, K x 8 and 16 x 8 numbers; d, a, b and c lie in r one after the other.
template <class In, int K>
void multiply(Warp& w, const Operation& o, uint32_t mask) {
  require_full(w, mask);
  constexpr int kEach = In::kEach, kB = K / (4 * kEach), kA = 2 * kB;
  float a[16][K], b[K][8], sums[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4 * kEach;
    for (int i = 0; i < kA; ++i) {
      const uint32_t bits = get<uint32_t>(w.registers + o.r[4 + i], l);
      for (int e = 0; e < kEach; ++e)
        a[g + i % 2 * 8][t + e + i / 2 * 4 * kEach] = In::number(bits, e);
    }
    for (int i = 0; i < kB; ++i) {
      const uint32_t bits = get<uint32_t>(w.registers + o.r[4 + kA + i], l);
      for (int e = 0; e < kEach; ++e) b[t + e + i * 4 * kEach][g] = In::number(bits, e);
    }
  }
  const auto lane_of = [](int row, int n) { return row % 8 * 4 + n / 2; };
  const auto register_of = [](int row, int n) { return row / 8 * 2 + n % 2; };
  for (int row = 0; row < 16; ++row) {
    for (int n = 0; n < 8; ++n) {
      sums[row][n] =
          get<float>(w.registers + o.r[4 + kA + kB + register_of(row, n)], lane_of(row, n));
    }
    add_products<K>(sums[row], a[row], b);
  }
  for (int row = 0; row < 16; ++row) {
    for (int n = 0; n < 8; ++n) {
      put<float>(w.registers + o.r[register_of(row, n)], lane_of(row, n), sums[row][n]);
    }
  }
}

inline bool decode_mma(Decoding& d) {
  if (!d.has("row") || !d.has("col") || d.type() != "f32") return false;
  const std::string shape = d.parts.at(3) + d.type_before();
  if (shape == "m16n8k16bf16") d.op.execute = &multiply<Pair<Bfloat>, 16>;
  if (shape == "m16n8k16f16") d.op.execute = &multiply<Pair<Half>, 16>;
  if (shape == "m16n8k8bf16") d.op.execute = &multiply<Pair<Bfloat>, 8>;
  if (shape == "m16n8k8f16") d.op.execute = &multiply<Pair<Half>, 8>;
  if (shape == "m16n8k8tf32") d.op.execute = &multiply<Tf32, 8>;
  if (shape == "m16n8k4tf32") d.op.execute = &multiply<Tf32, 4>;
  if (d.op.execute == nullptr) return false;
  size_t i = 0;
  for (const auto& operand : d.x) {
    for (const auto& name : Decoding::list(operand)) {
      const bool sum = &operand == &d.x.back();
      d.op.r.at(i) = (i < 4 ? d.to(name, 4) : d.from(name, 4, sum)).place;
      ++i;
    }
  }
  return true;
}

/// bar.sync, bar.red and bar.arrive: the warp waits, or leaves its arrival, with all its lanes.
inline void meet(Warp& w, const Operation& o, uint32_t mask) {
  if (mask != w.live) {
    throw Error("divergent barrier: lanes " + hex(mask) + " of " + hex(w.live) + " of warp " +
                std::to_string(w.index) + " are here");
  }
  const int lane = std::countr_zero(mask);
  Arrival& a = w.arrival;
  a.id = static_cast<int>(get<uint32_t>(w.registers + o.r[0], lane));
  a.threads = o.small[0] ? get<uint32_t>(w.registers + o.r[1], lane) : 0;
  if (a.id < 0 || a.id > 15) throw Error("no barrier " + std::to_string(a.id));
  if (o.small[2]) {
    w.block->arrived[static_cast<size_t>(a.id)] += kLanes;
    return;
  }
  a.pc = w.here;
  a.kind = o.small[1];
  a.to = o.r[2];
  a.here = mask;
  a.votes = a.kind ? (w.predicate(o.r[3]) ^ o.r[4]) & mask : 0;
  w.state = State::kWaiting;
}

inline bool decode_barrier(Decoding& d) {
  if (d.has("warp")) {
    d.op.execute = [](Warp& w, const Operation& o, uint32_t mask) { require_named(w, o, mask, 0); };
    d.op.r[0] = d.from(d.x.at(0), 4).place;
    return true;
  }
  if (!d.has("sync") && !d.has("red") && !d.has("arrive")) return false;
  size_t first = 0;
  if (d.has("red")) {
    d.op.small[1] = d.has("popc") ? 1 : d.has("and") ? 2 : 3;
    d.op.r[2] = d.to(d.x.at(first++), d.has("popc") ? 4 : 0).place;
    d.op.r[3] = d.predicate(d.x.back(), d.op.r[4]);
    d.x.pop_back();
  }
  d.op.execute = &meet;
  d.op.small[2] = d.has("arrive");
  d.op.r[0] = d.from(d.x.at(first), 4).place;
  d.op.small[0] = d.x.size() > first + 1;
  if (d.op.small[0]) d.op.r[1] = d.from(d.x[first + 1], 4).place;
  return true;
}

inline bool decode_collective(Decoding& d) {
  const std::string& n = d.name();
  if (n == "shfl" && d.has("sync")) return decode_shuffle(d);
  if (n == "vote" && d.has("sync")) return decode_vote(d);
  if (n == "match") return decode_match(d);
  if (n == "redux") return decode_redux(d);
  if (n == "ldmatrix" || n == "stmatrix") return decode_matrices(d);
  if (n == "mma") return decode_mma(d);
  if (n == "bar" || n == "barrier") return decode_barrier(d);
  if (n == "activemask") {
    d.op.r[0] = d.to(d.x.at(0), 4).place;
    d.op.execute = [](Warp& w, const Operation& o, uint32_t mask) {
      each_lane(mask, [&](int l) { put<uint32_t>(w.registers + o.r[0], l, mask); });
    };
    return true;
  }
  if (n == "trap" || n == "brkpt") {
    d.op.execute = [](Warp&, const Operation&, uint32_t) { throw Error("the kernel trapped"); };
    return true;
  }
  return false;
}

}  // namespace attzoo::ptx
