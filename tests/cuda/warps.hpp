#pragma once
/// \file
/// What the text of a CUDA kernel asks of its block and warp, on a CPU: each thread is a fibre, and
/// what a warp does together waits for its 32 lanes. Included in the middle of that text. To debug
/// kernels with; hostile as ptx.hpp is: shared memory begins as NaN, and copies arrive when they
/// are waited for.

#include <math.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define KERNEL(threads) extern "C" void
#define GRID_CONSTANT
#define UNROLL

namespace fibres {

struct Copy {
  void* to;
  const void* from;
  bool valid;
  int group;
};
struct Lane {
  ucontext_t context;
  std::vector<char> stack;
  std::vector<Copy> copies;
  int groups = 0;
  bool done = false;
};
/// What the lanes of a warp bring to an operation, and what they take from it.
struct Warp {
  int arrived = 0, kind = 0;
  unsigned long turn = 0;
  const void* address[32];
  float* sums[32];
  unsigned a[32][4], b[32][2], out[32][4];
  u64 number[32], result[32];
};
struct Block {
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  std::vector<char> shared;
  ucontext_t outside;
  std::function<void()> body;
  int now = 0, x = 0, y = 0, z = 0, blocks_x = 0, at_barrier = 0;
  unsigned long barrier_turn = 0;
};
inline Block* block = nullptr;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "fibres: %s\n", what);
  std::abort();
}
inline Lane& own() { return block->lanes[static_cast<size_t>(block->now)]; }
inline void wait_a_turn() { swapcontext(&own().context, &block->outside); }

/// Runs `all` once the 32 lanes are here, with the same operation.
template <class All>
void together(int kind, All all) {
  Warp& warp = block->warps[static_cast<size_t>(block->now / 32)];
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp do different things together");
  if (++warp.arrived == 32) {
    all(warp);
    warp.arrived = 0;
    ++warp.turn;
  } else {
    for (const auto turn = warp.turn; warp.turn == turn;) wait_a_turn();
  }
}
inline void enter() {
  block->body();
  own().done = true;
  wait_a_turn();
}
inline void check_shared(const void* p, size_t bytes) {
  const auto* c = static_cast<const char*>(p);
  if (c < block->shared.data() || c + bytes > block->shared.data() + block->shared.size()) {
    fail("an address outside of shared memory");
  }
  if ((c - block->shared.data()) % 16 != 0) fail("a misaligned address in shared memory");
}

/// Runs a kernel's body on all threads of all blocks, warps in random order.
inline void run(const unsigned* blocks, unsigned threads, size_t bytes,
                std::function<void()> body) {
  std::mt19937 random(1);
  Block b;
  block = &b;
  b.body = std::move(body);
  b.blocks_x = static_cast<int>(blocks[0]);
  b.lanes.resize(threads);
  for (auto& lane : b.lanes) lane.stack.resize(1 << 17);
  for (unsigned at = 0; at < blocks[0] * blocks[1] * blocks[2]; ++at) {
    b.x = static_cast<int>(at % blocks[0]);
    b.y = static_cast<int>(at / blocks[0] % blocks[1]);
    b.z = static_cast<int>(at / blocks[0] / blocks[1]);
    b.shared.assign(bytes + 16, static_cast<char>(0xff));
    b.warps.assign(threads / 32, Warp());
    b.at_barrier = 0;
    for (auto& lane : b.lanes) {
      getcontext(&lane.context);
      lane.context.uc_stack = {lane.stack.data(), 0, lane.stack.size()};
      lane.context.uc_link = nullptr;
      makecontext(&lane.context, enter, 0);
      lane.copies.clear();
      lane.groups = 0;
      lane.done = false;
    }
    for (bool left = true; left;) {
      left = false;
      const unsigned first = static_cast<unsigned>(random()) % (threads / 32);
      for (unsigned i = 0; i < threads; ++i) {
        b.now = static_cast<int>((i + 32 * first) % threads);
        if (own().done) continue;
        left = true;
        swapcontext(&b.outside, &own().context);
      }
    }
  }
}

inline float of_bf16(unsigned x) { return float_of_bits(x << 16); }
inline float of_f16(unsigned x) { return widen(f16{static_cast<unsigned short>(x)}); }
template <class Widen>
void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int kind, Widen of) {
  Warp& mine = block->warps[static_cast<size_t>(block->now / 32)];
  const int lane = block->now % 32;
  mine.sums[lane] = d;
  std::memcpy(mine.a[lane], a, sizeof(a));
  mine.b[lane][0] = b0;
  mine.b[lane][1] = b1;
  together(kind, [of](Warp& w) {
    float left[16][16], right[16][8];
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        for (int e = 0; e < 2; ++e) {
          const int row = l / 4 + i % 2 * 8, k = l % 4 * 2 + e + i / 2 * 8;
          left[row][k] = of(w.a[l][i] >> (16 * e) & 0xffff);
          if (i < 2) right[l % 4 * 2 + e + i * 8][l / 4] = of(w.b[l][i] >> (16 * e) & 0xffff);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        float sum = w.sums[l][i];
        for (int k = 0; k < 16; ++k)
          sum += left[l / 4 + i / 2 * 8][k] * right[k][l % 4 * 2 + i % 2];
        w.sums[l][i] = sum;
      }
    }
  });
}
inline void load(unsigned (&r)[4], const void* p, bool transposed) {
  check_shared(p, 16);
  Warp& mine = block->warps[static_cast<size_t>(block->now / 32)];
  const int lane = block->now % 32;
  mine.address[lane] = p;
  together(transposed ? 2 : 1, [transposed](Warp& w) {
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        unsigned short e[2];
        for (int i = 0; i < 2; ++i) {
          const int row = transposed ? l % 4 * 2 + i : l / 4,
                    column = transposed ? l / 4 : l % 4 * 2 + i;
          std::memcpy(&e[i], static_cast<const char*>(w.address[8 * m + row]) + 2 * column, 2);
        }
        w.out[l][m] = e[0] | static_cast<unsigned>(e[1]) << 16;
      }
    }
  });
  std::memcpy(r, mine.out[lane], sizeof(r));
  together(3, [](Warp&) {});
}
template <class All>
u64 exchange(int kind, u64 x, All all) {
  Warp& mine = block->warps[static_cast<size_t>(block->now / 32)];
  const int lane = block->now % 32;
  mine.number[lane] = x;
  together(kind, all);
  const u64 result = mine.result[lane];
  together(kind, [](Warp&) {});
  return result;
}
inline unsigned rounded(float x, int mantissa_bits) {  // to nearest, ties to even
  const unsigned u = bits_of_float(x), drop = 23u - static_cast<unsigned>(mantissa_bits);
  return u + ((1u << (drop - 1)) - 1) + (u >> drop & 1);
}
inline unsigned bits(float x, bf16) { return x != x ? 0x7fff : rounded(x, 7) >> 16; }
inline unsigned bits(float x, f16) {
  if (x != x) return 0x7fff;
  const unsigned sign = bits_of_float(x) >> 16 & 0x8000;
  const float a = std::fabs(x);
  if (a < 0x1p-14f) return sign | static_cast<unsigned>(std::nearbyint(a * 0x1p24f));  // subnormal
  const unsigned half = (rounded(a, 10) >> 13) - ((127u - 15u) << 10), infinity = 0x7c00;
  return sign | (half < infinity ? half : infinity);
}

}  // namespace fibres

inline char* shared_memory_now() {
  auto* p = fibres::block->shared.data();
  return p + (16 - reinterpret_cast<size_t>(p) % 16) % 16;
}
#define shared_memory shared_memory_now()
FN int thread() { return fibres::block->now; }
FN int block_x() { return fibres::block->x; }
FN int block_y() { return fibres::block->y; }
FN int block_z() { return fibres::block->z; }
FN int blocks_x() { return fibres::block->blocks_x; }
FN int threads() { return static_cast<int>(fibres::block->lanes.size()); }
FN void copy16(void* to, const void* from, bool valid) {
  std::memset(to, 0xff, 16);
  fibres::own().copies.push_back({to, from, valid, fibres::own().groups});
}
FN void commit_copies() { ++fibres::own().groups; }
template <int Pending>
FN void wait_for_copies() {
  auto& lane = fibres::own();
  std::vector<fibres::Copy> later;
  for (const auto& copy : lane.copies) {
    if (copy.group >= lane.groups - Pending) {
      later.push_back(copy);
    } else if (copy.valid) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  lane.copies = later;
}
FN void barrier() {
  auto& b = *fibres::block;
  if (++b.at_barrier == static_cast<int>(b.lanes.size())) {
    b.at_barrier = 0;
    ++b.barrier_turn;
  } else {
    for (const auto turn = b.barrier_turn; b.barrier_turn == turn;) fibres::wait_a_turn();
  }
}
FN void load_matrices(unsigned (&r)[4], const void* p) { fibres::load(r, p, false); }
FN void load_transposed(unsigned (&r)[4], const void* p) { fibres::load(r, p, true); }
FN void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bf16) {
  fibres::multiply(d, a, b0, b1, 4, fibres::of_bf16);
}
FN void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, f16) {
  fibres::multiply(d, a, b0, b1, 5, fibres::of_f16);
}
template <class T>
FN unsigned pack(float low, float high, T type) {
  return fibres::bits(low, type) | fibres::bits(high, type) << 16;
}
FN float power_of_two(float x) { return exp2f(x); }
FN float shuffle_xor(float x, int mask) {
  return float_of_bits(
      static_cast<unsigned>(fibres::exchange(6 + mask, bits_of_float(x), [mask](fibres::Warp& w) {
        for (int i = 0; i < 32; ++i) w.result[i] = w.number[i ^ mask];
      })));
}
FN i64 shuffle(i64 x, int lane) {
  return static_cast<i64>(fibres::exchange(40, static_cast<u64>(x), [lane](fibres::Warp& w) {
    for (int i = 0; i < 32; ++i) w.result[i] = w.number[lane];
  }));
}
FN unsigned ballot(bool x) {
  return static_cast<unsigned>(fibres::exchange(41, x, [](fibres::Warp& w) {
    u64 all = 0;
    for (int i = 0; i < 32; ++i) all |= w.number[i] << i;
    for (int i = 0; i < 32; ++i) w.result[i] = all;
  }));
}
FN void order_of_warp() {
  fibres::together(42, [](fibres::Warp&) {});
}
FN int lowest_bit(unsigned x) { return __builtin_ctz(x); }
