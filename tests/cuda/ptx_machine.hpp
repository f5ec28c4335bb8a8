#pragma once
/// \file What runs PTX: warps of 32 lanes over registers of 32 values, and the memory they see.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ptx_text.hpp"

namespace attzoo::ptx {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kFull = ~0u;
inline constexpr uint32_t kEnd = ~0u;                  ///< a pc past all others
inline constexpr uint64_t kSharedWindow = 1ull << 24;  ///< generic addresses of shared memory
inline constexpr uint16_t kPoison = 0xfff7;            ///< a NaN in all floating types

struct Size3 {
  uint32_t x = 1, y = 1, z = 1;
};

/// How many trips to the banks of shared memory accesses took, and how few would have done.
struct Wavefronts {
  uint64_t taken = 0, ideal = 0;
  double ratio() const { return ideal == 0 ? 1 : static_cast<double>(taken) / ideal; }
};

/// What a launch executed.
struct Statistics {
  std::map<std::string, uint64_t> instructions;  ///< of warps, by opcode
  uint64_t total = 0;
  Wavefronts matrices, loads, stores, copies;  ///< of ldmatrix, ld, st and cp.async

  /// Warp instructions whose opcode begins with the parts, as in "mma" or "ld.global".
  uint64_t count(const std::string& parts) const {
    uint64_t n = 0;
    for (const auto& [name, times] : instructions) {
      if (name == parts || name.rfind(parts + ".", 0) == 0) n += times;
    }
    return n;
  }
};

/// What is checked and when a launch is given up.
struct Options {
  bool races = true;                        ///< conflicts of warps in shared memory throw
  uint64_t most_instructions = 1ull << 30;  ///< of warps in one launch
};

enum class Access { kRead, kWrite, kAtomic };

/// Shared memory of a block, with the last readers and writers of each byte between two barriers.
class Shared {
 public:
  void reset(size_t bytes, bool races) {
    bytes_.resize(bytes);
    poison(bytes_.data(), bytes);
    marks_.assign(races ? (bytes + 3) / 4 : 0, Marks{});
    epoch_ = 1;
  }

  void next_epoch() { ++epoch_; }

  static void poison(std::byte* to, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(i % 2 ? 0xff : 0xf7);
  }

  /// The place of so many bytes, which a warp is about to access.
  std::byte* at(uint64_t address, size_t bytes, int warp, Access access) {
    if (address + bytes > bytes_.size() || address > bytes_.size()) {
      throw Error("shared address out of range: " + std::to_string(address) + " of " +
                  std::to_string(bytes_.size()));
    }
    if ((address & (bytes - 1)) != 0) {
      throw Error("misaligned shared address: " + std::to_string(address));
    }
    if (!marks_.empty()) mark(address, bytes, static_cast<uint8_t>(warp + 1), access);
    return bytes_.data() + address;
  }

 private:
  /// Who accessed the four bytes of a word in an epoch: 0 nobody, w + 1 a warp, or one of these.
  struct Marks {
    uint32_t epoch = 0, writers = 0, readers = 0;
  };
  static constexpr uint8_t kAtomics = 254, kSeveral = 255;

  void mark(uint64_t address, size_t bytes, uint8_t who, Access access) {
    const uint32_t all = who * 0x01010101u;
    Marks* const end = &marks_[(address + bytes - 1) / 4] + 1;
    for (Marks* m = &marks_[address / 4]; m < end; ++m) {
      if (m->epoch != epoch_) *m = Marks{epoch_, 0, 0};
      const bool written = m->writers != 0 && m->writers != all;
      const bool read = m->readers != 0 && m->readers != all;
      const bool alike = m->readers == (m->readers & 0xff) * 0x01010101u;
      if (bytes >= 4 && access == Access::kRead && !written && alike) {
        m->readers = read ? kSeveral * 0x01010101u : all;
      } else if (bytes >= 4 && access == Access::kWrite && !written && !read) {
        m->writers = all;
      } else {
        for (uint64_t b = address % 4; b < std::min<uint64_t>(4, address % 4 + bytes); ++b) {
          mark_byte(*m, b, who, access, static_cast<uint64_t>(m - marks_.data()) * 4 + b);
        }
      }
    }
  }

  static void mark_byte(Marks& m, uint64_t b, uint8_t who, Access access, uint64_t address) {
    const auto of = [b](uint32_t word) { return static_cast<uint8_t>(word >> (8 * b)); };
    const auto set = [b](uint32_t& word, uint32_t value) {
      word = (word & ~(0xffu << (8 * b))) | value << (8 * b);
    };
    const uint8_t writer = of(m.writers), reader = of(m.readers);
    const bool both_atomic = writer == kAtomics && access == Access::kAtomic;
    const bool written = writer != 0 && writer != who && !both_atomic;
    const bool read = access != Access::kRead && reader != 0 && reader != who;
    if (written || read) {
      throw Error("race in shared memory at byte " + std::to_string(address) + ": " +
                  name(written ? writer : reader) + (written ? " wrote" : " read") +
                  " it and no barrier came between");
    }
    if (access == Access::kRead) set(m.readers, reader == 0 || reader == who ? who : kSeveral);
    if (access == Access::kWrite) set(m.writers, who);
    if (access == Access::kAtomic) set(m.writers, kAtomics);
  }

  static std::string name(uint8_t who) {
    if (who == kSeveral) return "several warps";
    return who == kAtomics ? "an atomic operation" : "warp " + std::to_string(who - 1);
  }

  std::vector<std::byte> bytes_;
  std::vector<Marks> marks_;
  uint32_t epoch_ = 1;
};

/// Global memory: addresses are those of this process; everything is allowed until a range is.
class Global {
 public:
  void allow(const void* pointer, size_t bytes) {
    ranges_.push_back({reinterpret_cast<uint64_t>(pointer), bytes});
  }
  void restrict(bool yes) { restricted_ = yes; }
  bool restricted() const { return restricted_; }

  std::byte* at(uint64_t address, size_t bytes) {
    if (address % bytes != 0) throw Error("misaligned address " + std::to_string(address));
    if (address < 2 * kSharedWindow || !allowed(address, bytes)) {
      throw Error("global address out of range: " + std::to_string(address));
    }
    return reinterpret_cast<std::byte*>(address);
  }

 private:
  struct Range {
    uint64_t begin, bytes;
    bool holds(uint64_t at, uint64_t n) const {
      return at >= begin && n <= bytes && at - begin <= bytes - n;
    }
  };

  bool allowed(uint64_t address, size_t bytes) {
    if (!restricted_) return true;
    if (last_ < ranges_.size() && ranges_[last_].holds(address, bytes)) return true;
    for (last_ = 0; last_ < ranges_.size(); ++last_) {
      if (ranges_[last_].holds(address, bytes)) return true;
    }
    return false;
  }

  std::vector<Range> ranges_;
  size_t last_ = 0;
  bool restricted_ = false;
};

/// A copy into shared memory that no wait has covered yet.
struct Copy {
  uint32_t to;
  const std::byte* from;
  uint8_t bytes, valid, lane;  ///< bytes after the valid ones become zero
  uint32_t group;
};

struct Warp;

/// An instruction; what the numbers mean is up to the function.
struct Operation {
  using Function = void (*)(Warp&, const Operation&, uint32_t mask);
  Function execute = nullptr, inner = nullptr;
  uint32_t guard = 0, flip = 0;    ///< executed where the predicate, flipped, is true
  std::array<uint32_t, 16> r{};    ///< places of registers
  std::array<uint8_t, 8> small{};  ///< widths, counts and kinds
  int64_t number = 0;              ///< a displacement, a target or a table
};

enum class State { kRunning, kWaiting, kDone };

/// What a warp waits for at a barrier, and what it brings.
struct Arrival {
  int id = 0;
  uint32_t threads = 0;  ///< 0 for all of the block
  uint32_t pc = 0;
  int kind = 0;  ///< of reduction: 0 none, 1 count, 2 and, 3 or
  uint32_t to = 0, here = 0, votes = 0;
};

/// What the warps of a block share.
struct Block {
  Shared shared;
  Global* global = nullptr;
  Statistics* statistics = nullptr;
  std::vector<std::byte> local;
  size_t local_bytes = 0;              ///< of each thread
  std::array<uint32_t, 16> arrived{};  ///< threads that passed a bar.arrive
};

/// 32 lanes, of which those with the lowest pc run until they meet others.
struct Warp {
  Block* block = nullptr;
  int index = 0;
  std::byte* registers = nullptr;
  uint32_t pc = 0, here = 0, next = kEnd;  ///< next is the lowest pc of the lanes that wait
  uint32_t mask = 0, live = 0;
  State state = State::kRunning;
  Arrival arrival;
  std::array<uint32_t, kLanes> pcs{};
  std::array<uint32_t, kLanes> groups{};
  std::vector<Copy> copies;

  uint32_t& predicate(uint32_t place) const {
    return *reinterpret_cast<uint32_t*>(registers + place);
  }

  /// Continues with the lanes of the lowest pc.
  void regroup() {
    for (int l = 0; l < kLanes; ++l) {
      if (mask >> l & 1) pcs[l] = pc;
    }
    pc = next = kEnd;
    for (int l = 0; l < kLanes; ++l) {
      if (!(live >> l & 1)) continue;
      if (pcs[l] < pc) {
        next = pc;
        pc = pcs[l];
        mask = 1u << l;
      } else if (pcs[l] == pc) {
        mask |= 1u << l;
      } else {
        next = std::min(next, pcs[l]);
      }
    }
    if (live == 0) {
      mask = 0;
      state = State::kDone;
    }
  }

  /// Sends lanes to another place.
  void jump(uint32_t lanes, uint32_t target) {
    if (lanes == mask) {
      pc = target;
      return;
    }
    for (int l = 0; l < kLanes; ++l) {
      if (lanes >> l & 1) pcs[l] = target;
    }
    mask &= ~lanes;
    next = std::min(next, target);
  }

  void leave(uint32_t lanes) {
    live &= ~lanes;
    mask &= ~lanes;
  }
};

template <class T>
inline T get(const std::byte* from, int lane) {
  T value;
  std::memcpy(&value, from + lane * sizeof(T), sizeof(T));
  return value;
}

template <class T>
inline void put(std::byte* to, int lane, T value) {
  std::memcpy(to + lane * sizeof(T), &value, sizeof(T));
}

/// A lane's value of a register of 2, 4 or 8 bytes, as an unsigned number.
inline uint64_t get_wide(const std::byte* from, size_t width, int lane) {
  uint64_t value = 0;
  std::memcpy(&value, from + static_cast<size_t>(lane) * width, width);
  return value;
}

inline void put_wide(std::byte* to, size_t width, int lane, uint64_t value) {
  std::memcpy(to + static_cast<size_t>(lane) * width, &value, width);
}

template <class F>
inline void each_lane(uint32_t mask, F f) {
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) f(l);
  }
}

inline std::string hex(uint32_t bits) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", bits);
  return text;
}

/// Throws unless the members of a collective operation are here, and are those of each lane here.
inline void require_members(const Warp& w, uint32_t here, uint32_t members) {
  if ((here & members) == members) return;
  throw Error("divergent collective: lanes " + hex(here & members) + " of " + hex(members) +
              " of warp " + std::to_string(w.index) + " are here");
}

}  // namespace attzoo::ptx
