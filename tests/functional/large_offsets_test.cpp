// Heads and batches that lie more than 2^31 numbers apart: no offset is an int.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

namespace attzoo::testing::large_offsets_test {
namespace {

constexpr int64_t kApart = (int64_t{1} << 31) + 4096;  // numbers

/// Address space of which little is ever touched; no memory where there is none to be had.
class Space {
 public:
  explicit Space(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Space() {
    if (is_there()) munmap(data_, bytes_);
  }
  Space(const Space&) = delete;
  Space& operator=(const Space&) = delete;

  bool is_there() const { return data_ != MAP_FAILED; }
  /// The numbers of t [1, 2, n, D], whose heads lie kApart numbers apart from `first` on.
  torch::Tensor hold(const torch::Tensor& t, int64_t first) const {
    auto held = torch::from_blob(static_cast<char*>(data_) + first * t.element_size(), t.sizes(),
                                 {2 * kApart, kApart, t.size(3), 1}, t.options());
    return held.copy_(t);
  }

 private:
  size_t bytes_;
  void* data_;
};

TEST(LargeOffsets, AreNoIntegersOf32Bits) {
  const Space space(4 * (kApart + 8192));
  if (!space.is_there()) GTEST_SKIP() << "no address space for it";
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const int64_t L : {1, 40}) {  // few queries, and more
      const auto numbers = [&](int64_t n) { return torch::randn({1, 2, n, 16}, dtype); };
      const auto q = numbers(L), k = numbers(70), v = numbers(70);
      const auto run = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
        const auto no_gradients = attention(q, k, v, causal()).output;
        std::vector<torch::Tensor> leaves;
        for (const auto& t : {q, k, v}) leaves.push_back(t.detach().requires_grad_());
        const auto y = attention(leaves[0], leaves[1], leaves[2], causal()).output;
        auto all = torch::autograd::grad({y.sin().sum()}, leaves);
        all.push_back(no_gradients);
        all.push_back(y.detach());
        return all;
      };
      const auto want = run(q, k, v);
      const auto got = run(space.hold(q, 0), space.hold(k, 1024), space.hold(v, 4096));
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_TRUE(torch::equal(got[i], want[i])) << dtype << ", L " << L << ", " << i;
      }
    }
  }
}

/// Scores whose places in a table do not fit into 32 bits.
TEST(LargeOffsets, OfATensorThatAScoreReads) {
  const Space space(4 * (kApart + 8192));
  if (!space.is_there()) GTEST_SKIP() << "no address space for it";
  const auto numbers = [&](int64_t n) { return torch::randn({1, 2, n, 16}); };
  const auto q = numbers(40), k = numbers(40), v = numbers(40), bias = torch::randn({1, 2, 40, 40});
  const auto want = attention(q, k, v, causal(), bias_tensor(bias)).output;
  const auto got = attention(q, k, v, causal(), bias_tensor(space.hold(bias, 0))).output;
  EXPECT_TRUE(torch::equal(got, want));
}

}  // namespace
}  // namespace attzoo::testing::large_offsets_test
