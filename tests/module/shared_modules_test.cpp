// A module that many threads use at once gives each what it would get alone, of the same bits:
// calls, gradients, caches. `tests/races` runs this under the thread sanitizer.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <thread>
#include <vector>

#include "support/every_mechanism.hpp"

namespace attzoo::testing::shared_modules_test {
namespace {

constexpr int64_t kWidth = 32, kTokens = 40;

/// What a thread asks of a module: the output and all gradients; what a cache gives for the same
/// tokens, two chunks and one more, and for some of them again in another cache.
std::vector<torch::Tensor> ask(const AnyAttention& attend, const torch::Tensor& numbers) {
  const bool causal = attend.takes().causal;
  auto learn = attend->parameters();
  const auto x = numbers.detach().requires_grad_();
  learn.push_back(x);
  const auto y = attend(x, {.causal = causal}).output;
  auto all = torch::autograd::grad({y}, learn, {torch::cos(y.detach())}, std::nullopt, false,
                                   /*allow_unused=*/true);
  all.push_back(y.detach());
  if (!causal) return all;
  const torch::NoGradGuard no_grad;
  auto cache = attend.make_cache(1, kTokens);
  for (const auto& [from, to] : {std::pair{0, 20}, {20, 39}, {39, 40}}) {
    all.push_back(attend(x.slice(1, from, to), {.cache = cache}).output);
  }
  auto other = attend.make_cache(1, kTokens);
  all.push_back(attend(x.slice(1, 0, 8), {.cache = other}).output);
  return all;
}

TEST(SharedModules, GiveEachThreadWhatItWouldGetAlone) {
  constexpr size_t kThreads = 8;
  const int threads_before = at::get_num_threads();
  at::set_num_threads(1);
  for (const auto& listed : every_mechanism(
           {.width = kWidth, .heads = 4, .span = 8, .longest = kTokens, .causal = true})) {
    SCOPED_TRACE(listed.name);
    torch::manual_seed(3);
    const auto attend = listed.make();
    attend->eval();
    std::vector<torch::Tensor> x;
    std::vector<std::vector<torch::Tensor>> got(kThreads);
    for (size_t i = 0; i < kThreads; ++i) x.push_back(torch::randn({1, kTokens, kWidth}));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        at::set_num_threads(1);
        got[i] = ask(attend, x[i]);
      });
    }
    for (auto& t : threads) t.join();
    for (size_t i = 0; i < kThreads; ++i) {
      const auto want = ask(attend, x[i]);
      ASSERT_EQ(got[i].size(), want.size());
      for (size_t k = 0; k < want.size(); ++k) {
        ASSERT_EQ(got[i][k].defined(), want[k].defined());
        if (!want[k].defined()) continue;
        EXPECT_TRUE(torch::equal(got[i][k], want[k])) << "thread " << i << ", result " << k;
      }
    }
  }
  at::set_num_threads(threads_before);
}

}  // namespace
}  // namespace attzoo::testing::shared_modules_test
