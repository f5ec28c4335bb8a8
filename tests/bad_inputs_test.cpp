// Bad inputs to every function: attention(), modifiers, masks, RoPE, slopes, linear attention, lazy
// weights, files and state dicts. See support/bad_inputs.hpp.

#include "support/bad_inputs.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <attzoo/attzoo.hpp>

#include <filesystem>
#include <fstream>
#include <map>

namespace attzoo::testing::bad_inputs_test {
namespace {

constexpr int64_t kB = 2, kH = 4, kL = 5, kS = 7, kD = 8;

torch::Tensor good_q() { return torch::ones({kB, kH, kL, kD}); }
torch::Tensor good_k() { return torch::ones({kB, kH / 2, kS, kD}); }
torch::Tensor good_v() { return torch::ones({kB, kH / 2, kS, kD + 1}); }

/// Cases of one function.
class Cases {
 public:
  explicit Cases(std::string who) : who_(std::move(who)) {}

  /// The error must name the function and all parts.
  void add(const std::string& what, std::function<void()> call, std::vector<std::string> parts) {
    parts.push_back(who_);
    all.push_back({who_ + " " + what, std::move(call), std::move(parts)});
  }
  /// f(tensor) for each bad tensor of an argument.
  template <class F>
  void add_tensors(const std::string& argument, const BadTensors& values, F f) {
    for (const auto& v : values) {
      add(argument + " " + v.name, [f, t = v.tensor] { f(t); }, {argument, v.part});
    }
  }
  /// f(number) for each bad number.
  template <class Number, class F>
  void add_numbers(const std::string& argument, const std::vector<Number>& values, F f) {
    for (const Number n : values) {
      add(argument + "=" + c10::str(n), [f, n] { f(n); }, {argument, c10::str(n)});
    }
  }

  BadInputs all;

 private:
  std::string who_;
};

void run(const AttentionResult& r) { r.output.sum().item<double>(); }
const std::vector<double> kBadProbabilities{-0.25, 1.5, -1e-300, kNaN, kInf, -kInf};

TEST(BadInputs, Attention) {
  Cases c("attention");
  const auto q = good_q(), k = good_k(), v = good_v();
  const auto all_of = [](const torch::Tensor& good, const std::vector<int64_t>& dims) {
    auto values = not_floating(good);
    for (const auto& more : {of_float_dtypes(good), of_wrong_sizes(good, dims)}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  // q of another float dtype is an error of k, which must have q's.
  auto of_q = not_floating(q);
  for (const auto& more :
       {of_wrong_sizes(q, {0, 3}), BadTensors{of_sizes("heads", torch::ones({kB, 3, kL, kD})),
                                              of_sizes("heads", torch::ones({kB, 0, kL, kD}))}}) {
    of_q.insert(of_q.end(), more.begin(), more.end());
  }
  c.add_tensors("q", of_q, [=](const auto& t) { run(attention(t, k, v)); });
  auto of_k = all_of(k, {0, 2, 3});
  of_k.push_back(of_sizes("heads", torch::ones({kB, 3, kS, kD})));
  of_k.push_back(of_sizes("heads", torch::ones({kB, 0, kS, kD})));
  c.add_tensors("k", of_k, [=](const auto& t) { run(attention(q, t, v)); });
  c.add_tensors("v", all_of(v, {0, 1, 2}), [=](const auto& t) { run(attention(q, k, t)); });
  c.add("head_dim 0",
        [] {
          run(attention(torch::ones({1, 1, 2, 0}), torch::ones({1, 1, 2, 0}),
                        torch::ones({1, 1, 2, 3})));
        },
        {"q", "[1, 1, 2, 0]"});
  c.add_numbers("scale", std::vector<double>{kNaN, kInf, -kInf, 1e300, -1e300, 1e39},
                [=](double n) { run(attention(q, k, v, full(), {}, {.scale = n})); });
  c.add_numbers("scale", kNotFinite, [=](double n) {
    run(attention(q.to(torch::kFloat64), k.to(torch::kFloat64), v.to(torch::kFloat64), causal(),
                  softcap(2), {.scale = n}));
  });
  c.add_numbers("dropout", kBadProbabilities,
                [=](double n) { run(attention(q, k, v, full(), {}, {.dropout = n})); });
  {
    const auto huge = torch::ones({1, 1, 1, 1}).expand({1 << 30, 1 << 30, 1, 1});
    c.add("more elements than int64 counts", [=] { run(attention(huge, huge, huge)); },
          {"q", "1073741824"});
  }
  expect_all_refused(c.all, 100);
}

TEST(BadInputs, ScaledDotProductAttention) {
  Cases c("scaled_dot_product_attention");
  const auto q = torch::ones({3, kL, kD}), k = torch::ones({3, kS, kD}),
             v = torch::ones({3, kS, 2});
  const auto values = [](const torch::Tensor& good, const std::vector<int64_t>& dims) {
    auto all = not_floating(good);
    for (const auto& more :
         {of_wrong_sizes(good, dims, false),
          BadTensors{of_sizes("rank", torch::ones({kD})), of_sizes("rank", torch::ones({}))}}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  };
  const auto sdpa = [](const auto& a, const auto& b, const auto& d,
                       ScaledDotProductOptions o = {}) {
    run(scaled_dot_product_attention(a, b, d, o));
  };
  c.add_tensors("q", values(q, {0, 2}), [=](const auto& t) { sdpa(t, k, v); });
  c.add_tensors("k", values(k, {0, 1, 2}), [=](const auto& t) { sdpa(q, t, v); });
  c.add_tensors("v", values(v, {0, 1}), [=](const auto& t) { sdpa(q, k, t); });
  c.add_tensors("k", of_float_dtypes(k), [=](const auto& t) { sdpa(q, t, v); });
  c.add_tensors("v", of_float_dtypes(v), [=](const auto& t) { sdpa(q, k, t); });

  const auto mask = torch::ones({3, kL, kS}, torch::kBool);
  auto masks = unreadable(mask);
  for (const auto& more : {unreadable(mask.to(torch::kFloat32)), of_strange_dtypes(mask),
                           of_integer_dtypes(mask), of_wrong_sizes(mask, {0, 1, 2}, false),
                           BadTensors{of_sizes("rank", torch::ones({2, 3, kL, kS}, torch::kBool)),
                                      of_sizes("rank", torch::ones({kL}, torch::kBool))}}) {
    masks.insert(masks.end(), more.begin(), more.end());
  }
  c.add_tensors("mask", masks, [=](const auto& t) { sdpa(q, k, v, {.mask = t}); });
  c.add_numbers("dropout", kBadProbabilities, [=](double n) { sdpa(q, k, v, {.dropout = n}); });
  c.add_numbers("temperature", std::vector<double>{0, -1, 1e-300, -1e-300, kNaN, kInf, -kInf},
                [=](double n) { sdpa(q, k, v, {.temperature = n}); });
  expect_all_refused(c.all, 100);
}

TEST(BadInputs, LazyWeights) {
  Cases c("LazyWeights");
  const auto weights = [] { return attention(good_q(), good_k(), good_v()).weights; };
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{-1, 2},
                                                                           {0, kL + 1},
                                                                           {3, 2},
                                                                           {INT64_MIN, INT64_MAX},
                                                                           {0, INT64_MAX},
                                                                           {kL + 1, kL + 2}}) {
    c.add(c10::str("rows ", begin, " ", end), [=, b = begin, e = end] { weights().rows(b, e); },
          {"rows", "begin=" + std::to_string(begin), "end=" + std::to_string(end)});
  }
  for (const int64_t d : {int64_t{4}, int64_t{-5}, INT64_MAX, INT64_MIN}) {
    c.add(c10::str("size ", d), [=] { weights().size(d); }, {"size", std::to_string(d)});
  }
  c.add("empty tensor", [] { (void)LazyWeights().tensor(); }, {"weights"});
  c.add("empty conversion", [] { torch::Tensor t = LazyWeights(); }, {"weights"});
  c.add("empty rows", [] { (void)LazyWeights().rows(0, 0); }, {"weights"});
  c.add("empty head_mean", [] { (void)LazyWeights().head_mean(); }, {"weights"});
  c.add("empty size", [] { (void)LazyWeights().size(0); }, {"weights"});
  c.add("without_heads of several", [=] { (void)weights().without_heads().tensor(); },
        {"without_heads", "[2, 4, 5, 7]"});
  c.add("without_heads twice",
        [] {
          (void)VanillaSelfAttention(4)(torch::ones({1, 2, 4})).weights.without_heads();
        },
        {"without_heads", "[1, 2, 2]"});
  expect_all_refused(c.all, 15);
}

// ---- modifiers ----------------------------------------------------------------------------------

TEST(BadInputs, MaskModifiers) {
  BadInputs all;
  const auto take = [&](const Cases& c) { all.insert(all.end(), c.all.begin(), c.all.end()); };
  const auto attend = [](const auto& modifier) {
    run(attention(good_q(), good_k(), good_v(), modifier));
  };
  const std::vector<int64_t> negative{-1, -7, INT64_MIN};

  Cases window_("window");
  window_.add_numbers("left", negative, [](int64_t n) { window(n, 0); });
  window_.add_numbers("right", negative, [](int64_t n) { window(0, n); });
  take(window_);
  Cases dilated_("dilated");
  dilated_.add_numbers("rate", kNotPositive, [](int64_t n) { dilated(n); });
  take(dilated_);
  Cases blocks_("blocks");
  blocks_.add_numbers("size", kNotPositive, [](int64_t n) { blocks(n); });
  take(blocks_);
  Cases prefix_("prefix");
  prefix_.add_numbers("length", negative, [](int64_t n) { prefix(n); });
  take(prefix_);
  Cases neighborhood_("neighborhood");
  neighborhood_.add_numbers("grid", kNotPositive, [](int64_t n) { neighborhood({4, n}, {3}); });
  neighborhood_.add_numbers("kernel_size", kNotPositive, [](int64_t n) {
    neighborhood({4, 4}, {3, n});
  });
  neighborhood_.add_numbers("dilation", kNotPositive, [](int64_t n) {
    neighborhood({4, 4}, {3}, {n});
  });
  take(neighborhood_);

  Cases documents_("documents");
  const auto offsets = torch::tensor({0, 3, static_cast<int>(kS)}, torch::kInt64);
  auto bad_offsets = not_floating(offsets);  // but integers are what it takes
  std::erase_if(bad_offsets, [](const BadTensor& t) {
    return !t.tensor.defined() || t.name == "Long" || t.name == "Int" || t.name == "Short" ||
           t.name == "Byte" || t.name == "Char";
  });
  for (const auto& more :
       {of_float_dtypes(offsets), BadTensors{of_sizes("rank", torch::zeros({2, 2}, torch::kInt64)),
                                             of_sizes("rank", torch::zeros({}, torch::kInt64)),
                                             of_sizes("size", torch::zeros({0}, torch::kInt64))}}) {
    bad_offsets.insert(bad_offsets.end(), more.begin(), more.end());
  }
  documents_.add_tensors("offsets", bad_offsets,
                         [=](const auto& t) { attend(documents({.offsets = t})); });
  const auto ids = torch::zeros({kB, kS}, torch::kInt64);
  auto bad_ids = unreadable(ids);
  for (const auto& more :
       {of_strange_dtypes(ids), of_float_dtypes(ids), of_wrong_sizes(ids, {0, 1}, false),
        BadTensors{{"Bool", ids.to(torch::kBool), "Bool"},
                   of_sizes("rank", ids.unsqueeze(0)),
                   of_sizes("rank", ids.new_zeros({})),
                   of_sizes("[S]", ids.new_zeros({kS - 1}))}}) {
    bad_ids.insert(bad_ids.end(), more.begin(), more.end());
  }
  documents_.add_tensors("ids", bad_ids, [=](const auto& t) { attend(documents({.ids = t})); });
  documents_.add("both", [=] { attend(documents({.offsets = offsets, .ids = ids})); },
                 {"offsets", "ids", "both"});
  documents_.add("neither", [=] { attend(documents(Documents{})); }, {"offsets", "ids", "neither"});
  documents_.add("undefined", [=] { attend(documents(torch::Tensor())); }, {"offsets|neither"});
  const std::vector<std::pair<std::vector<int64_t>, std::string>> wrong_offsets{
      {{1, kS}, "1"},
      {{-3, kS}, "-3"},
      {{0, 5, 3, kS}, "decrease|5, 3|3"},
      {{0, -1, kS}, "-1"},
      {{0, kS, 0}, "decrease|0"},
      {{0, kS - 1}, "6"},
      {{0, kS + 1}, "8"},
      {{0, INT64_MAX}, "9223372036854775807"},
      {{0, int64_t{1} << 40}, "1099511627776"},
      {{0, INT64_MIN}, "-9223372036854775808"},
      {{0}, "0"},
      {{INT64_MIN, kS}, "-9223372036854775808"}};
  for (const auto& [values, part] : wrong_offsets) {
    documents_.add(c10::str("offsets ", values),
                   [=, t = torch::tensor(values, torch::kInt64)] { attend(documents(t)); },
                   {"offset", part});
  }
  documents_.add(
      "L > S",
      [] {
        run(attention(torch::ones({1, 1, 3, 2}), torch::ones({1, 1, 2, 2}),
                      torch::ones({1, 1, 2, 2}), documents(torch::tensor({0, 2}, torch::kInt64))));
      },
      {"L", "3", "2"});
  take(documents_);

  Cases global_("global_tokens");
  const auto flags = torch::ones({kB, kS}, torch::kBool);
  auto bad_flags = unreadable(flags);
  for (const auto& more : {BadTensors{{"undefined", {}, "undefined"},
                                      of_sizes("rank", torch::ones({})),
                                      of_sizes("rank", torch::ones({1, 1, kS})),
                                      of_sizes("S", torch::ones({kS + 1})),
                                      of_sizes("S", torch::ones({0}))},
                           of_wrong_sizes(flags, {0, 1}, false)}) {
    bad_flags.insert(bad_flags.end(), more.begin(), more.end());
  }
  global_.add_tensors("is_global", bad_flags, [=](const auto& t) { attend(global_tokens(t)); });
  take(global_);

  Cases chosen_("chosen_blocks");
  const auto chosen = torch::ones({kB, kH, kL, kS}, torch::kBool);
  auto bad_choices = unreadable(chosen);
  for (const auto& more : {of_float_dtypes(chosen), of_wrong_sizes(chosen, {0, 1, 3}, false),
                           BadTensors{{"undefined", {}, "undefined"},
                                      of_sizes("rank", torch::ones({kS}, torch::kBool))}}) {
    bad_choices.insert(bad_choices.end(), more.begin(), more.end());
  }
  chosen_.add_tensors("chosen", bad_choices, [=](const auto& t) { attend(chosen_blocks(t, 1)); });
  take(chosen_);

  Cases tensor_("mask_tensor");
  const auto mask = torch::ones({kB, kH, kL, kS}, torch::kBool);
  auto bad_masks = unreadable(mask);
  for (const auto& more : {of_strange_dtypes(mask), of_integer_dtypes(mask), of_float_dtypes(mask),
                           of_wrong_sizes(mask, {0, 1, 2, 3}, false),
                           BadTensors{{"undefined", {}, "undefined"},
                                      of_sizes("rank", mask.unsqueeze(0)),
                                      of_sizes("rank", torch::ones({kS}, torch::kBool)),
                                      of_sizes("rank", torch::ones({}, torch::kBool)),
                                      of_sizes("[L, S]", torch::ones({kS, kL}, torch::kBool))}}) {
    bad_masks.insert(bad_masks.end(), more.begin(), more.end());
  }
  tensor_.add_tensors("mask", bad_masks, [=](const auto& t) { attend(mask_tensor(t)); });
  tensor_.add_tensors("mask", of_wrong_sizes(mask, {3}, false),
                      [=](const auto& t) { attend(causal() && !mask_tensor(t)); });
  take(tensor_);

  Cases block_("block_mask");
  for (const auto& values : {kNotPositive, kTooLarge}) {
    block_.add_numbers("L", values, [](int64_t n) { block_mask(causal(), n, 4); });
    block_.add_numbers("S", values, [](int64_t n) { block_mask(causal(), 4, n); });
    block_.add_numbers("batch", values, [](int64_t n) { block_mask(causal(), 4, 4, n); });
    block_.add_numbers("heads", values, [](int64_t n) { block_mask(causal(), 4, 4, 1, n); });
  }
  Cases create("create_mask");
  for (const auto& values : {std::vector<int64_t>{-1}, kTooLarge}) {
    create.add_numbers("batch", values, [](int64_t n) { create_mask(causal(), n, 1, 4, 4); });
    create.add_numbers("heads", values, [](int64_t n) { create_mask(causal(), 1, n, 4, 4); });
    create.add_numbers("L", values, [](int64_t n) { create_mask(causal(), 1, 1, n, 4); });
    create.add_numbers("S", values, [](int64_t n) { create_mask(causal(), 1, 1, 4, n); });
  }
  create.add("a mask of other sizes", [=] { create_mask(mask_tensor(mask), 1, 1, kL, kS + 1); },
             {"create_mask", "S=8", "mask_tensor"});
  take(create);
  const auto made_for = [&](int64_t l, int64_t s, int64_t b, int64_t h, const std::string& part) {
    block_.add(c10::str("made for ", l, " ", s, " ", b, " ", h),
               [=] { attend(block_mask(causal(), l, s, b, h)); }, {part});
  };
  made_for(kL + 1, kS, 1, 1, "L=6");
  made_for(kL, kS + 1, 1, 1, "S=8");
  made_for(kL, kS, kB + 1, 1, "B=3");
  made_for(kL, kS, 1, kH - 1, "H=3");
  take(block_);
  Cases table_("table");
  const auto entries = torch::zeros({kS}, torch::kInt64);
  const auto look_up = [=](const torch::Tensor& t) {
    const auto held = table(t);
    attend(mask_mod([=](auto, auto, auto, auto kv) { return held(kv) == 0; }));
  };
  auto bad_tables = unreadable(entries);
  for (const auto& more : {of_strange_dtypes(entries),
                           BadTensors{{"undefined", {}, "undefined"},
                                      of_sizes("rank", entries.new_zeros({})),
                                      of_sizes("indices", entries.new_zeros({kS, 2})),
                                      of_sizes("rank", entries.new_zeros({1, 1, 1, 1, kS}))}}) {
    bad_tables.insert(bad_tables.end(), more.begin(), more.end());
  }
  table_.add_tensors("table|tensor", bad_tables, look_up);
  table_.add("index beyond", [=] { look_up(entries.slice(0, 1)); }, {"index 0", "[6]", "6"});
  table_.add("index below",
             [=] {
               const auto held = table(entries);
               attend(mask_mod([=](auto, auto, auto q, auto kv) { return held(kv - q) == 0; }));
             },
             {"index 0", "[7]", "-4"});
  table_.add("integers beyond double", [=] { look_up(entries + INT64_MAX); },
             {"2^53", "9.22337e+18"});
  take(table_);

  Cases inner("mask_tensor");
  inner.add("inside of block_mask",
            [=] {
              block_mask(mask_tensor(torch::ones({3, 4}, torch::kBool)), 4, 4);
            },
            {"[1, 1, 3, 4]|[3, 4]"});
  take(inner);
  expect_all_refused(all, 120);
}

TEST(BadInputs, ScoreModifiers) {
  BadInputs all;
  const auto take = [&](const Cases& c) { all.insert(all.end(), c.all.begin(), c.all.end()); };
  const auto attend = [](const auto& modifier) {
    run(attention(good_q(), good_k(), good_v(), modifier));
  };
  const auto vector_of_heads = [](int64_t n) {
    const auto good = torch::ones({n});
    auto values = not_floating(good);
    for (const auto& more :
         {of_wrong_sizes(good, {0}), BadTensors{of_sizes("H - 1", torch::ones({n - 1}))}}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  Cases alibi_("alibi");
  alibi_.add_tensors("slopes|the tensor", vector_of_heads(kH),
                     [=](const auto& t) { attend(alibi(t)); });
  take(alibi_);
  Cases sink_("sink");
  sink_.add_tensors("logits|the tensor", vector_of_heads(kH),
                    [=](const auto& t) { attend(sink(t)); });
  sink_.add("twice", [=] { attend(sink(torch::ones({kH})) + sink(torch::ones({kH}))); }, {"twice"});
  sink_.add("twice among others",
            [=] { attend(sink(torch::ones({kH})) + softcap(3) + sink(torch::ones({kH}))); },
            {"twice"});
  take(sink_);

  Cases softcap_("softcap");
  softcap_.add_numbers("cap", std::vector<double>{0, -1, 1e-300, -1e-300, kNaN, kInf, -kInf},
                       [=](double n) { attend(softcap(n)); });
  take(softcap_);

  Cases bias_("bias_tensor");
  const auto bias = torch::ones({kB, kH, kL, kS});
  auto bad_bias = not_floating(bias);
  for (const auto& more :
       {of_wrong_sizes(bias, {0, 1, 2, 3}, false),
        BadTensors{of_sizes("rank", bias.unsqueeze(0)), of_sizes("rank", torch::ones({kS})),
                   of_sizes("rank", torch::ones({})), of_sizes("[L, S]", torch::ones({kS, kL}))}}) {
    bad_bias.insert(bad_bias.end(), more.begin(), more.end());
  }
  bias_.add_tensors("bias", bad_bias, [=](const auto& t) { attend(bias_tensor(t)); });
  bias_.add_tensors("bias", of_wrong_sizes(bias, {3}, false),
                    [=](const auto& t) { attend(softcap(3) + bias_tensor(t)); });
  take(bias_);

  Cases relative_("relative_bias");
  const auto table = torch::ones({8, kH});
  auto bad_tables = not_floating(table);
  for (const auto& more :
       {of_wrong_sizes(table, {1}), BadTensors{of_sizes("buckets", torch::ones({3, kH})),
                                               of_sizes("buckets", torch::ones({0, kH}))}}) {
    bad_tables.insert(bad_tables.end(), more.begin(), more.end());
  }
  relative_.add_tensors("table|the tensor", bad_tables,
                        [=](const auto& t) { attend(relative_bias(t)); });
  relative_.add_numbers("max_distance", std::vector<int64_t>{0, -1, 2, INT64_MIN},
                        [=](int64_t n) { attend(relative_bias(table, {.max_distance = n})); });
  relative_.add_numbers("max_distance", std::vector<int64_t>{0, -1, 4, INT64_MIN}, [=](int64_t n) {
    attend(relative_bias(table, {.bidirectional = false, .max_distance = n}));
  });
  take(relative_);
  expect_all_refused(all, 80);
}

// ---- other functions ----------------------------------------------------------------------------

TEST(BadInputs, RopeAndSlopes) {
  Cases rope("apply_rope");
  const auto x = torch::ones({2, kL, kD});
  auto values = not_floating(x);
  for (const auto& more :
       {BadTensors{of_sizes("odd", torch::ones({kL, 7})), of_sizes("rank", torch::ones({kD})),
                   of_sizes("rank", torch::ones({}))}}) {
    values.insert(values.end(), more.begin(), more.end());
  }
  rope.add_tensors("x", values, [](const auto& t) { apply_rope(t).sum().template item<double>(); });
  rope.add_numbers("base", std::vector<double>{0, -1, -1e-300, 1e-300, kNaN, kInf, -kInf},
                   [=](double n) { apply_rope(x, {.base = n}); });
  rope.add_numbers("position_offset",
                   std::vector<int64_t>{INT64_MIN, INT64_MAX, int64_t{1} << 62, -(int64_t{1} << 62),
                                        INT64_MAX - 3},
                   [=](int64_t n) { apply_rope(x, {.position_offset = n}); });
  const auto positions = torch::zeros({kL}, torch::kInt64);
  auto bad_positions = unreadable(positions);
  for (const auto& more : {of_strange_dtypes(positions), of_float_dtypes(positions),
                           BadTensors{of_sizes("size", torch::zeros({kL + 1}, torch::kInt64)),
                                      of_sizes("rank", torch::zeros({3, 2, kL}, torch::kInt64))}}) {
    bad_positions.insert(bad_positions.end(), more.begin(), more.end());
  }
  rope.add_tensors("positions", bad_positions,
                   [=](const auto& t) { apply_rope(x, {.positions = t}); });
  expect_all_refused(rope.all, 40);

  Cases slopes("alibi_slopes");
  for (const bool python : {false, true}) {
    slopes.add_numbers("num_heads", kNotPositive, [=](int64_t n) { alibi_slopes(n, python); });
    slopes.add_numbers("num_heads", kTooLarge, [=](int64_t n) { alibi_slopes(n, python); });
  }
  expect_all_refused(slopes.all, 14);
}

TEST(BadInputs, LinearAttention) {
  Cases c("linear_attention");
  const auto q = torch::ones({kB, kH, kL, kD}), k = torch::ones({kB, kH, kS, kD}),
             v = torch::ones({kB, kH, kS, kD + 1});
  const auto values = [](const torch::Tensor& good, const std::vector<int64_t>& dims) {
    auto all = not_floating(good);
    for (const auto& more : {of_float_dtypes(good), of_wrong_sizes(good, dims)}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  };
  c.add_tensors("q", values(q, {0, 1, 3}), [=](const auto& t) { run(linear_attention(t, k, v)); });
  c.add_tensors("k", values(k, {0, 1, 2, 3}),
                [=](const auto& t) { run(linear_attention(q, t, v)); });
  c.add_tensors("v", values(v, {0, 1, 2}), [=](const auto& t) { run(linear_attention(q, k, t)); });
  c.add_numbers("eps", std::vector<double>{-1, -1e-300, kNaN, kInf, -kInf},
                [=](double n) { run(linear_attention(q, k, v, {.eps = n})); });
  const auto real = torch::ones({kB, kS}, torch::kBool);
  auto masks = unreadable(real);
  for (const auto& more : {of_strange_dtypes(real), of_float_dtypes(real), of_integer_dtypes(real),
                           of_wrong_sizes(real, {0, 1})}) {
    masks.insert(masks.end(), more.begin(), more.end());
  }
  c.add_tensors("key_padding_mask", masks,
                [=](const auto& t) { run(linear_attention(q, k, v, {.key_padding_mask = t})); });
  const auto ids = torch::zeros({kS}, torch::kInt64);
  auto documents = unreadable(ids);
  for (const auto& more : {of_strange_dtypes(ids), of_float_dtypes(ids),
                           BadTensors{of_sizes("size", ids.new_zeros({kS + 1})),
                                      {"Bool", ids.to(torch::kBool), "Bool"}}}) {
    documents.insert(documents.end(), more.begin(), more.end());
  }
  c.add_tensors("documents", documents,
                [=](const auto& t) { run(linear_attention(k, k, v, {.documents = {.ids = t}})); });
  c.add("documents of fewer queries than keys",
        [=] { run(linear_attention(q, k, v, {.documents = {.ids = ids}})); },
        {"documents", "L=5", "S=7"});
  expect_all_refused(c.all, 150);
}

TEST(BadInputs, MaskFunctions) {
  BadInputs all;
  const auto take = [&](const Cases& c) { all.insert(all.end(), c.all.begin(), c.all.end()); };
  const std::vector<int64_t> negative{-1, -7, INT64_MIN};
  std::vector<int64_t> huge = kTooLarge;
  huge.insert(huge.end(), {int64_t{1} << 32, int64_t{1} << 31, 3037000500, int64_t{1} << 20});

  Cases causal_("create_causal_mask"), local("create_local_mask"), dilation("create_dilated_mask"),
      block("create_block_mask");
  for (const auto& values : {negative, huge}) {
    causal_.add_numbers("seq_len", values, [](int64_t n) { create_causal_mask(n); });
    local.add_numbers("seq_len", values, [](int64_t n) { create_local_mask(n, 4); });
    dilation.add_numbers("seq_len", values, [](int64_t n) { create_dilated_mask(n, 4); });
    block.add_numbers("seq_len", values, [](int64_t n) { create_block_mask(n, 4); });
  }
  local.add_numbers("window_size", negative, [](int64_t n) { create_local_mask(4, n); });
  dilation.add_numbers("dilation_rate", kNotPositive, [](int64_t n) { create_dilated_mask(4, n); });
  block.add_numbers("block_size", kNotPositive, [](int64_t n) { create_block_mask(4, n); });
  causal_.add("on cuda", [] { create_causal_mask(4, torch::Device("cuda:99")); },
              {"seq_len=4", "cuda|CUDA"});
  for (const auto* c : {&causal_, &local, &dilation, &block}) take(*c);

  Cases padding("create_padding_mask");
  const auto lengths = torch::ones({3}, torch::kInt64);
  auto bad = unreadable(lengths);
  for (const auto& more : {of_strange_dtypes(lengths), of_float_dtypes(lengths),
                           BadTensors{{"undefined", {}, "undefined"},
                                      {"Bool", torch::ones({3}, torch::kBool), "Bool"},
                                      of_sizes("rank", torch::ones({1, 3}, torch::kInt64)),
                                      of_sizes("rank", torch::ones({}, torch::kInt64))}}) {
    bad.insert(bad.end(), more.begin(), more.end());
  }
  padding.add_tensors("seq_lengths", bad, [](const auto& t) { create_padding_mask(t); });
  padding.add_tensors("seq_lengths", bad, [](const auto& t) { create_padding_mask(t, 8); });
  for (const auto& values : {negative, kTooLarge}) {
    padding.add_numbers("seq_lengths", values, [](int64_t n) {
      create_padding_mask(std::vector<int64_t>{1, n});
    });
    padding.add_numbers("max_len", values, [](int64_t n) {
      create_padding_mask(std::vector<int64_t>{1, 2}, n);
    });
  }
  padding.add("none", [] { create_padding_mask(std::vector<int64_t>{}); }, {"max_len"});
  take(padding);

  Cases combine("combine_masks");
  const auto mask = torch::ones({3, 3}, torch::kBool);
  auto others = unreadable(mask);
  for (const auto& more :
       {of_strange_dtypes(mask), of_float_dtypes(mask), of_wrong_sizes(mask, {0, 1}),
        BadTensors{{"undefined", {}, "undefined"}}}) {
    others.insert(others.end(), more.begin(), more.end());
  }
  combine.add_tensors("mask", others, [=](const auto& t) { combine_masks(mask, t); });
  for (const auto& other : others) {
    if (other.name.starts_with("rank") || other.name.starts_with("size")) continue;
    combine.add("first " + other.name, [t = other.tensor] { combine_masks(t); }, {other.part});
  }
  combine.add("none", [] { combine_masks(std::vector<torch::Tensor>{}); }, {"none"});
  take(combine);

  Cases expand("expand_mask_for_heads");
  auto bad_masks = unreadable(torch::ones({2, 3, 4, 4}));
  for (const auto& more :
       {of_wrong_sizes(torch::ones({2, 3, 4, 4}), {0, 1, 2, 3}, false),
        BadTensors{of_sizes("rank", torch::ones({4})), of_sizes("rank", torch::ones({})),
                   of_sizes("[n, n]", torch::ones({4, 5})),
                   of_sizes("[B, n, n]", torch::ones({3, 4, 4}))}}) {
    bad_masks.insert(bad_masks.end(), more.begin(), more.end());
  }
  expand.add_tensors("mask", bad_masks, [](const auto& t) { expand_mask_for_heads(t, 2, 3, 4); });
  const auto one = torch::ones({1, 1});
  expand.add_numbers("batch_size", negative,
                     [=](int64_t n) { expand_mask_for_heads(one, n, 1, 1); });
  expand.add_numbers("num_heads", negative,
                     [=](int64_t n) { expand_mask_for_heads(one, 1, n, 1); });
  expand.add_numbers("seq_len", negative, [=](int64_t n) { expand_mask_for_heads(one, 1, 1, n); });
  expand.add_numbers("batch_size", kTooLarge,
                     [=](int64_t n) { expand_mask_for_heads(one, n, n, 1); });
  expand.add_numbers("seq_len", kTooLarge, [=](int64_t n) { expand_mask_for_heads(one, 1, 1, n); });
  take(expand);
  expect_all_refused(all, 150);
}

// ---- files --------------------------------------------------------------------------------------

class BadFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / c10::str("attzoo_bad_files_", ::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& content) {
    const auto path = folder_ / c10::str(files_++, ".safetensors");
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }
  static std::string with_size(const std::string& header, const std::string& data,
                               std::optional<uint64_t> size = {}) {
    const uint64_t n = size.value_or(header.size());
    std::string out(sizeof n, '\0');
    std::memcpy(out.data(), &n, sizeof n);
    return out + header + data;
  }

  std::filesystem::path folder_;
  int files_ = 0;
};

TEST_F(BadFiles, Load) {
  Cases c("load_safetensors");
  const auto add = [&](const std::string& what, const std::string& content,
                       std::vector<std::string> parts) {
    const auto path = write(content);
    parts.push_back(path);
    c.add(
        what, [path] { load_safetensors(path); }, parts);
  };
  const auto header = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  const std::string t = "\"t\"", good = header("\"U8\"", "[4]", "[0,4]");
  // A good file, cut anywhere.
  const std::string whole = with_size(good, "abcd");
  for (size_t n = 0; n < whole.size(); n += 3) {
    add(c10::str("cut after ", n), whole.substr(0, n), {"truncated|do not lie|end at byte"});
  }
  for (const uint64_t n : {uint64_t{0}, uint64_t{1}, uint64_t{50}, uint64_t{100'000'001},
                           uint64_t{1} << 40, ~uint64_t{0}, uint64_t{1} << 63}) {
    add(c10::str("header size ", n), with_size(good, "abcd", n),
        {n < 100 ? "header" : std::to_string(n)});
  }
  for (const char* text : {"",
                           "[]",
                           "1",
                           "null",
                           "\"t\"",
                           "{",
                           "{]",
                           "{\"t\"}",
                           "{\"t\":}",
                           "{\"t\":1}",
                           "{\"t\":[]}",
                           "{\"t\":{}}",
                           "{\"t\":null}",
                           "{}}",
                           "{} x",
                           "{\"__metadata__\":1}",
                           "{\"__metadata__\":{\"a\":1}}",
                           "{\"__metadata__\":{\"a\":{}}}",
                           "{\"__metadata__\":[]}",
                           "{\"t\":{\"dtype\":\"U8\"}}",
                           "{\"a\xff\":1}",
                           "{\"a\":\"\xc0\x80\"}",
                           "{\"a\":\"\\ud800\"}",
                           "{'a':1}",
                           "{\"a\":1,\"a\":2}",
                           "{\"a\":1e999}",
                           "{\"a\":01}",
                           "{\"a\":+1}",
                           "{\"a\":NaN}",
                           "{\"a\":\"\n\"}",
                           "\x80"}) {
    add(std::string("header ") + text, with_size(text, ""), {"header|tensor"});
  }
  add("arrays without end", with_size(std::string(1 << 20, '['), ""), {"nesting"});
  std::string objects;
  for (int i = 0; i < 1 << 18; ++i) objects += "{\"a\":";
  add("objects without end", with_size(objects, ""), {"nesting"});
  for (const char* dtype :
       {"\"F33\"", "\"\"", "\"f32\"", "\"F8_E4M3\"", "\"C64\"", "7", "null", "[]", "\"U64\""}) {
    add(std::string("dtype ") + dtype, with_size(header(dtype, "[4]", "[0,4]"), "abcd"), {t});
  }
  for (const char* shape :
       {"[5]", "[3]", "[-4]", "[4,0]", "[2.0,2]", "[\"4\"]", "4", "null", "{}", "[null]", "[[4]]",
        "[9223372036854775807]", "[9223372036854775808]", "[-9223372036854775808]",
        "[4294967296,4294967296]", "[4611686018427387904,4611686018427387904,0]",
        "[0,4611686018427387904,4611686018427387904]", "[1e0]"}) {
    add(std::string("shape ") + shape, with_size(header("\"U8\"", shape, "[0,4]"), "abcd"), {t});
  }
  add("rank 1000",
      with_size(header(
                    "\"U8\"",
                    "[1" +
                        [] {
                          std::string more;
                          for (int i = 1; i < 1000; ++i) more += ",1";
                          return more;
                        }() +
                        "]",
                    "[0,1]"),
                "a"),
      {t, "1000"});
  for (const char* offsets :
       {"[0,5]", "[0,3]", "[1,5]", "[4,0]", "[-4,0]", "[0]", "[]", "[0,2,4]", "[0.0,4]", "4",
        "null", "{}", "[0,9223372036854775807]", "[0,9223372036854775808]",
        "[-9223372036854775808,4]", "[9223372036854775807,9223372036854775807]", "[\"0\",\"4\"]"}) {
    add(std::string("data_offsets ") + offsets, with_size(header("\"U8\"", "[4]", offsets), "abcd"),
        {t});
  }
  add("more data than tensors", with_size(good, "abcde"), {"byte 4", "5"});
  add("no tensors, but data", with_size("{}", "abcde"), {"byte 0", "5"});
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  add("overlap",
      with_size("{" + a + R"("t":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", "abcdef"),
      {t, "byte 2"});
  add("gap",
      with_size("{" + a + R"("t":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})", "abcdef"),
      {t, "byte 5"});
  add("same data twice",
      with_size("{" + a + R"("t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcd"),
      {t, "byte 0"});
  add("BOOL 2", with_size(header("\"BOOL\"", "[4]", "[0,4]"), std::string("\0\1\2\1", 4)),
      {t, "2"});
  add("BOOL 255", with_size(header("\"BOOL\"", "[]", "[0,1]"), "\xff"), {t, "255"});

  const auto add_path = [&](const std::string& path, const std::string& part) {
    c.add("path " + path, [path] { load_safetensors(path); }, {path, part});
    c.add("path " + path + " into a module",
          [path] {
            VanillaSelfAttention m(2);
            load_state_dict(*m, path);
          },
          {path, part});
  };
  const auto pipe = (folder_ / "pipe").string(), loop = (folder_ / "loop").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::filesystem::create_symlink(loop, loop);
  add_path(pipe, "a regular file");
  add_path(loop, "cannot be opened");
  add_path(folder_.string(), "a directory");
  add_path(folder_.string() + "/", "a directory");
  for (const char* device : {"/dev/zero", "/dev/null", "/dev/random", "/dev/full"})
    add_path(device, "a regular file");
  add_path("/no/such/file", "cannot be opened");
  add_path("", "cannot be opened");
  add_path(write("x") + "/y", "cannot be opened");
  add_path("/" + std::string(300, 'n'), "cannot be opened");
  add_path("/proc/self/status", "truncated");
  expect_all_refused(c.all, 120);
}

TEST_F(BadFiles, Save) {
  Cases c("save_safetensors");
  const auto good = torch::ones({2, 2});
  const auto target = (folder_ / "target").string();
  auto values = unreadable(good);
  values.push_back({"undefined", {}, "undefined"});
  for (const auto& more : {of_strange_dtypes(good)})
    values.insert(values.end(), more.begin(), more.end());
  static uint8_t raw[] = {7, 0, 0, 0};
  values.push_back({"BOOL 7", torch::from_blob(raw, {4}, torch::kBool), "7"});
  values.push_back({"more than memory", torch::ones({1}).expand({1 << 30, 1 << 20}),
                    "[1073741824, 1048576]|memory"});
  for (const auto& v : values) {
    c.add("tensor " + v.name,
          [=, t = v.tensor] {
            save_safetensors(target, {{"a", good}, {"t", t}});
          },
          {target, "\"t\"", v.part});
  }
  const auto add = [&](const std::string& what, const std::string& path, const std::string& name,
                       const std::map<std::string, std::string>& metadata,
                       std::vector<std::string> parts) {
    c.add(
        what,
        [=] {
          save_safetensors(path, {{name, good}}, metadata);
        },
        std::move(parts));
  };
  add("reserved name", target, "__metadata__", {}, {"__metadata__", "reserved"});
  add("name not UTF-8", target, "a\xff", {}, {"a\\xff", "UTF-8"});
  add("name half a character", target, "\xe2\x82", {}, {"\\xe2\\x82", "UTF-8"});
  add("metadata key", target, "a", {{"k\x80", ""}}, {"k\\x80", "UTF-8"});
  add("metadata value", target, "a", {{"k", "v\xed\xa0\x80"}}, {"k", "\\xed", "UTF-8"});
  add("header too long", target, "a", {{"k", std::string(100'000'001, 'x')}},
      {"header", "100000000"});
  const auto pipe = (folder_ / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path :
       {pipe, folder_.string(), folder_.string() + "/", std::string("/dev/full"),
        std::string("/dev/null"), std::string("/no/such/folder/x"), std::string(""),
        std::string("/proc/self/x"), "/tmp/" + std::string(300, 'n')}) {
    add("path " + path, path, "a", {}, {path, "cannot be written|a regular file|cannot be opened"});
  }
  expect_all_refused(c.all, 25);
  for (const auto& file : std::filesystem::directory_iterator(folder_)) {
    EXPECT_EQ(file.path(), pipe);  // nothing is left behind
  }
}

TEST(BadInputs, LoadStateDict) {
  Cases c("load_state_dict");
  const auto good = [] {
    VanillaSelfAttention m({.d_model = 4, .bias = true});
    auto state = state_dict(*m);
    for (auto& [name, tensor] : state) tensor = tensor.detach().clone();
    return state;
  };
  const auto load = [](const std::map<std::string, torch::Tensor>& state) {
    VanillaSelfAttention m({.d_model = 4, .bias = true});
    load_state_dict(*m, state);
  };
  for (const auto& [name, tensor] : good()) {
    auto values = not_floating(tensor.detach());
    for (const auto& more : {of_float_dtypes(tensor), of_wrong_sizes(tensor, {0})}) {
      values.insert(values.end(), more.begin(), more.end());
    }
    for (const auto& v : values) {
      c.add(name + " " + v.name,
            [=, name = name, t = v.tensor] {
              auto state = good();
              state[name] = t;
              load(state);
            },
            {name, v.part, "VanillaSelfAttention"});
    }
    c.add(name + " missing",
          [=, name = name] {
            auto s = good();
            s.erase(name);
            load(s);
          },
          {"missing", name});
    c.add(name + " renamed",
          [=, name = name] {
            auto s = good();
            s["model." + name] = s[name];
            s.erase(name);
            load(s);
          },
          {"missing: " + name, "extra: model." + name});
  }
  c.add("nothing", [=] { load({}); }, {"missing", "w_q.weight", "w_o.bias"});
  c.add("extra",
        [=] {
          auto s = good();
          s["more"] = torch::Tensor();
          load(s);
        },
        {"extra: more"});
  expect_all_refused(c.all, 150);
}

}  // namespace
}  // namespace attzoo::testing::bad_inputs_test
