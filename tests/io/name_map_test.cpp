#include <gtest/gtest.h>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/multi_head.hpp>

#include "support/expect_error.hpp"
#include "support/parameters.hpp"

namespace attzoo::testing::name_map_test {
namespace {

TEST(NameMap, WildcardsCarryNumbersAndRests) {
  Parameters module({{"layers.0.w", torch::zeros({2})},
                     {"layers.12.w", torch::zeros({2})},
                     {"layers.12.experts.3.a.b", torch::zeros({2})},
                     {"top", torch::zeros({2})}});
  NameMap layer, model;
  layer.rename("weight", "w").rename("moe.{n}.*", "experts.{n}.*").ignore("junk.*");
  model.rename("t", "top").add(layer, "model.h.{n}.", "layers.{n}.");
  const auto t = [](float x) { return torch::full({2}, x); };
  load_state_dict(module,
                  {{"model.h.0.weight", t(1)},
                   {"model.h.12.weight", t(2)},
                   {"model.h.12.moe.3.a.b", t(3)},
                   {"model.h.0.junk.x.y", t(9)},
                   {"t", t(4)}},
                  model);
  EXPECT_TRUE(torch::equal(module["layers.0.w"], t(1)));
  EXPECT_TRUE(torch::equal(module["layers.12.w"], t(2)));
  EXPECT_TRUE(torch::equal(module["layers.12.experts.3.a.b"], t(3)));
  EXPECT_TRUE(torch::equal(module["top"], t(4)));

  for (const auto* name : {"model.h.x.weight", "model.h..weight", "model.h.0.weights", "xt", "t.",
                           "model.h.0.junk.", "model.h.0.moe.3.", "model.h.-1.weight", ""}) {
    expect_error(
        [&] {
          load_state_dict(module, {{name, t(1)}}, model);
        },
        {std::string("extra: ") + name, "missing: top (from t)",
         "missing: layers.12.w (from model.h.12.weight)",
         "missing: layers.12.experts.3.a.b (from model.h.12.moe.3.a.b)"});
  }
}

TEST(NameMap, ZerosAreIgnoredAndNothingElse) {
  Parameters module({{"w", torch::zeros({2})}});
  NameMap map;
  map.rename("weight", "w").rename("bias", "b").ignore_zeros("bias");
  const auto load = [&](const torch::Tensor& bias) {
    load_state_dict(module, {{"weight", torch::ones({2})}, {"bias", bias}}, map);
  };
  for (const auto dtype : {torch::kFloat64, torch::kBFloat16, torch::kInt64}) {
    load(torch::zeros({1, 3}).to(dtype));
  }
  EXPECT_TRUE(torch::equal(module["w"], torch::ones({2})));
  for (const auto& bias :
       {torch::tensor({0.0, 0.0, 1e-30}), torch::full({1}, NAN), torch::zeros({2}).to_sparse()}) {
    expect_error([&] { load(bias); }, {"bias: ", "not all zeros"});
  }
  module.add("b", torch::zeros({3}));
  load(torch::arange(3).to(torch::kFloat32));
  EXPECT_TRUE(torch::equal(module["b"], torch::arange(3).to(torch::kFloat32)));
}

TEST(NameMap, PatternsThatDoNotFitAreErrors) {
  NameMap map;
  expect_error([&] { map.rename("a.{n}.w", "b.w"); }, {"b.w", "a.{n}.w", "wildcards"});
  expect_error([&] { map.rename("a.w", "b.{n}"); }, {"wildcards"});
  expect_error([&] { map.rename("a.{n}.*", "b.*"); }, {"wildcards"});
  expect_error([&] { map.rename("a.*.w", "b.*.w"); }, {"last character"});
  expect_error([&] { map.rename("", "b"); }, {"empty"});
  expect_error([&] { map.rename("a", ""); }, {"empty"});
  expect_error([&] { map.split("a", {}); }, {"target"});
  expect_error([&] { map.tie("a", "b", "c.{n}"); }, {"wildcards"});
  EXPECT_TRUE(map.rules().empty());
}

TEST(NameMap, ChangesTakePartsOfRows) {
  const auto t = torch::arange(24).view({12, 2});
  EXPECT_TRUE(torch::equal(names::part(1, 3)(t), t.slice(0, 4, 8)));
  // Two heads of 6 rows, each with 3 for one and 3 for the other.
  const auto first = torch::cat({t.slice(0, 0, 3), t.slice(0, 6, 9)});
  const auto second = torch::cat({t.slice(0, 3, 6), t.slice(0, 9, 12)});
  EXPECT_TRUE(torch::equal(names::part_of_heads(2, 0, 2)(t), first));
  EXPECT_TRUE(torch::equal(names::part_of_heads(2, 1, 2)(t), second));
  EXPECT_TRUE(torch::equal(names::part_of_heads(2, 1, 2)(t.select(1, 0)), second.select(1, 0)));
  EXPECT_TRUE(torch::equal(names::transposed()(t), t.t()));
  expect_error([&] { names::part(0, 5)(t); }, {"5 equal parts", "[12, 2]"});
  expect_error([&] { names::part(0, 5)(t[0][0]); }, {"5 equal parts", "[]"});
  expect_error([&] { names::part_of_heads(5, 0, 2)(t); }, {"5 heads", "[12, 2]"});
  expect_error([&] { names::transposed()(t.select(1, 0)); }, {"matrix", "[12]"});
  expect_error([] { names::part(3, 3); }, {"part 3 of 3"});
  expect_error([] { names::qwen3_next(0); }, {"0 heads"});
}

NamedTensors cloned(const NamedTensors& tensors) {
  NamedTensors copies;
  for (const auto& [name, t] : tensors) copies[name] = t.detach().clone();
  return copies;
}

void expect_same_numbers(const NamedTensors& got, const NamedTensors& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, t] : want) EXPECT_TRUE(torch::equal(got.at(name), t)) << name;
}

/// GPT-2's tensors of one attention of width d.
NamedTensors gpt2_tensors(int64_t d) {
  return {{"c_attn.weight", torch::randn({d, 3 * d})},
          {"c_attn.bias", torch::randn({3 * d})},
          {"c_proj.weight", torch::randn({d, d})},
          {"c_proj.bias", torch::randn({d})}};
}

TEST(NameMap, OneErrorListsEverythingAndNothingChanges) {
  MultiHeadSelfAttention attn({.d_model = 4, .num_heads = 2, .bias = true});
  const auto before = cloned(state_dict(*attn));
  const auto names = names::gpt2();
  const auto refused = [&](const NamedTensors& tensors, std::vector<std::string> parts) {
    parts.insert(parts.begin(), {"load_state_dict", "MultiHeadSelfAttention"});
    expect_error([&] { load_state_dict(*attn, tensors, names); }, parts);
    expect_same_numbers(state_dict(*attn), before);
  };
  auto tensors = gpt2_tensors(4);
  tensors.erase("c_proj.bias");
  const std::string missing = "missing: w_o.bias (from c_proj.bias)";
  refused(tensors, {missing});
  tensors["more"] = torch::zeros({1});
  refused(tensors, {missing, "extra: more"});
  tensors["h.0.ln_1.weight"] = torch::zeros({4});
  const std::string extra = "extra: h.0.ln_1.weight (the module has no layers.0.norm_attn.weight)";
  refused(tensors, {missing, "extra: more", extra});
  tensors["c_proj.weight"] = torch::zeros({4, 5});
  const std::string shape = "w_o.weight (from c_proj.weight): expected [4, 4] Float, got [5, 4]";
  refused(tensors, {missing, extra, shape});
  tensors["c_attn.weight"] = torch::zeros({4, 12}, torch::kFloat64);
  const std::string dtype =
      "w_k.weight (from c_attn.weight): expected [4, 4] Float, got [4, 4] Double";
  refused(tensors, {missing, extra, shape, dtype});
  tensors["c_attn.bias"] = torch::zeros({13});
  const std::string parts = "w_v.bias (from c_attn.bias): expected rows in 3 equal";
  refused(tensors, {missing, extra, shape, dtype, parts});

  tensors = gpt2_tensors(4);
  tensors["bias"] = torch::ones({1, 1, 8, 8}, torch::kBool);  // the causal mask
  tensors["masked_bias"] = torch::tensor(-1e4);
  auto given = tensors;
  for (const auto& [t, kind] : {std::pair<torch::Tensor, std::string>{{}, "undefined"},
                                {torch::ones({4, 4}).to_sparse(), "Sparse"},
                                {torch::ones({4, 4}).to(torch::kMeta), "meta"}}) {
    given["c_proj.weight"] = t;
    refused(given, {"w_o.weight (from c_proj.weight)", kind});
  }
  load_state_dict(*attn, tensors, names);
  EXPECT_TRUE(torch::equal(attn->w_k->weight, tensors.at("c_attn.weight").t().slice(0, 4, 8)));
}

TEST(NameMap, WhatIsGivenTwiceOrRefusedIsAnError) {
  MultiHeadSelfAttention attn({.d_model = 4, .num_heads = 2, .bias = true});
  const auto before = cloned(state_dict(*attn));
  NamedTensors tensors{
      {"in_proj_weight", torch::zeros({12, 4})}, {"in_proj_bias", torch::zeros({12})},
      {"q_proj_weight", torch::zeros({4, 4})},   {"bias_k", torch::zeros({1, 1, 4})},
      {"bias_v", torch::zeros({1, 1, 4})},       {"out_proj.bias", torch::zeros({4})}};
  expect_error([&] { load_state_dict(*attn, tensors, names::torch_multihead_attention()); },
               {"w_q.weight (from q_proj_weight): is given by in_proj_weight too", "bias_k: ",
                "bias_v: ", "add_bias_kv", "missing: w_o.weight (from out_proj.weight)"});
  expect_same_numbers(state_dict(*attn), before);
}

TEST(NameMap, BfloatIsConvertedWhereThatIsAskedFor) {
  MultiHeadSelfAttention attn({.d_model = 4, .num_heads = 2, .bias = true});
  const auto before = cloned(state_dict(*attn));
  auto tensors = gpt2_tensors(4);
  for (auto& [name, t] : tensors) t = t.to(torch::kBFloat16);
  expect_error([&] { load_state_dict(*attn, tensors, names::gpt2()); },
               {"expected [4, 4] Float, got [4, 4] BFloat16"});
  load_state_dict(*attn, tensors, names::gpt2(), {.convert_dtype = true});
  EXPECT_TRUE(torch::equal(attn->w_o->weight, tensors.at("c_proj.weight").t().to(torch::kFloat)));

  attn->to(torch::kHalf);
  const auto half = cloned(state_dict(*attn));
  tensors["c_proj.weight"] = torch::full({4, 4}, 1e5, torch::kBFloat16);
  expect_error([&] { load_state_dict(*attn, tensors, names::gpt2(), {.convert_dtype = true}); },
               {"w_o.weight (from c_proj.weight): has numbers of BFloat16 that are infinite"});
  tensors["c_proj.weight"] = torch::ones({4, 4}, torch::kInt64);
  expect_error([&] { load_state_dict(*attn, tensors, names::gpt2(), {.convert_dtype = true}); },
               {"w_o.weight (from c_proj.weight): expected [4, 4] Half, got [4, 4] Long"});
  expect_same_numbers(state_dict(*attn), half);
}

TEST(NameMap, OneIsAddedBeforeNumbersAreRounded) {
  // 1 + 2^-10 is no bfloat16, 2^-10 is one.
  const auto w = torch::full({4}, 0x1p-10F, torch::kBFloat16);
  Parameters module({{"norm_q.weight", torch::zeros({4})}});
  load_state_dict(module, {{"q_norm.weight", w}}, names::gemma2(), {.convert_dtype = true});
  EXPECT_TRUE(torch::equal(module["norm_q.weight"], torch::full({4}, 1 + 0x1p-10F)));
}

TEST(NameMap, TiedOutputLayers) {
  const auto embedding = torch::randn({5, 4}), head = torch::randn({5, 4});
  const auto names = names::llama();
  const auto zeros = [] { return torch::zeros({5, 4}); };
  Parameters untied({{"embed.weight", zeros()}, {"lm_head.weight", zeros()}});
  const NamedTensors both{{"model.embed_tokens.weight", embedding}, {"lm_head.weight", head}};
  load_state_dict(untied, both, names);
  EXPECT_TRUE(torch::equal(untied["lm_head.weight"], head));
  expect_error(
      [&] {
        load_state_dict(untied, {{"model.embed_tokens.weight", head}}, names);
      },
      {"missing: lm_head.weight"});
  EXPECT_TRUE(torch::equal(untied["embed.weight"], embedding));

  Parameters none({{"embed.weight", zeros()}});  // the module multiplies with the embedding
  expect_error([&] { load_state_dict(none, both, names); },
               {"lm_head.weight: the module has embed.weight in its place"});
  EXPECT_TRUE(torch::equal(none["embed.weight"], zeros()));
  load_state_dict(none, {{"model.embed_tokens.weight", head}, {"lm_head.weight", head}}, names);
  EXPECT_TRUE(torch::equal(none["embed.weight"], head));

  const auto shared = zeros();  // one parameter under two names
  Parameters tied({{"embed.weight", shared}, {"lm_head.weight", shared}});
  load_state_dict(tied, {{"model.embed_tokens.weight", embedding}}, names);
  EXPECT_TRUE(torch::equal(tied["lm_head.weight"], embedding));
  expect_error([&] { load_state_dict(tied, both, names); }, {"lm_head.weight", "embed.weight"});
  EXPECT_TRUE(torch::equal(tied["embed.weight"], embedding));
}

TEST(NameMap, AFileMayHaveTheOutputLayerAlone) {
  const auto table = torch::randn({5, 4}), other = torch::randn({5, 4});
  struct Case {
    NameMap names;
    std::string embedding;
  };
  const Case cases[] = {{names::llama(), "model.embed_tokens.weight"},
                        {names::gemma2(), "model.embed_tokens.weight"},
                        {names::gpt_oss(), "embed_tokens.weight"},
                        {names::qwen3_next(2), "model.embed_tokens.weight"},
                        {names::gpt2(), "transformer.wte.weight"}};
  for (const auto& [names, embedding] : cases) {
    Parameters none({{"embed.weight", torch::zeros({5, 4})}});
    load_state_dict(none, {{"lm_head.weight", table}}, names);
    EXPECT_TRUE(torch::equal(none["embed.weight"], table));
    expect_error(
        [&, &n = names] {
          load_state_dict(none, {{"lm_head.weight", other.to(torch::kBFloat16)}}, n);
        },
        {"embed.weight (from lm_head.weight): expected [5, 4] Float, got [5, 4] BFloat16"});
    expect_error(
        [&, &n = names, &e = embedding] {
          load_state_dict(none, {{"lm_head.weight", other}, {e, torch::zeros({4, 5})}}, n);
        },
        {"embed.weight (from " + embedding + "): expected [5, 4] Float, got [4, 5] Float"});
    EXPECT_TRUE(torch::equal(none["embed.weight"], table));

    const auto shared = torch::zeros({5, 4});
    Parameters tied({{"embed.weight", shared}, {"lm_head.weight", shared}});
    load_state_dict(tied, {{"lm_head.weight", other}}, names);
    EXPECT_TRUE(torch::equal(tied["embed.weight"], other));

    Parameters untied({{"embed.weight", torch::zeros({5, 4})}, {"lm_head.weight", shared.clone()}});
    expect_error(
        [&, &n = names] {
          load_state_dict(untied, {{"lm_head.weight", table}}, n);
        },
        {"missing: embed.weight"});
  }
}

TEST(NameMap, TiedTablesAreComparedAsTheModuleHasThem) {
  const auto names = names::llama();
  const auto half = torch::randn({5, 4}).to(torch::kBFloat16), wide = half.to(torch::kFloat);
  const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  Parameters module({{"embed.weight", torch::zeros({5, 4})}});
  load_state_dict(module, {{embedding, wide}, {head, half}}, names);
  EXPECT_TRUE(torch::equal(module["embed.weight"], wide));
  load_state_dict(module, {{embedding, half}, {head, wide}}, names, {.convert_dtype = true});
  EXPECT_TRUE(torch::equal(module["embed.weight"], wide));
  expect_error(
      [&] {
        load_state_dict(module, {{embedding, wide + 1e-4}, {head, half}}, names);
      },
      {"lm_head.weight: the module has embed.weight in its place"});
  Parameters small({{"embed.weight", torch::zeros({5, 4}, torch::kBFloat16)}});
  load_state_dict(small, {{embedding, wide * (1 + 1e-6)}, {head, half}}, names,
                  {.convert_dtype = true});
  EXPECT_TRUE(torch::equal(small["embed.weight"], half));
}

TEST(NameMap, WhereNoNameFitsTheErrorNamesTheMap) {
  const auto t = torch::zeros({4, 4});
  MultiHeadSelfAttention attn({.d_model = 4, .num_heads = 2});
  const std::pair<const char*, const char*> cases[] = {
      {"model.layers.0.self_attn.q_proj.weight", "names::llama()?"},
      {"h.0.attn.c_attn.weight", "names::gpt2()?"},
      {"encoder.layer.0.attention.self.query.weight", "names::bert()?"},
      {"layers.0.self_attn.in_proj_weight", "names::torch_multihead_attention()?"}};
  for (const auto& [name, map] : cases) {
    expect_error(
        [&, &n = name] {
          load_state_dict(*attn, {{n, t}});
        },
        {"no name fits: did you mean ", map});
    auto other = std::string(map) == "names::bert()?" ? names::gpt2() : names::bert();
    expect_error(
        [&, &n = name] {
          load_state_dict(*attn, {{n, t}}, other);
        },
        {"no name fits: did you mean ", map});
  }
  Parameters decoder({{"decoder.layers.0.cross.w_q.weight", t.clone()}});
  NamedTensors reads{{"model.decoder.layers.0.encoder_attn.q_proj.weight", t}};
  expect_error([&] { load_state_dict(decoder, reads); }, {"did you mean names::bart()?"});
  reads["model.encoder.conv1.weight"] = t;
  expect_error([&] { load_state_dict(decoder, reads); }, {"did you mean names::whisper()?"});
  const NamedTensors llama{{"model.layers.0.self_attn.q_proj.weight", t},
                           {"model.layers.0.self_attn.sinks", t},
                           {"model.layers.0.pre_feedforward_layernorm.weight", t}};
  const auto mean = [&](const char* ours, const char* map) {
    Parameters module({{"layers.0.attn.w_q.weight", t.clone()}, {ours, t.clone()}});
    expect_error([&] { load_state_dict(module, llama); }, {"did you mean ", map});
  };
  mean("layers.0.norm_attn.weight", "names::llama()?");
  mean("layers.0.attn.sinks", "names::gpt_oss()?");
  mean("layers.0.norm_attn_out.weight", "names::gemma2()?");
  mean("layers.0.attn.w_g.weight", "names::qwen3_next(num_heads)?");
  // A name that the map knows is no stranger.
  try {
    load_state_dict(*attn, {{"layers.0.self_attn.q_proj.weight", t}}, names::llama());
    ADD_FAILURE();
  } catch (const c10::Error& error) {
    EXPECT_EQ(std::string(error.what_without_backtrace()).find("did you mean"), std::string::npos);
  }
}

TEST(NameMap, SizesCanBeCheckedBeforeThereIsAModule) {
  const std::map<std::string, std::vector<int64_t>> sizes{
      {"w_q.weight", {4, 4}}, {"w_k.weight", {4, 4}}, {"w_v.weight", {4, 4}}, {"w_q.bias", {4}},
      {"w_k.bias", {4}},      {"w_v.bias", {4}},      {"w_o.weight", {4, 4}}, {"w_o.bias", {4}}};
  auto tensors = gpt2_tensors(4);
  core::check_sizes(sizes, tensors, names::gpt2(), "who");
  tensors["c_proj.weight"] = torch::zeros({5, 4});
  tensors.erase("c_proj.bias");
  auto larger = sizes;
  larger["w_q.bias"] = {1'000'000'000'000, 1'000'000'000};
  expect_error([&] { core::check_sizes(larger, tensors, names::gpt2(), "who"); },
               {"who:", "w_o.weight (from c_proj.weight): expected [4, 4], got [4, 5]",
                "missing: w_o.bias (from c_proj.bias)",
                "w_q.bias (from c_attn.bias): expected [1000000000000, 1000000000], got [4]"});
}

TEST(NameMap, FromACheckpointFile) {
  const auto path = std::filesystem::temp_directory_path() / "attzoo_name_maps.safetensors";
  auto tensors = gpt2_tensors(4);
  save_safetensors(path, tensors);
  MultiHeadSelfAttention attn({.d_model = 4, .num_heads = 2, .bias = true});
  load_state_dict(*attn, path, names::gpt2());
  EXPECT_TRUE(torch::equal(attn->w_o->weight, tensors.at("c_proj.weight").t()));
  tensors.erase("c_proj.bias");
  save_safetensors(path, tensors);
  expect_error([&] { load_state_dict(*attn, path, names::gpt2()); },
               {"load_state_dict: " + path.string(), "missing: w_o.bias"});
  std::filesystem::remove(path);
}

TEST(NameMap, TensorsUnderAPrefix) {
  const auto a = torch::ones({1}), b = torch::zeros({1});
  const auto under = tensors_under({{"m.x", a}, {"m.y.z", b}, {"n.x", b}, {"m", b}}, "m.");
  EXPECT_EQ(under.size(), 2U);
  EXPECT_TRUE(under.at("x").is_same(a) && under.at("y.z").is_same(b));
  expect_error([&] { tensors_under({{"m.x", a}}, "q."); }, {"tensors_under", "\"q.\""});
}

}  // namespace
}  // namespace attzoo::testing::name_map_test
