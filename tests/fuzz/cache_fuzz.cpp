// A mechanism, and any program of a cache: append, truncate, reorder, clone, reset. What comes out
// is what a causal pass without a cache gives for the tokens that the cache then stands for.

#include <algorithm>
#include <map>
#include <vector>

#include "fuzz.hpp"
#include "support/every_mechanism.hpp"

namespace attzoo::fuzz {
namespace {

constexpr int64_t kWidth = 16, kTakenBack = 32;  // tokens that any cache can take back
constexpr size_t kMostCaches = 3;

/// All that have caches.
const std::vector<testing::Listed>& mechanisms() {
  static const auto all = [] {
    auto listed = testing::every_mechanism({.width = kWidth,
                                            .heads = 4,
                                            .span = 8,
                                            .dilation = 3,
                                            .hashes = 2,
                                            .causal = true,
                                            .buckets = 9});
    std::erase_if(listed, [](const auto& m) { return !m.make().takes().causal; });
    return listed;
  }();
  return all;
}

/// One of them, with parameters as training might leave them; made when it is first asked for.
const AnyAttention& mechanism(size_t i) {
  static std::map<size_t, AnyAttention> made;
  if (const auto known = made.find(i); known != made.end()) return known->second;
  torch::manual_seed(1);
  auto module = mechanisms()[i].make();
  module->eval();
  module->to(torch::kFloat64);
  for (auto& p : module->parameters()) p.add_(0.1 * torch::randn_like(p));
  return made.emplace(i, module).first->second;
}

/// A cache, the tokens that it stands for, what came out for them, and the most tokens that it has
/// had since it was empty.
struct Kept {
  Cache cache;
  torch::Tensor tokens, outputs;  // [batch, n, kWidth]
  int64_t most = 0;
};

class Program {
 public:
  Program(const uint8_t* data, size_t size)
      : bytes_(data, size),
        which_(static_cast<size_t>(up_to(static_cast<int64_t>(mechanisms().size()) - 1))),
        attend_(mechanism(which_)) {
    torch::manual_seed(static_cast<uint64_t>(up_to(255)));
    const int64_t batch = 1 + up_to(1);
    const auto none = numbers(batch, 0);
    all_.reserve(kMostCaches);
    all_.push_back({attend_.make_cache(batch, 1 + up_to(127)), none, none});
  }

  void run() {
    for (; bytes_.remaining_bytes() > 0 && steps_ < 40; ++steps_) {
      auto& kept = all_[static_cast<size_t>(up_to(static_cast<int64_t>(all_.size()) - 1))];
      step(kept);
    }
    for (const auto& kept : all_) compare(kept);
  }

 private:
  int64_t up_to(int64_t most) { return bytes_.ConsumeIntegralInRange<int64_t>(0, most); }
  static torch::Tensor numbers(int64_t batch, int64_t n) {
    return torch::randn({batch, n, kWidth}, torch::kFloat64);
  }
  void check(bool ok, const std::string& what) const {
    if (ok) return;
    require(false, mechanisms()[which_].name + ", step " + std::to_string(steps_) + ": " + what);
  }

  void step(Kept& kept) {
    switch (up_to(6)) {
      case 0:
        return append(kept, 1);
      case 1:
        return append(kept, 1 + up_to(15));
      case 2:
        return append(kept, 1 + up_to(79));
      case 3:
        return truncate(kept, std::max<int64_t>(0, kept.tokens.size(1) - up_to(40)));
      case 4:
        return reorder(kept);
      case 5:
        if (all_.size() < kMostCaches) {
          auto copy = kept;
          copy.cache = kept.cache.clone();
          all_.push_back(copy);
        }
        return;
      default:
        compare(kept);
        kept.cache.reset();
        forget(kept, 0);
    }
  }

  void append(Kept& kept, int64_t L) {
    const int64_t n = kept.tokens.size(1);
    const auto x = numbers(kept.cache.batch(), L);
    torch::Tensor got;
    const bool fits = n + L <= kept.cache.capacity();
    check(works([&] { got = attend_(x, {.cache = kept.cache}).output; }) == fits,
          fits ? "tokens are refused" : "tokens beyond the capacity");
    if (!fits) return;
    kept.tokens = torch::cat({kept.tokens, x}, 1);
    kept.outputs = torch::cat({kept.outputs, got}, 1);
    kept.most = std::max(kept.most, n + L);
  }

  /// Before any output is forgotten.
  void compare(const Kept& kept) const {
    check(kept.cache.length() == kept.tokens.size(1), "another length");
    if (kept.tokens.size(1) == 0) return;
    auto want = attend_(kept.tokens).output;
    if (kPlanted && kept.most > kept.tokens.size(1)) want = want * 1.0000001;
    check(kept.outputs.sizes() == want.sizes() && torch::allclose(kept.outputs, want, 1e-9, 1e-10),
          c10::str("other outputs of ", want.sizes(), " than without a cache"));
  }

  static void forget(Kept& kept, int64_t n) {
    kept.tokens = kept.tokens.slice(1, 0, n);
    kept.outputs = kept.outputs.slice(1, 0, n);
    if (n == 0) kept.most = 0;
  }

  /// Farther back than promised is an error or works.
  void truncate(Kept& kept, int64_t n) {
    compare(kept);
    const bool promised = n == 0 || n >= kept.most - kTakenBack;
    if (!works([&] { kept.cache.truncate(n); })) {
      return check(!promised, c10::str("does not go back from ", kept.most, " to ", n));
    }
    forget(kept, n);
  }

  void reorder(Kept& kept) {
    const int64_t batch = kept.cache.batch();
    std::vector<int64_t> order;
    for (int64_t i = 0; i < batch; ++i) order.push_back(up_to(batch - 1));
    const auto indices = torch::tensor(order);
    kept.cache.reorder(indices);
    kept.tokens = kept.tokens.index_select(0, indices);
    kept.outputs = kept.outputs.index_select(0, indices);
  }

  FuzzedDataProvider bytes_;
  size_t which_;
  const AnyAttention& attend_;
  std::vector<Kept> all_;
  int steps_ = 0;
};

}  // namespace
}  // namespace attzoo::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const torch::NoGradGuard no_grad;
  attzoo::fuzz::Program(data, size).run();
  return 0;
}
