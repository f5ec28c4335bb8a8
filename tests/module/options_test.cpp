// Options: their order in print, their defaults, and one that is changed after the module was made,
// which counts as if the module had been made with it, or is an error of the next call that names
// it.

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <sstream>
#include <string>

#include "support/expect_error.hpp"

namespace attzoo::testing::options_test {
namespace {

constexpr int64_t kWidth = 8;

torch::Tensor tokens() {
  torch::manual_seed(8);
  return torch::randn({1, 21, kWidth}, torch::kFloat64);
}

template <class M>
M made(const typename M::ContainedType::Config& config) {
  M m(config);
  m->to(torch::kFloat64);
  m->eval();
  return m;
}

template <class M>
class Changes {
 public:
  using Impl = typename M::ContainedType;
  using Config = typename Impl::Config;
  using Options = decltype(Impl::options);

  explicit Changes(const Config& config) : config_(config) {}

  /// The call is one of a module that was made so, with the same parameters.
  template <class Field, class Value>
  const Changes& counts(Field Options::*field, const Value& value) const {
    auto m = made<M>(config_);
    const auto x = tokens(), before = m(x).output;
    m->options.*field = value;
    auto fresh = made<M>(m->get_config());
    load_state_dict(*fresh, state_dict(*m));
    const auto got = m(x).output;
    EXPECT_TRUE(torch::equal(got, fresh(x).output)) << Impl::kName;
    EXPECT_FALSE(torch::allclose(got, before, 1e-6, 1e-6)) << Impl::kName;
    return *this;
  }

  /// It is an error of calls, of the module and of a copy, until it is changed back.
  template <class Field, class Value>
  const Changes& is_settled(Field Options::*field, const Value& value, const std::string& name,
                            const std::string& was, const std::string& now) const {
    auto m = made<M>(config_);
    const auto x = tokens(), before = m(x).output;
    const std::vector<std::string> parts{Impl::kName, name, "settled", "was " + was, "is " + now};
    const auto given = m->options.*field;
    m->options.*field = value;
    expect_error([&] { m(x); }, parts);
    const torch::NoGradGuard no_grad;
    m->options.*field = given;
    EXPECT_TRUE(torch::allclose(m(x).output, before, 1e-12, 1e-12));
    const auto cache = m->make_cache(1, 64);
    m->options.*field = value;
    expect_error([&] { m(x, {.causal = true, .cache = cache}); }, parts);
    m->options.*field = given;
    const auto copy = std::dynamic_pointer_cast<Impl>(m->clone());
    copy->options.*field = value;
    expect_error([&] { copy->forward(x); }, parts);
    return *this;
  }

  /// Of a mechanism: those that all have.
  const Changes& common() const {
    counts(&Options::causal, true);
    is_settled(&Options::d_model, 4, "d_model", "8", "4");
    is_settled(&Options::input_dim, std::nullopt, "input_dim", "8", "none");
    is_settled(&Options::bias, true, "bias", "false", "true");
    if constexpr (requires(Options o) { o.rope; }) {
      is_settled(&Options::rope, true, "rope", "false", "true");
    }
    if constexpr (requires(Options o) { o.temperature; }) {
      is_settled(&Options::temperature, 2.5, "temperature", "1", "2.5");
    }
    if constexpr (requires(Options o) { o.num_heads; }) {
      is_settled(&Options::num_heads, 4, "num_heads", "2", "4");
    }
    return *this;
  }

  /// Those of today's models.
  const Changes& around() const {
    is_settled(&Options::context_dim, 8, "context_dim", "none", "8");
    is_settled(&Options::head_dim, 2, "head_dim", "none", "2");
    is_settled(&Options::out_bias, true, "out_bias", "none", "true");
    is_settled(&Options::key_bias, false, "key_bias", "true", "false");
    is_settled(&Options::qk_norm, true, "qk_norm", "false", "true");
    is_settled(&Options::qk_norm_eps, 0.5, "qk_norm_eps", "1e-06", "0.5");
    is_settled(&Options::softcap, 3.0, "softcap", "none", "3");
    is_settled(&Options::sinks, true, "sinks", "false", "true");
    is_settled(&Options::output_gate, true, "output_gate", "false", "true");
    return is_settled(&Options::sliding_window, 7, "sliding_window", "none", "7");
  }

 private:
  Config config_;
};

TEST(Settled, CountOrAreErrors) {
  Changes<VanillaSelfAttention>({.d_model = kWidth}).common();
  Changes<MultiHeadSelfAttention>({.d_model = kWidth, .num_heads = 2}).common().around();
  using Grouped = GroupedSelfAttentionOptions;
  Changes<GroupedSelfAttention>({.d_model = kWidth, .num_query_heads = 4, .num_kv_heads = 2})
      .common()
      .around()
      .is_settled(&Grouped::num_query_heads, 2, "num_query_heads", "4", "2")
      .is_settled(&Grouped::num_kv_heads, 4, "num_kv_heads", "2", "4");
  Changes<LocalSelfAttention>({.d_model = kWidth, .num_heads = 2, .window_size = 5})
      .common()
      .counts(&LocalSelfAttentionOptions::window_size, 9);
  Changes<DilatedSelfAttention>({.d_model = kWidth, .num_heads = 2, .dilation_rate = 2})
      .common()
      .counts(&DilatedSelfAttentionOptions::dilation_rate, 3)
      .counts(&DilatedSelfAttentionOptions::window_size, 5);
  using Block = BlockSelfAttentionOptions;
  Changes<BlockSelfAttention>({.d_model = kWidth, .num_heads = 2, .block_size = 4})
      .common()
      .counts(&Block::block_size, 5)
      .counts(&Block::overlap, true);
  Changes<BlockSelfAttention>({.d_model = kWidth, .num_heads = 2, .block_size = 4, .overlap = true})
      .counts(&Block::python_blend, true);
  Changes<ALiBiSelfAttention>({.d_model = kWidth, .num_heads = 2})
      .common()
      .is_settled(&ALiBiSelfAttentionOptions::python_slopes, true, "python_slopes", "false",
                  "true");
  using Longformer = LongformerSelfAttentionOptions;
  Changes<LongformerSelfAttention>({.d_model = kWidth, .num_heads = 2, .window_size = 4})
      .common()
      .counts(&Longformer::window_size, 8)
      .is_settled(&Longformer::global_projections, true, "global_projections", "false", "true");
  using Linear = LinearSelfAttentionOptions;
  Changes<LinearSelfAttention>({.d_model = kWidth, .num_heads = 2})
      .common()
      .counts(&Linear::eps, 1.5)
      .is_settled(&Linear::feature_dim, 4, "feature_dim", "8", "4");
  using LSH = LSHSelfAttentionOptions;
  Changes<LSHSelfAttention>({.d_model = kWidth, .num_heads = 2, .bucket_size = 3})
      .common()
      .counts(&LSH::bucket_size, 2)
      .is_settled(&LSH::num_hashes, 2, "num_hashes", "1", "2")
      .is_settled(&LSH::exact_buckets, true, "exact_buckets", "false", "true")
      .is_settled(&LSH::seed, 3, "seed", "0", "3")
      .is_settled(&LSH::num_buckets, 5, "num_buckets", "none", "5");
}

TEST(Settled, OfWrappers) {
  const VanillaSelfAttentionOptions inner{.d_model = kWidth};
  const auto of_gates = [](const auto& changes) {
    changes.is_settled(&GateOptions::input_dim, 4, "input_dim", "8", "4")
        .is_settled(&GateOptions::gate_hidden, 3, "gate_hidden", "none", "3")
        .is_settled(&GateOptions::gate_bias, false, "gate_bias", "true", "false")
        .is_settled(&GateOptions::dropout, 0.5, "dropout", "0", "0.5");
  };
  using Vanilla = VanillaSelfAttentionImpl;
  of_gates(Changes<GatedSelfAttention<Vanilla>>({.attn = inner}));
  of_gates(Changes<CombinedAttention<Vanilla, Vanilla>>({.attn_a = inner, .attn_b = inner}));
  using Options = TransformerBlockOptions;
  Changes<TransformerBlock<Vanilla>>({.attn = inner})
      .counts(&Options::activation, Activation::kRelu)
      .is_settled(&Options::mlp_hidden, 3, "mlp_hidden", "32", "3")
      .is_settled(&Options::norm, NormKind::kRMSNorm, "norm", "0", "1")
      .is_settled(&Options::norm_eps, 0.5, "norm_eps", "1e-05", "0.5")
      .is_settled(&Options::norm_placement, NormPlacement::kParallel, "norm_placement", "0", "2")
      .is_settled(&Options::mlp_gated, true, "mlp_gated", "false", "true")
      .is_settled(&Options::mlp_bias, false, "mlp_bias", "true", "false");
}

TEST(Settled, DropoutIsReadAtEachCall) {
  const auto x = tokens();
  MultiHeadSelfAttention m({.d_model = kWidth, .num_heads = 2, .dropout = 0});
  auto block = transformer_block(m);
  block->to(torch::kFloat64);
  EXPECT_TRUE(torch::equal(block(x).output, block(x).output));
  m->options.dropout = 0.5;
  EXPECT_FALSE(torch::equal(m(x).output, m(x).output));
  m->options.dropout = 0;
  block->options.dropout = 0.5;
  EXPECT_FALSE(torch::equal(block(x).output, block(x).output));
  block->options.dropout = 2;
  expect_error([&] { block(x); }, {"TransformerBlock", "dropout", "2"});
  block->options.dropout = 0;
  block->options.activation = static_cast<Activation>(9);
  expect_error([&] { block(x); }, {"TransformerBlock", "activation", "9"});
}

/// All in one order, and what is not in use is not printed.
TEST(Options, ArePrintedInTheirOrder) {
  const auto printed = [](const auto& m) {  // without the lines of its layers
    std::ostringstream text;
    m->pretty_print(text);
    return text.str();
  };
  const std::string end = "input_dim=8, dropout=0, bias=false, temperature=1, rope=false, causal=";
  EXPECT_EQ(printed(VanillaSelfAttention(8)),
            "attzoo::VanillaSelfAttention(d_model=8, " + end + "false)");
  EXPECT_EQ(
      printed(DilatedSelfAttention(8, 3, 2)),
      "attzoo::DilatedSelfAttention(d_model=8, num_heads=2, dilation_rate=3, " + end + "false)");
  EXPECT_EQ(printed(GroupedSelfAttention({.d_model = 8,
                                          .num_query_heads = 4,
                                          .num_kv_heads = 2,
                                          .causal = true,
                                          .softcap = 2,
                                          .sliding_window = 5})),
            "attzoo::GroupedSelfAttention(d_model=8, num_query_heads=4, num_kv_heads=2, " + end +
                "true, softcap=2, sliding_window=5)");
  EXPECT_EQ(printed(BlockSelfAttention({.d_model = 8, .num_heads = 2, .python_blend = true})),
            "attzoo::BlockSelfAttention(d_model=8, num_heads=2, block_size=64, overlap=false, " +
                end + "false, python_blend=true)");
  EXPECT_EQ(printed(LinearSelfAttention(8)),
            "attzoo::LinearSelfAttention(d_model=8, num_heads=1, feature_dim=8, eps=1e-06, "
            "input_dim=8, dropout=0, bias=false, rope=false, causal=false)");
  EXPECT_EQ(printed(gated(VanillaSelfAttention(8), {.gate_hidden = 3})),
            "attzoo::GatedSelfAttention(d_model=8, gate_hidden=3, gate_bias=true, input_dim=8, "
            "dropout=0)");
}

/// A new module is in training, and its calls are the same all the same.
TEST(Options, NothingIsDroppedByDefault) {
  const auto x = tokens().to(torch::kFloat32);
  const auto check = [&](auto m) { EXPECT_TRUE(torch::equal(m(x).output, m(x).output)); };
  check(VanillaSelfAttention(kWidth));
  check(LocalSelfAttention(kWidth));
  check(LinearSelfAttention(kWidth));
  check(gated(MultiHeadSelfAttention(kWidth, 2), {.gate_hidden = 3}));
  check(transformer_block(ALiBiSelfAttention(kWidth, 2)));
}

}  // namespace
}  // namespace attzoo::testing::options_test
