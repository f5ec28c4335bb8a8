// Any text as config.json and as the index of a checkpoint of two files: it loads, or it is a
// c10::Error. A config that loads has sizes that make sense and, if they are small, makes blocks
// that run; an index that loads gives the tensors of its files.

#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/model_config.hpp>

#include <cmath>

#include "fuzz.hpp"

namespace attzoo::fuzz {
namespace {

/// What is written is the same text again, but for -0, which is 0.
void check_text(const core::Json& json) {
  const auto once = core::Json::parse(json.dump()).dump();
  require(core::Json::parse(once).dump() == once, "JSON does not come back");
  require(core::Json::parse(json.dump(2)).dump() == once, "JSON with indents does not come back");
}

void check_config(const ModelConfig& c) {
  const auto& a = c.attention;
  const int64_t layers = static_cast<int64_t>(c.windows.size()),
                hidden = c.block.mlp_hidden.value_or(1), head_dim = a.head_dim.value_or(1);
  for (const int64_t size :
       {c.vocab, c.context, a.d_model, a.num_query_heads, a.num_kv_heads, hidden, head_dim}) {
    require(1 <= size && size <= (kPlanted ? 64 : 4'000'000'000),
            "a config with a size that makes no sense");
  }
  require(layers <= 10000, "a config with too many layers");
  require(!works([&] { c.attention_of(c.windows.size()); }), "a layer behind the last one");
  if (layers > 0) c.attention_of(c.windows.size() - 1);
  const auto is_small = [](int64_t size) { return size <= 32; };
  if (!is_small(a.d_model) || !is_small(a.num_query_heads) || !is_small(a.num_kv_heads) ||
      !is_small(head_dim) || !is_small(hidden) || layers > 2) {
    return;
  }
  works([&] {
    const torch::NoGradGuard no_grad;
    auto stack = c.layers();
    if (layers == 0) return;
    const auto out = stack(torch::zeros({1, 3, a.d_model})).output;
    require(out.size(2) == a.d_model, "blocks of another size than their config");
  });
}

void check_index(const core::Json& index, const SafeTensors& loaded) {
  const auto& named = index["weight_map"].object();
  require(named.size() == loaded.tensors.size(), "an index of other tensors than its files'");
  for (const auto& [name, file] : named) {
    require(loaded.tensors.count(name) > 0, "a tensor of the index is missing");
    require(loaded.tensors.at(name).sum().item<double>() == (file.string() == "a" ? 3 : 4),
            "a tensor is another file's");
  }
}

void check(std::string_view text) {
  static const Folder folder;
  static const bool files = [] {
    save_safetensors(folder / "a", {{"x", torch::ones({3})}, {"y", torch::ones({1, 3})}});
    save_safetensors(folder / "b", {{"z", torch::ones({4})}});
    return true;
  }();
  core::Json json;
  const bool parses = files && works([&] { json = core::Json::parse(text); });
  if (parses) check_text(json);
  ModelConfig config;
  if (works([&] { config = read_config(folder.write("config.json", text)); })) {
    require(parses, "a config loads that is no JSON");
    check_config(config);
  }
  SafeTensors loaded;
  if (works([&] { loaded = open_checkpoint(folder.write("index.json", text)); })) {
    require(parses, "an index loads that is no JSON");
    check_index(json, loaded);
  }
}

}  // namespace
}  // namespace attzoo::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attzoo::fuzz::check(attzoo::fuzz::text_of(data, size));
  return 0;
}
