// A mechanism that is not in the zoo, held to the contract of those that are.

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
  explicit StridedImpl(const StridedOptions& o)
      : SelfAttention(o, {.heads = {"num_heads", o.num_heads}}) {
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
  static constexpr const char* kName = "Strided";
  static StridedOptions options() {
    return {.d_model = 12, .num_heads = 3, .stride = 3, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) {
    return attzoo::create_local_mask(n, 6) | attzoo::create_dilated_mask(n, 3);
  }
};

/// Every third key before a query, by a callable that counts raw or among the keys.
struct ThirdOptions : StridedOptions {
  bool raw = false;
};
class ThirdImpl : public attzoo::SelfAttention<ThirdImpl, ThirdOptions> {
 public:
  static constexpr const char* kName = "Third";
  explicit ThirdImpl(const ThirdOptions& o) : SelfAttention(o, {.heads = {"num_heads", 1}}) {
    reset();
  }
  attzoo::AttentionResult forward(const torch::Tensor& x, const attzoo::AttentionInputs& in = {}) {
    const auto third = [](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; };
    const attzoo::core::AnyMask pattern = options.raw
                                              ? attzoo::core::AnyMask(attzoo::mask_mod(third))
                                              : attzoo::mask_mod(third, attzoo::aligned);
    return finish(attend(project(x, in), in, pattern));
  }
};

/// One with parameters of its own.
class RatedImpl : public attzoo::SelfAttention<RatedImpl, ThirdOptions> {
 public:
  static constexpr const char* kName = "Rated";
  explicit RatedImpl(const ThirdOptions& o) : SelfAttention(o, {.heads = {"num_heads", 1}}) {
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
  ThirdOptions options;
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

TEST(OwnMechanism, CountsAmongTheKeysWithACache) {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({1, 20, 8}, torch::kFloat64);
  for (const bool raw : {false, true}) {
    ThirdOptions options;
    options.d_model = 8;
    options.causal = true;
    options.raw = raw;
    ThirdImpl m(options);
    m.to(torch::kFloat64);
    m.eval();
    const auto cache = m.make_cache(1, 20);
    const auto want = m.forward(x).output;
    m.forward(x.slice(1, 0, 11), {.cache = cache});
    const auto step = [&] { return m.forward(x.slice(1, 11, 13), {.cache = cache}).output; };
    if (raw) {
      attzoo::testing::expect_error(step, {"aligned"});
    } else {
      EXPECT_TRUE(torch::allclose(step(), want.slice(1, 11, 13), 1e-10, 1e-12));
    }
  }
}

namespace attzoo::testing {
INSTANTIATE_TYPED_TEST_SUITE_P(Own, MechanismContract, StridedTraits);
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
