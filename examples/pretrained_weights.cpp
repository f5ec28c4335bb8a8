// A checkpoint in the names and layout of GPT-2, in two files with an index, loads into modules of
// attzoo. Without a folder one is made with random numbers; with one it must hold GPT-2's own:
//
//   example_pretrained_weights [FOLDER]

#include <torch/nn/modules/embedding.h>

#include <attzoo/attzoo.hpp>
#include <fstream>
#include <iostream>

namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, torch::Tensor>;

struct Sizes {
  int64_t layers, d_model, heads, words, positions;
};

/// GPT-2 without the output layer: names as io/name_maps.hpp says.
struct Model : torch::nn::Module {
  explicit Model(const Sizes& s) {
    register_module("embed", embed = torch::nn::Embedding(s.words, s.d_model));
    register_module("positions", positions = torch::nn::Embedding(s.positions, s.d_model));
    register_module("layers", layers);
    for (int64_t i = 0; i < s.layers; ++i) {
      layers->push_back(attzoo::transformer_block(attzoo::MultiHeadSelfAttention(
          {.d_model = s.d_model, .num_heads = s.heads, .bias = true, .causal = true})));
    }
    register_module("norm", norm = torch::nn::LayerNorm(torch::nn::LayerNormOptions({s.d_model})));
  }
  torch::nn::Embedding embed{nullptr}, positions{nullptr};
  attzoo::Stack layers;
  torch::nn::LayerNorm norm{nullptr};
};

/// What a GPT-2 of these sizes saves, in bfloat16.
Tensors random_gpt2(const Sizes& s) {
  const auto d = s.d_model;
  std::map<std::string, std::vector<int64_t>> sizes{{"wte.weight", {s.words, d}},
                                                    {"wpe.weight", {s.positions, d}},
                                                    {"ln_f.weight", {d}},
                                                    {"ln_f.bias", {d}}};
  for (int64_t i = 0; i < s.layers; ++i) {
    const auto h = "h." + std::to_string(i) + ".";
    for (const std::string norm : {"ln_1", "ln_2"}) {
      sizes[h + norm + ".weight"] = sizes[h + norm + ".bias"] = {d};
    }
    const std::tuple<const char*, int64_t, int64_t> matrices[] = {{"attn.c_attn", d, 3 * d},
                                                                  {"attn.c_proj", d, d},
                                                                  {"mlp.c_fc", d, 4 * d},
                                                                  {"mlp.c_proj", 4 * d, d}};
    for (const auto& [name, in, out] : matrices) {
      sizes[h + name + ".weight"] = {in, out};
      sizes[h + name + ".bias"] = {out};
    }
    sizes[h + "attn.bias"] = {1, 1, 8, 8};  // a causal mask, which the map ignores
  }
  Tensors tensors;
  for (const auto& [name, size] : sizes) tensors[name] = torch::randn(size).to(torch::kBFloat16);
  return tensors;
}

/// Writes the tensors as two files and an index.
void save_shards(const fs::path& folder, const Tensors& tensors) {
  fs::create_directories(folder);
  Tensors shards[2];
  std::string index;
  for (const auto& [name, t] : tensors) {
    const size_t shard = shards[0].size() <= tensors.size() / 2 ? 0 : 1;
    shards[shard][name] = t;
    index +=
        (index.empty() ? "\"" : ",\"") + name + "\":\"" + std::to_string(shard) + ".safetensors\"";
  }
  for (size_t i = 0; i < 2; ++i) {
    attzoo::save_safetensors(folder / (std::to_string(i) + ".safetensors"), shards[i]);
  }
  std::ofstream(folder / "model.safetensors.index.json") << "{\"weight_map\":{" << index << "}}";
}

/// Names that no map of the library has: queries, keys and values in one weight.
attzoo::NameMap own_names() {
  attzoo::NameMap attention, model;
  attention
      .split("qkv.weight",
             {{"w_q.weight", attzoo::names::part(0, 3)},
              {"w_k.weight", attzoo::names::part(1, 3)},
              {"w_v.weight", attzoo::names::part(2, 3)}},
             attzoo::names::join_parts())
      .rename("out.weight", "w_o.weight")
      .ignore("rotary.*");
  model.rename("wte.weight", "embed.weight").add(attention, "h.{n}.mixer.", "layers.{n}.attn.");
  return model.add(attention);  // and for an attention alone
}

}  // namespace

int main(int argc, char** argv) {
  const bool given = argc > 1;
  const Sizes sizes = given ? Sizes{12, 768, 12, 50257, 1024} : Sizes{2, 32, 4, 97, 64};
  const fs::path folder = given ? argv[1] : fs::temp_directory_path() / "attzoo_pretrained";
  if (!given) save_shards(folder, random_gpt2(sizes));

  Model model(sizes);
  attzoo::load_state_dict(model, folder, attzoo::names::gpt2(), {.convert_dtype = true});

  // One block alone, from the tensors of its layer.
  const auto tensors = attzoo::open_checkpoint(folder).tensors;
  const bool has_base = tensors.count("transformer.wte.weight") > 0;
  const auto layer = std::string(has_base ? "transformer." : "") + "h.1.";
  auto block = attzoo::transformer_block(attzoo::MultiHeadSelfAttention(
      {.d_model = sizes.d_model, .num_heads = sizes.heads, .bias = true, .causal = true}));
  attzoo::load_state_dict(*block, attzoo::tensors_under(tensors, layer), attzoo::names::gpt2(),
                          {.convert_dtype = true});
  block->eval();
  model.eval();

  torch::NoGradGuard no_grad;
  const auto x = torch::randn({1, 10, sizes.d_model});
  const bool same = torch::equal(block(x).output, model.layers[1](x).output);
  std::cout << "layer 1, loaded twice, gives the same: " << std::boolalpha << same << '\n';

  // Saved, they are GPT-2's again.
  const auto saved = fs::temp_directory_path() / "attzoo_gpt2.safetensors";
  attzoo::save_state_dict(model, saved, attzoo::names::gpt2());
  const auto again = attzoo::load_safetensors(saved).tensors;
  fs::remove(saved);
  const std::string name = "h.1.attn.c_attn.weight";
  const auto given_weight = tensors.at((has_base ? "transformer." : "") + name);
  if (!torch::equal(again.at("transformer." + name), given_weight.to(torch::kFloat32))) return 1;

  // What does not fit is one error that lists everything, and nothing is changed.
  auto wrong = attzoo::tensors_under(tensors, layer);
  wrong.erase("ln_2.bias");
  wrong["attn.c_attn.weight"] = torch::zeros({sizes.d_model, 7});
  try {
    attzoo::load_state_dict(*block, wrong, attzoo::names::gpt2(), {.convert_dtype = true});
    return 1;
  } catch (const c10::Error& error) {
    std::cout << error.what_without_backtrace() << '\n';
  }

  attzoo::MultiHeadSelfAttention attn({.d_model = 8, .num_heads = 2});
  const auto out = torch::randn({8, 8});
  attzoo::load_state_dict(
      *attn, {{"qkv.weight", torch::randn({24, 8})}, {"out.weight", out}, {"rotary.freq", out}},
      own_names());
  if (!torch::equal(attn->w_o->weight, out)) return 1;
  if (attzoo::state_dict(*attn, own_names()).count("qkv.weight") == 0) return 1;

  if (!given) fs::remove_all(folder);
  return same ? 0 : 1;
}
