#pragma once
// What the kernel tests share. They are also compiled with -ffast-math, under which std::isnan is
// always false, and so is a comparison with infinity: numbers are then compared by their bits.

#include <attzoo/kernel/problem.hpp>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace attzoo::kernel {

class Threads final : public Runtime {
 public:
  explicit Threads(int count) : count_(count) {}
  void run(const std::function<void()>& worker) override {
    std::vector<std::thread> threads;
    for (int i = 1; i < count_; ++i) threads.emplace_back(worker);
    worker();
    for (auto& t : threads) t.join();
  }
  /// Exactly so many bytes, so that a sanitizer sees the first one behind them.
  std::shared_ptr<void> allocate(size_t bytes) override {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);  // NaNs: whoever reads what nobody wrote is found out
    return {memory, std::free};
  }

 private:
  int count_;
};

/// Numbers at an address that is a multiple of their size and of nothing more; a sanitizer sees who
/// reads behind the last one.
template <class T>
class Buffer {
 public:
  void resize(size_t n, T value = T()) { numbers_.resize(n + 1, value); }
  size_t size() const { return numbers_.size() - 1; }
  T* data() { return numbers_.data() + 1; }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  T& operator[](size_t i) { return numbers_[i + 1]; }
  const T& operator[](size_t i) const { return numbers_[i + 1]; }
  /// Of the bits.
  friend bool operator==(const Buffer& a, const Buffer& b) {
    return a.size() == b.size() &&
           std::memcmp(&a.numbers_[0] + 1, &b.numbers_[0] + 1, a.size() * sizeof(T)) == 0;
  }

 private:
  std::vector<T> numbers_{T()};
};

template <class T>
Buffer<T> random_numbers(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Buffer<T> out;
  out.resize(n);
  for (auto& x : out) x = static_cast<T>(normal(random));
  return out;
}

inline uint32_t bits(float x) { return __builtin_bit_cast(uint32_t, x); }
inline uint64_t bits(double x) { return __builtin_bit_cast(uint64_t, x); }
inline bool is_nan(float x) { return (bits(x) & 0x7fffffff) > 0x7f800000; }
inline bool is_nan(double x) { return (bits(x) & ~(1ull << 63)) > 0x7ffull << 52; }
template <class T>
bool is_minus_infinity(T x) {
  return bits(x) == bits(-std::numeric_limits<T>::infinity());
}

}  // namespace attzoo::kernel
