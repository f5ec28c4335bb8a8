// Bad inputs to every module: options, holders, x, context, masks, global tokens. See
// support/bad_inputs.hpp.

#include "support/bad_inputs.hpp"

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <ATen/autocast_mode.h>

#include <optional>
#include <regex>
#include <sstream>

#include "support/every_mechanism.hpp"

namespace attzoo::testing::bad_inputs_modules_test {
namespace {

constexpr int64_t kModel = 8, kLength = 5, kBatch = 2;
const std::vector<int64_t> kDoNotDivide{3, 32};  // kModel, twice that, the heads of a group

torch::Tensor good_x() { return torch::ones({kBatch, kLength, kModel}); }

// ---- per-call inputs ----------------------------------------------------------------------------

/// A mechanism, small, as something that can be called.
struct Subject {
  std::string who;  // the names that its errors may have
  int64_t heads;
  TakenInputs takes;
  std::function<AnyAttention()> make;

  void run(const torch::Tensor& x, const AttentionInputs& in,
           const std::function<void(torch::nn::Module&)>& prepare) const {
    const auto module = make();
    if (prepare) prepare(*module.ptr());
    module(x, in).output.sum().item<double>();
  }
};

Subject subject(int64_t heads, const std::function<AnyAttention()>& make) {
  const auto module = make();
  std::stringstream printed;
  printed << *module.ptr();
  std::string text = printed.str(), who;  // its own name, and of a wrapper those of what it wraps
  for (std::smatch found; std::regex_search(text, found, std::regex("attzoo::(\\w+)\\("));) {
    who += (who.empty() ? "" : "|") + found[1].str();
    text = found.suffix();
  }
  return {who, heads, module.takes(), make};
}

std::vector<Subject> subjects() {
  std::vector<Subject> all{subject(2,
                                   [] {
                                     return BlockSelfAttention({.d_model = kModel,
                                                                .num_heads = 2,
                                                                .block_size = 2,
                                                                .overlap = true,
                                                                .rope = true});
                                   }),
                           subject(2,
                                   [] {
                                     return LongformerSelfAttention({.d_model = kModel,
                                                                     .num_heads = 2,
                                                                     .window_size = 2,
                                                                     .global_projections = true,
                                                                     .rope = true});
                                   }),
                           subject(2, [] {
                             return TransformerBlock(MultiHeadSelfAttention(
                                 {.d_model = kModel, .num_heads = 2, .rope = true}));
                           })};
  for (const auto& [name, make] : every_mechanism({.width = kModel, .heads = 4, .span = 4})) {
    all.push_back(subject(name == "vanilla" ? 1 : 4, make));
  }
  return all;
}

struct CallCases {
  const Subject& subject;
  BadInputs& all;

  void add(const std::string& argument, const BadTensor& value, const torch::Tensor& x,
           AttentionInputs in, std::function<void(torch::nn::Module&)> prepare = {}) const {
    all.push_back({subject.who + " " + argument + " " + value.name,
                   [subject = subject, x, in, prepare] { subject.run(x, in, prepare); },
                   {subject.who + (argument == "position_offset" ? "|apply_rope" : ""),
                    argument + "|no meaning|not supported",
                    value.part + "|no meaning|not supported"}});  // who takes none says so first
  }

  void x() const {
    const auto good = good_x();
    auto values = not_floating(good);
    for (const auto& more : {of_float_dtypes(good), of_wrong_sizes(good, {2})}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& value : values) add("x", value, value.tensor, {});
    for (const auto& value : of_float_dtypes(torch::ones({1}, torch::kFloat64))) {
      // The module's dtype is another than x's, with and without autocast.
      add("x", value, good.to(value.tensor.scalar_type()), {},
          [](torch::nn::Module& m) { m.to(torch::kFloat64); });
      add("x", {"autocast " + value.name, {}, value.part}, good.to(value.tensor.scalar_type()), {},
          [](torch::nn::Module& m) {
            m.to(torch::kFloat64);
            at::autocast::set_autocast_enabled(at::kCPU, true);
          });
    }
    add("x", {"autocast Double", {}, "Double"}, good.to(torch::kFloat64), {},
        [](torch::nn::Module&) { at::autocast::set_autocast_enabled(at::kCPU, true); });
  }

  void context() const {
    const auto good = torch::ones({kBatch, kLength + 2, kModel});
    auto values = not_floating(good);
    for (const auto& more : {of_float_dtypes(good), of_wrong_sizes(good, {0, 2})}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& value : values) {
      if (value.tensor.defined()) add("context", value, good_x(), {.context = value.tensor});
    }
  }

  void mask() const {
    const auto good = torch::ones({kBatch, subject.heads, kLength, kLength}, torch::kBool);
    auto values = unreadable(good);
    for (const auto& more :
         {of_strange_dtypes(good), of_integer_dtypes(good), unreadable(good.to(torch::kFloat32)),
          of_wrong_sizes(good, {0, 1, 2, 3}, false),
          BadTensors{of_sizes("rank", torch::ones({kLength}, torch::kBool)),
                     of_sizes("rank", torch::ones({}, torch::kBool)),
                     of_sizes("rank", good.unsqueeze(0)),
                     of_sizes("[L, S]", torch::ones({kLength, kLength + 1}, torch::kBool)),
                     of_sizes("[L, S]", torch::ones({kLength - 1, kLength})),
                     of_sizes("[B, L, S]", torch::ones({kBatch + 1, kLength, kLength}))}}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (auto value : values) {
      if (!subject.takes.mask) value.part = "mask";  // any one is refused, whatever it is
      add("mask", value, good_x(), {.mask = value.tensor});
    }
  }

  void key_padding_mask() const {
    const auto good = torch::ones({kBatch, kLength}, torch::kBool);
    auto values = unreadable(good);
    for (const auto& more : {of_strange_dtypes(good), of_integer_dtypes(good),
                             of_float_dtypes(good), of_wrong_sizes(good, {0, 1})}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& value : values) {
      add("key_padding_mask", value, good_x(), {.key_padding_mask = value.tensor});
    }
    const auto context = torch::ones({kBatch, kLength + 2, kModel});
    add("key_padding_mask", of_sizes("for x with a context", good), good_x(),
        {.key_padding_mask = good, .context = context});
  }

  void global_attention() const {
    const auto good = torch::ones({kBatch, kLength}, torch::kBool);
    if (!subject.takes.global_attention) {
      add("global_attention", {"given", {}, "global_attention"}, good_x(),
          {.global_attention = good});
      return;
    }
    auto values = unreadable(good);
    for (const auto& more :
         {of_wrong_sizes(good, {0, 1}, false),
          BadTensors{of_sizes("rank", torch::ones({}, torch::kBool)),
                     of_sizes("rank", good.unsqueeze(0)),
                     of_sizes("[L]", torch::ones({kLength + 1}, torch::kBool))}}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& value : values) {
      add("global_attention", value, good_x(), {.global_attention = value.tensor});
    }
    add("global_attention", {"with a context", {}, "context"}, good_x(),
        {.context = good_x(), .global_attention = good});
  }

  void documents() const {
    const auto add_documents = [&](const std::string& name, const Documents& d,
                                   const std::string& part) {
      add("documents", {name, {}, part}, good_x(), {.documents = d});
    };
    const auto offsets = torch::tensor({0, 2, static_cast<int>(kLength)}, torch::kInt64);
    for (const auto& values :
         {unreadable(offsets), of_strange_dtypes(offsets), of_float_dtypes(offsets),
          BadTensors{of_sizes("rank", offsets.unsqueeze(0)),
                     of_sizes("empty", offsets.slice(0, 0, 0))}}) {
      for (const auto& v : values)
        add_documents("offsets " + v.name, {.offsets = v.tensor}, v.part);
    }
    const std::vector<std::pair<std::vector<int64_t>, std::string>> wrong{
        {{1, kLength}, "1"},
        {{-3, kLength}, "-3"},
        {{0, 6, kLength}, "decrease"},
        {{0, -1, kLength}, "-1"},
        {{0, kLength - 1}, "4"},
        {{0, kLength + 1}, "6"},
        {{0, INT64_MAX}, "9223372036854775807"},
        {{0, int64_t{1} << 40}, "1099511627776"},
        {{0, INT64_MIN}, "-9223372036854775808"},
        {{0}, "0"}};
    for (const auto& [values, part] : wrong) {
      add_documents(c10::str("offsets ", values), {.offsets = torch::tensor(values, torch::kInt64)},
                    part);
    }
    const auto ids = torch::zeros({kBatch, kLength}, torch::kInt64);
    for (const auto& values :
         {unreadable(ids), of_strange_dtypes(ids), of_float_dtypes(ids),
          of_wrong_sizes(ids, {0, 1}, false),
          BadTensors{of_sizes("rank", ids.unsqueeze(0)), of_sizes("rank", ids.new_zeros({})),
                     of_sizes("[S]", ids.new_zeros({kLength + 1}))}}) {
      for (const auto& v : values) add_documents("ids " + v.name, {.ids = v.tensor}, v.part);
    }
    add_documents("ids that come back", {.ids = torch::tensor({0, 0, 1, 0, 0}, torch::kInt64)},
                  "together");
    add_documents("both", {.offsets = offsets, .ids = ids}, "both");
    add("documents", {"with a context", {}, "context"}, good_x(),
        {.context = good_x(), .documents = {.ids = ids}});
  }

  void position_offset() const {
    if (!subject.takes.positions) {
      add("position_offset", {"given", {}, "rope"}, good_x(), {.position_offset = 3});
      return;
    }
    for (const int64_t offset : {INT64_MAX, INT64_MIN, int64_t{1} << 62}) {
      add("position_offset", {std::to_string(offset), {}, std::to_string(offset)}, good_x(),
          {.position_offset = offset});
    }
  }

  void positions() const {
    const auto good = torch::zeros({kBatch, kLength}, torch::kInt64);
    if (!subject.takes.positions) {
      add("positions", {"given", {}, "rope"}, good_x(), {.positions = good});
      return;
    }
    auto values = unreadable(good);
    for (const auto& more :
         {of_strange_dtypes(good), of_float_dtypes(good), of_wrong_sizes(good, {0, 1}, false),
          BadTensors{of_sizes("rank", good.unsqueeze(0)), of_sizes("rank", good.new_zeros({})),
                     of_sizes("[L]", good.new_zeros({kLength + 1}))}}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& value : values) {
      add("positions", value, good_x(), {.positions = value.tensor});
    }
    add("positions", {"with an offset", {}, "position_offset"}, good_x(),
        {.position_offset = 1, .positions = good});
    add("positions", {"with documents", {}, "documents"}, good_x(),
        {.documents = {.ids = good}, .positions = good});
  }
};

TEST(BadModuleInputs, OfEachCall) {
  BadInputs all;
  const auto list = subjects();
  for (const auto& subject : list) {
    const CallCases cases{subject, all};
    cases.x();
    cases.context();
    cases.mask();
    cases.key_padding_mask();
    cases.global_attention();
    cases.documents();
    cases.position_offset();
    cases.positions();
  }
  expect_all_refused(all, 1500);
}

// ---- options ------------------------------------------------------------------------------------

/// The options of one module with one of them set to one bad number: constructed, and called if
/// that works. shared() adds those that most modules have, bad() one of the module's own.
template <class Module>
class OptionCases {
  using Impl = typename Module::ContainedType;
  using Options = decltype(Impl::options);

 public:
  explicit OptionCases(BadInputs& all) : all_(all) {
    good_.d_model = kModel;
    if constexpr (requires { good_.num_heads; }) good_.num_heads = 2;
    if constexpr (requires { good_.num_query_heads; }) {
      good_.num_query_heads = 4;
      good_.num_kv_heads = 2;
    }
    if constexpr (requires { good_.qk_norm; }) good_.qk_norm = true;
    if constexpr (requires { good_.seq_len; }) good_.seq_len = kLength;
  }

  void shared() {
    bad(&Options::d_model, "d_model", kNotPositive, kTooLarge);
    bad(&Options::input_dim, "input_dim", kNotPositive, kTooLarge);
    bad(&Options::dropout, "dropout", std::vector<double>{-0.25, 1.5, -1e-300}, kNotFinite);
    if constexpr (requires { good_.temperature; }) {
      const std::vector<double> wrong{0, -1, 1e-300, -1e-300};
      bad(&Options::temperature, "temperature", wrong, kNotFinite);
    }
    if constexpr (requires { good_.num_heads; }) {
      bad(&Options::num_heads, "num_heads", kNotPositive, kTooLarge, kDoNotDivide);
    }
    if constexpr (requires { good_.rope; }) odd_head_size();
  }

  template <class Field, class... Lists>
  OptionCases& bad(Field Options::*field, const std::string& name, const Lists&... lists) {
    const auto add = [&](auto value) {
      Options options = good_;
      options.*field = value;
      all_.push_back({who_ + " " + name + "=" + c10::str(value),
                      [options] {
                        Module module(options);
                        module(good_x()).output.sum().template item<double>();
                      },
                      {who_, name, c10::str(value)}});
      all_.push_back({who_ + " " + name + " changed to " + c10::str(value),
                      [good = good_, field, value] {
                        Module module(good);
                        module->options.*field = value;
                        module(good_x()).output.sum().template item<double>();
                      },
                      {who_, name, c10::str(value)}});
    };
    const auto add_all = [&](const auto& values) {
      for (const auto value : values) add(value);
    };
    (add_all(lists), ...);
    return *this;
  }

 private:
  void odd_head_size() {
    Options odd = good_;
    odd.d_model = 7;
    odd.rope = true;
    if constexpr (requires { odd.num_heads; }) odd.num_heads = 1;
    if constexpr (requires { odd.rope_dim; }) odd.rope_dim = 7;
    if constexpr (requires { odd.num_query_heads; }) odd.num_query_heads = odd.num_kv_heads = 1;
    all_.push_back(
        {who_ + " rope with an odd head size", [odd] { (void)Module(odd); }, {who_, "rope", "7"}});
  }

  BadInputs& all_;
  Options good_ = {};
  std::string who_ = Impl::kName;
};

TEST(BadModuleInputs, Options) {
  BadInputs all;
  for_each_mechanism([&](const char*, Cost, auto make) {
    using Module = decltype(make(Size()));
    if constexpr (requires(Module m) { m->options.d_model; }) OptionCases<Module>(all).shared();
  });
  const std::vector<double> not_a_cap{0, -1, 1e-31, 1e31}, negative{-1, -1e-300};
  using MultiHead = MultiHeadSelfAttentionOptions;
  OptionCases<MultiHeadSelfAttention>(all)
      .bad(&MultiHead::context_dim, "context_dim", kNotPositive, kTooLarge)
      .bad(&MultiHead::head_dim, "head_dim", kNotPositive, kTooLarge)
      .bad(&MultiHead::qk_norm_eps, "qk_norm_eps", negative, kNotFinite)
      .bad(&MultiHead::softcap, "softcap", not_a_cap, kNotFinite)
      .bad(&MultiHead::sliding_window, "sliding_window", kNotPositive);
  using Grouped = GroupedSelfAttentionOptions;
  OptionCases<GroupedSelfAttention>(all)
      .bad(&Grouped::num_query_heads, "num_query_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Grouped::num_kv_heads, "num_kv_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Grouped::context_dim, "context_dim", kNotPositive, kTooLarge)
      .bad(&Grouped::head_dim, "head_dim", kNotPositive, kTooLarge)
      .bad(&Grouped::qk_norm_eps, "qk_norm_eps", negative, kNotFinite)
      .bad(&Grouped::softcap, "softcap", not_a_cap, kNotFinite)
      .bad(&Grouped::sliding_window, "sliding_window", kNotPositive);
  OptionCases<LocalSelfAttention>(all).bad(&LocalSelfAttentionOptions::window_size, "window_size",
                                           kNotPositive);
  OptionCases<DilatedSelfAttention>(all)
      .bad(&DilatedSelfAttentionOptions::dilation_rate, "dilation_rate", kNotPositive)
      .bad(&DilatedSelfAttentionOptions::window_size, "window_size", kNotPositive);
  OptionCases<LinearSelfAttention>(all)
      .bad(&LinearSelfAttentionOptions::feature_dim, "feature_dim", kNotPositive, kTooLarge,
           std::vector<int64_t>{3})
      .bad(&LinearSelfAttentionOptions::eps, "eps", std::vector<double>{-1, -1e-300}, kNotFinite);
  OptionCases<BlockSelfAttention>(all).bad(&BlockSelfAttentionOptions::block_size, "block_size",
                                           kNotPositive);
  OptionCases<IndexedSelfAttention>(all)
      .bad(&IndexedSelfAttentionOptions::top_k, "top_k", kNotPositive)
      .bad(&IndexedSelfAttentionOptions::index_heads, "index_heads", kNotPositive, kTooLarge)
      .bad(&IndexedSelfAttentionOptions::index_dim, "index_dim", kNotPositive, kTooLarge);
  OptionCases<LSHSelfAttention>(all)
      .bad(&LSHSelfAttentionOptions::bucket_size, "bucket_size", kNotPositive)
      .bad(&LSHSelfAttentionOptions::num_hashes, "num_hashes", kNotPositive, kTooLarge);
  OptionCases<LongformerSelfAttention>(all).bad(&LongformerSelfAttentionOptions::window_size,
                                                "window_size", kNotPositive);
  using Latent = MultiHeadLatentAttentionOptions;
  OptionCases<MultiHeadLatentAttention>(all)
      .bad(&Latent::head_dim, "head_dim", kNotPositive, kTooLarge)
      .bad(&Latent::rope_dim, "rope_dim", kNotPositive, kTooLarge)
      .bad(&Latent::value_head_dim, "value_head_dim", kNotPositive, kTooLarge)
      .bad(&Latent::kv_rank, "kv_rank", kNotPositive, kTooLarge)
      .bad(&Latent::q_rank, "q_rank", kNotPositive, kTooLarge)
      .bad(&Latent::norm_eps, "norm_eps", negative, kNotFinite);
  using Forgetting = ForgettingSelfAttentionOptions;
  OptionCases<ForgettingSelfAttention>(all)
      .bad(&Forgetting::num_kv_heads, "num_kv_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Forgetting::forget_bias, "forget_bias", kNotFinite)
      .bad(&Forgetting::head_dim, "head_dim", kNotPositive, kTooLarge)
      .bad(&Forgetting::sliding_window, "sliding_window", kNotPositive);
  using Relative = RelativeSelfAttentionOptions;
  OptionCases<RelativeSelfAttention>(all)
      .bad(&Relative::num_buckets, "num_buckets", kNotPositive, kTooLarge, std::vector<int64_t>{3})
      .bad(&Relative::max_distance, "max_distance", kNotPositive, std::vector<int64_t>{8})
      .bad(&Relative::context_dim, "context_dim", kNotPositive, kTooLarge)
      .bad(&Relative::head_dim, "head_dim", kNotPositive, kTooLarge);
  using Differential = DifferentialSelfAttentionOptions;
  OptionCases<DifferentialSelfAttention>(all)
      .bad(&Differential::num_query_heads, "num_query_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Differential::num_kv_heads, "num_kv_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Differential::layer, "layer", std::vector<int64_t>{-1})
      .bad(&Differential::eps, "eps", negative, kNotFinite)
      .bad(&Differential::context_dim, "context_dim", kNotPositive, kTooLarge)
      .bad(&Differential::head_dim, "head_dim", kNotPositive, kTooLarge);
  using Streaming = StreamingSelfAttentionOptions;
  OptionCases<StreamingSelfAttention>(all)
      .bad(&Streaming::num_sinks, "num_sinks", kTooLarge, std::vector<int64_t>{-1})
      .bad(&Streaming::window_size, "window_size", kNotPositive)
      .bad(&Streaming::num_kv_heads, "num_kv_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&Streaming::head_dim, "head_dim", kNotPositive, kTooLarge);
  OptionCases<StickBreakingSelfAttention>(all).bad(
      &StickBreakingSelfAttentionOptions::sliding_window, "sliding_window", kNotPositive);
  for (const int64_t n : kNotPositive) {
    const auto refused = [&](const char* name, const NeighborhoodSelfAttentionOptions& options) {
      all.push_back({c10::str("NeighborhoodSelfAttention ", name, "=", n),
                     [=] { (void)NeighborhoodSelfAttention(options); },
                     {"NeighborhoodSelfAttention", name, std::to_string(n)}});
    };
    refused("kernel_size", {.d_model = kModel, .kernel_size = {n}});
    refused("dilation", {.d_model = kModel, .dilation = {1, n}, .grid = {2, 2}});
    refused("grid", {.d_model = kModel, .grid = {2, n, 2}});
  }
  using Linformer = LinformerSelfAttentionOptions;
  OptionCases<LinformerSelfAttention>(all)
      .bad(&Linformer::seq_len, "seq_len", kNotPositive, kTooLarge)
      .bad(&Linformer::num_projected, "num_projected", kNotPositive, kTooLarge)
      .bad(&Linformer::head_dim, "head_dim", kNotPositive, kTooLarge);
  using Nystrom = NystromSelfAttentionOptions;
  OptionCases<NystromSelfAttention>(all)
      .bad(&Nystrom::num_landmarks, "num_landmarks", kNotPositive)
      .bad(&Nystrom::inverse_steps, "inverse_steps", std::vector<int64_t>{-1, INT64_MIN})
      .bad(&Nystrom::conv_kernel_size, "conv_kernel_size", kNotPositive, std::vector<int64_t>{2});
  using Performer = PerformerSelfAttentionOptions;
  OptionCases<PerformerSelfAttention>(all)
      .bad(&Performer::num_features, "num_features", kNotPositive, kTooLarge)
      .bad(&Performer::feature_eps, "feature_eps", negative, kNotFinite);
  using NativeSparse = NativeSparseSelfAttentionOptions;
  OptionCases<NativeSparseSelfAttention>(all)
      .bad(&NativeSparse::num_query_heads, "num_query_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&NativeSparse::num_kv_heads, "num_kv_heads", kNotPositive, kTooLarge, kDoNotDivide)
      .bad(&NativeSparse::block_size, "block_size", kNotPositive, kTooLarge)
      .bad(&NativeSparse::block_count, "block_count", kNotPositive)
      .bad(&NativeSparse::window_size, "window_size", kNotPositive)
      .bad(&NativeSparse::head_dim, "head_dim", kNotPositive, kTooLarge);
  OptionCases<BigBirdSelfAttention>(all)
      .bad(&BigBirdSelfAttentionOptions::block_size, "block_size", kNotPositive)
      .bad(&BigBirdSelfAttentionOptions::num_random_blocks, "num_random_blocks",
           std::vector<int64_t>{-1, INT64_MIN}, kTooLarge);
  OptionCases<MixtureOfBlocksSelfAttention>(all)
      .bad(&MixtureOfBlocksSelfAttentionOptions::block_size, "block_size", kNotPositive)
      .bad(&MixtureOfBlocksSelfAttentionOptions::top_k, "top_k", kNotPositive);
  expect_all_refused(all, 500);
}

TEST(BadModuleInputs, Wrappers) {
  BadInputs all;
  const auto inner = [] { return MultiHeadSelfAttention(kModel, 2); };
  const auto add = [&](const std::string& who, const std::string& name, std::function<void()> call,
                       std::vector<std::string> parts) {
    parts.push_back(who);
    all.push_back({who + " " + name, std::move(call), std::move(parts)});
  };
  const auto add_gate = [&](const std::string& name, const GateOptions& options,
                            const std::string& value) {
    add("GatedSelfAttention", name + "=" + value,
        [=] { (void)GatedSelfAttention(inner(), options); }, {name, value});
    add("CombinedAttention", name + "=" + value,
        [=] { (void)CombinedAttention(inner(), VanillaSelfAttention(kModel), options); },
        {name, value});
  };
  const auto add_block = [&](const std::string& name, const TransformerBlockOptions& options,
                             const std::string& value) {
    add("TransformerBlock", name + "=" + value, [=] { (void)TransformerBlock(inner(), options); },
        {name, value});
  };
  for (const auto& values : {kNotPositive, kTooLarge}) {
    for (const int64_t n : values) {
      add_gate("gate_hidden", {.gate_hidden = n}, std::to_string(n));
      add_gate("input_dim", {.input_dim = n}, std::to_string(n));
      add_block("mlp_hidden", {.mlp_hidden = n}, std::to_string(n));
    }
  }
  add_gate("input_dim", {.input_dim = kModel + 1}, "9");
  for (const double p : {-0.25, 1.5, -1e-300, kNaN, kInf, -kInf}) {
    add_gate("dropout", {.dropout = p}, c10::str(p));
    add_block("dropout", {.dropout = p}, c10::str(p));
  }

  for (const double eps : {-1e-300, kNaN, kInf, -kInf}) {
    add_block("norm_eps", {.norm_eps = eps}, c10::str(eps));
  }
  for (const int value : {-1, 4, 100}) {
    const auto text = std::to_string(value);
    add_block("norm", {.norm = static_cast<NormKind>(value)}, text);
    add_block("norm_placement", {.norm_placement = static_cast<NormPlacement>(value)}, text);
    add_block("activation", {.activation = static_cast<Activation>(value)}, text);
  }

  const MultiHeadSelfAttention empty(nullptr);
  add("GatedSelfAttention", "empty", [=] { (void)GatedSelfAttention(empty); }, {"attn", "empty"});
  add("CombinedAttention", "empty a", [=] { (void)CombinedAttention(empty, inner()); },
      {"attn_a", "empty"});
  add("CombinedAttention", "empty b", [=] { (void)CombinedAttention(inner(), empty); },
      {"attn_b", "empty"});
  add("TransformerBlock", "empty", [=] { (void)TransformerBlock(empty); }, {"attn", "empty"});
  add("Holder", "empty, called",
      [=]() mutable {
        auto e = empty;
        e(good_x());
      },
      {"empty"});
  add("CombinedAttention", "d_model",
      [=] { (void)CombinedAttention(inner(), VanillaSelfAttention(kModel + 1)); },
      {"d_model", "8", "9"});
  add("CombinedAttention", "input_dim",
      [=] {
        (void)CombinedAttention(inner(), VanillaSelfAttention({.d_model = kModel, .input_dim = 3}));
      },
      {"input_dim", "8", "3"});
  add("TransformerBlock", "input_dim",
      [=] { (void)TransformerBlock(VanillaSelfAttention({.d_model = kModel, .input_dim = 3})); },
      {"input_dim", "8", "3"});
  using Block = TransformerBlock<MultiHeadSelfAttentionImpl>;
  add("MultiHeadSelfAttention", "inside of a config",
      [] { (void)Block({.attn = {.d_model = kModel, .num_heads = 3}}); }, {"num_heads", "3"});
  using Gated = GatedSelfAttention<MultiHeadSelfAttentionImpl>;
  add("GatedSelfAttention", "config",
      [] { (void)Gated({.attn = {.d_model = kModel, .num_heads = 2}, .options = {.dropout = 2}}); },
      {"dropout", "2"});

  // Positional constructors.
  for (const int64_t n : kNotPositive) {
    const auto text = std::to_string(n);
    add("VanillaSelfAttention", "(d)", [n] { VanillaSelfAttention m(n); }, {"d_model", text});
    add("LinearSelfAttention", "(d)", [n] { LinearSelfAttention m(n); }, {"d_model", text});
    add("LocalSelfAttention", "(d)", [n] { LocalSelfAttention m(n); }, {"d_model", text});
    add("BlockSelfAttention", "(d)", [n] { BlockSelfAttention m(n); }, {"d_model", text});
    add("MultiHeadSelfAttention", "(d, h)", [n] { MultiHeadSelfAttention m(8, n); },
        {"num_heads", text});
    add("ALiBiSelfAttention", "(d, h)", [n] { ALiBiSelfAttention m(8, n); }, {"num_heads", text});
    add("LSHSelfAttention", "(d, h)", [n] { LSHSelfAttention m(8, n); }, {"num_heads", text});
    add("BigBirdSelfAttention", "(d, h)", [n] { BigBirdSelfAttention m(8, n); },
        {"num_heads", text});
    add("MixtureOfBlocksSelfAttention", "(d, h)", [n] { MixtureOfBlocksSelfAttention m(8, n); },
        {"num_heads", text});
    add("LongformerSelfAttention", "(d, h)", [n] { LongformerSelfAttention m(8, n); },
        {"num_heads", text});
    add("GroupedSelfAttention", "(d, h, k)", [n] { GroupedSelfAttention m(8, 4, n); },
        {"num_kv_heads", text});
  }
  expect_all_refused(all, 100);
}

TEST(BadModuleInputs, Projections) {
  BadInputs all;
  const auto good = torch::ones({2, kModel / 2, 4});
  const auto add = [&](const std::string& name, std::vector<torch::Tensor> projections,
                       const std::string& part) {
    all.push_back({"set_projections " + name,
                   [projections] {
                     LSHSelfAttention lsh({.d_model = kModel, .num_heads = 2});
                     lsh->set_projections(projections);
                     lsh->eval();
                     lsh(good_x()).output.sum().item<double>();
                   },
                   {"LSHSelfAttention", "projection", part}});
  };
  auto values = not_floating(good);
  for (const auto& more :
       {of_wrong_sizes(good, {0, 1}), BadTensors{of_sizes("columns", torch::ones({2, 4, 0})),
                                                 of_sizes("columns", torch::ones({2, 4, 3}))}}) {
    values.insert(values.end(), more.begin(), more.end());
  }
  for (const auto& value : values) add(value.name, {value.tensor}, value.part);
  add("two for one round", {good, good}, "2");
  all.push_back({"set_generator undefined",
                 [] {
                   LSHSelfAttention lsh({.d_model = kModel, .num_heads = 2});
                   lsh->set_generator(at::Generator());
                   lsh(good_x());
                 },
                 {"LSHSelfAttention", "generator", "undefined"}});
  expect_all_refused(all, 20);
}

}  // namespace
}  // namespace attzoo::testing::bad_inputs_modules_test
