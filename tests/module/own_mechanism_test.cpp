// A mechanism that is not in the zoo, held to the contract of those that are.

#include <gtest/gtest-spi.h>
#include <attzoo/attzoo.hpp>

#include "support/mechanism_contract.hpp"

namespace {

struct StridedOptions {
  int64_t d_model = 0, num_heads = 1, stride = 16;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0.1;
  bool bias = false, causal = false;
};

class StridedImpl : public attzoo::SelfAttention<StridedImpl, StridedOptions> {
 public:
  static constexpr const char* kName = "Strided";
  explicit StridedImpl(const StridedOptions& o) : SelfAttention(o) {
    check_positive("stride", o.stride);
    reset();
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    using namespace attzoo;
    const int64_t s = options.stride;
    return finish(attend(project(x, in), in, window(s, s) || dilated(s)));
  }
};
using Strided = attzoo::Holder<StridedImpl>;

struct StridedTraits : attzoo::testing::PlainTraits {
  using Module = Strided;
  static StridedOptions options() {
    return {.d_model = 12, .num_heads = 3, .stride = 3, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) {
    return attzoo::create_local_mask(n, 6) | attzoo::create_dilated_mask(n, 3);
  }
};

/// Head h counts in strides of its own: the tokens of one stretch of h + 2, and the last of each
/// (Child et al., 2019, arXiv:1904.10509, "fixed").
enum class Count { kRaw, kAligned, kInDocument };
struct FixedOptions {
  int64_t d_model = 0, num_heads = 1;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0.1;
  bool bias = false, causal = false;
  attzoo::Rope rope = false;
  Count count = Count::kInDocument;
};
class FixedImpl : public attzoo::SelfAttention<FixedImpl, FixedOptions> {
 public:
  static constexpr const char* kName = "Fixed";
  explicit FixedImpl(const FixedOptions& o)
      : SelfAttention(o, {.heads = {"num_heads", o.num_heads}, .rope = o.rope}) {
    reset();
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    using namespace attzoo;
    const auto fixed = [](auto, auto h, auto q, auto kv) {
      const auto s = h + 2;
      return q / s == kv / s || kv % s == s - 1;
    };
    core::AnyMask pattern = mask_mod(fixed, in_document);
    if (options.count == Count::kRaw) pattern = mask_mod(fixed);
    if (options.count == Count::kAligned) pattern = mask_mod(fixed, aligned);
    return finish(attend(project(x, in), in, pattern));
  }
};
using Fixed = attzoo::Holder<FixedImpl>;

struct FixedTraits : attzoo::testing::PlainTraits {
  using Module = Fixed;
  static FixedOptions options() {
    return {.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) {  // [H, n, n]
    std::vector<torch::Tensor> heads;
    for (int64_t s = 2; s < 5; ++s) {
      const auto last = torch::arange(n).remainder(s) == s - 1;
      heads.push_back(attzoo::create_block_mask(n, s).logical_or(last));
    }
    return torch::stack(heads);
  }
};

/// Adds what it has learned for each place, far from the window of a few tokens.
struct PlacesOptions : StridedOptions {};
class PlacesImpl : public attzoo::SelfAttention<PlacesImpl, PlacesOptions> {
 public:
  static constexpr const char* kName = "Places";
  explicit PlacesImpl(const PlacesOptions& o)
      : SelfAttention(o, {.heads = {"num_heads", o.num_heads}}) {
    reset();
  }
  void reset() override {
    SelfAttention::reset();
    worth = register_parameter("worth", torch::linspace(-1, 1, 200).sin());
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    using namespace attzoo;
    const auto of = table(worth);
    const auto score = score_mod(
        [=](auto s, auto, auto, auto q, auto kv) { return s + of(kv) - 2.0 * of(q) * of(kv); },
        in_document);
    return finish(attend(project(x, in), in, window(9, 9), score));
  }
  torch::Tensor worth;  // [200]

 protected:
  attzoo::Keeps keeps() const override { return {.reach = 9}; }
};
using Places = attzoo::Holder<PlacesImpl>;

/// How many expectations f breaks.
template <class F>
int failures(F&& f) {
  ::testing::TestPartResultArray results;
  {
    const ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
    f();
  }
  int failed = 0;
  for (int i = 0; i < results.size(); ++i) failed += results.GetTestPartResult(i).failed();
  return failed;
}

/// One with parameters of its own.
class RatedImpl : public attzoo::SelfAttention<RatedImpl, StridedOptions> {
 public:
  static constexpr const char* kName = "Rated";
  explicit RatedImpl(const StridedOptions& o) : SelfAttention(o, {.heads = {"num_heads", 1}}) {
    reset();
  }
  void reset() override {
    SelfAttention::reset();
    rate = register_parameter("rate", torch::rand({3}));
    seen = register_buffer("seen", torch::zeros({2}, torch::kInt64));
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    return finish(attend(project(x, in), in));
  }
  torch::Tensor rate, seen;
};

}  // namespace

TEST(OwnMechanism, ResetsItsParameters) {
  StridedOptions options;
  options.d_model = 8;
  attzoo::Holder<RatedImpl> rated(options);
  rated->seen.fill_(7);
  attzoo::testing::expect_reset_parameters(rated);
  attzoo::testing::expect_reset_parameters(attzoo::gated(rated));
  EXPECT_EQ(rated->seen.sum().item<int64_t>(), 0);

  // Not what the constructor makes.
  const auto before = rated->rate.clone();
  rated->w_q = rated->replace_module("w_q", torch::nn::Linear(8, 4));
  attzoo::testing::expect_error([&] { rated->reset_parameters(); },
                                {"Rated", "reset_parameters", "w_q.weight [4, 8]"});
  EXPECT_TRUE(torch::equal(rated->rate, before));
}

TEST(OwnMechanism, OneThatCountsFromItsRowsStartIsFoundOut) {
  const auto with = [](Count count) {
    auto options = FixedTraits::options();
    options.count = count;
    options.causal = true;
    return Fixed(options);
  };
  auto in_document = with(Count::kInDocument), aligned = with(Count::kAligned),
       raw = with(Count::kRaw);
  using attzoo::testing::expect_goes_on_as_alone, attzoo::testing::expect_packs;
  EXPECT_EQ(failures([&] { expect_packs(in_document, ""); }), 0);
  EXPECT_EQ(failures([&] { expect_goes_on_as_alone(in_document, ""); }), 0);
  for (auto* wrong : {&aligned, &raw}) {
    EXPECT_GT(failures([&] { expect_packs(*wrong, ""); }), 0);
  }
  EXPECT_GE(failures([&] { expect_goes_on_as_alone(aligned, ""); }), 4);  // padded and packed rows
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({1, 20, 12}, torch::kFloat64);
  const auto cache = raw->make_cache(1, 20);
  attzoo::testing::expect_error([&] { raw(x.slice(1, 0, 11), {.cache = cache}); },
                                {"aligned", "in_document"});
}

TEST(OwnMechanism, PlacesLearnAndAreThoseOfTheWholePass) {
  Places m(PlacesOptions{{.d_model = 8, .num_heads = 2, .dropout = 0, .causal = true}});
  attzoo::testing::expect_packs(m, "places");
  attzoo::testing::expect_goes_on_as_alone(m, "places");
  // Far behind what is forgotten, in single rows of the weights, and by definition.
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 190, 8}, torch::kFloat64);
  const auto want = m(x);
  const auto cache = m->make_cache(2);
  for (int64_t at = 0, end = 90; at < 190; at = end, end = std::min<int64_t>(190, at + 3)) {
    const auto got = m(x.slice(1, at, end), {.cache = cache});
    EXPECT_TRUE(torch::allclose(got.output, want.output.slice(1, at, end), 1e-10, 1e-12)) << at;
    const torch::Tensor w = got.weights;
    EXPECT_TRUE(torch::allclose(w, want.weights.rows(at, end).slice(-1, end - w.size(-1), end),
                                1e-10, 1e-12));
  }
  const attzoo::EagerReferenceGuard eager;
  EXPECT_TRUE(torch::allclose(m(x).output, want.output, 1e-10, 1e-12));
}

TEST(OwnMechanism, AParameterOfItsOwnIsNoUseWithACache) {
  Places m(PlacesOptions{{.d_model = 8, .dropout = 0, .causal = true}});
  for (auto& p : m->parameters()) p.set_requires_grad(p.is_same(m->worth));
  const auto cache = m->make_cache(1);
  attzoo::testing::expect_error(
      [&] {
        m(torch::randn({1, 2, 8}), {.cache = cache});
      },
      {"Places", "gradients", "NoGradGuard"});
}

namespace attzoo::testing {
INSTANTIATE_TEST_SUITE_P(Own, MechanismContract, mechanism<StridedTraits>());
INSTANTIATE_TEST_SUITE_P(OwnThatCounts, MechanismContract, mechanism<FixedTraits>());
}  // namespace attzoo::testing

TEST(OwnMechanism, FitsIntoTheWrappers) {
  auto m = attzoo::gated(
      attzoo::combined(Strided(StridedTraits::options()), attzoo::LongformerSelfAttention(12, 3)));
  m->eval();
  const auto x = torch::randn({2, 9, 12});
  const attzoo::AttentionInputs in{.causal = true, .global_attention = torch::arange(9) == 1};
  const auto mixed = m->attn->forward(x, in).output, g = m->gate->forward(x);
  EXPECT_TRUE(torch::allclose(m(x, in).output, g * mixed + (1 - g) * x, 1e-5, 1e-6));
  std::stringstream text;
  text << m;
  EXPECT_NE(text.str().find("attzoo::Strided(d_model=12"), std::string::npos) << text.str();
}
