#pragma once
// Reference cases of whole decoders: prompts, a batch padded on the left, the tokens that greedy
// decoding gives, and the logits of each step. They go through attzoo_generate's model code.

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "examples/generate/models.hpp"
#include "golden_report.hpp"

namespace attzoo::testing {

/// A reference case of a decoder, of a safetensors file's tensors and metadata.
class DecodeCase {
 public:
  using Json = core::Json;
  using Tensors = std::map<std::string, torch::Tensor>;

  explicit DecodeCase(const SafeTensors& file)
      : tensors(file.tensors), options(Json::parse(file.metadata.at("config"))) {}

  /// What the checkpoint's config.json would say, of the case's options and of its weights.
  Json config() const {
    const auto family = options["fam"].string();
    Json::Object c{{"model_type", family}};
    if (family == "gpt2") {
      c["n_embd"] = options["E"];
      c["n_head"] = options["H"];
      c["n_inner"] = options["I"];
      c["n_layer"] = layers("param.transformer.h.");
      c["n_positions"] = at("param.transformer.wpe.weight").size(0);
      c["vocab_size"] = at("param.transformer.wte.weight").size(0);
      c["layer_norm_epsilon"] = either({"eps"}, 1e-5);
      return c;
    }
    const std::string first = "param.model.layers.0.";
    c["hidden_size"] = options["E"];
    c["num_attention_heads"] = options["H"];
    c["num_key_value_heads"] = options["Hkv"];
    c["head_dim"] = options["D"];
    c["intermediate_size"] = options["I"];
    c["num_hidden_layers"] = layers("param.model.layers.");
    c["vocab_size"] = at("param.model.embed_tokens.weight").size(0);
    c["max_position_embeddings"] = either({"max_position_embeddings"}, 4096);
    c["tie_word_embeddings"] = !has("param.lm_head.weight");
    c["rms_norm_eps"] = either({"eps"}, family == "gpt_oss" ? 1e-5 : 1e-6);
    c["rope_parameters"] = options["rope"];
    if (family != "qwen2" && family != "mistral") {
      c["attention_bias"] = has(first + "self_attn.o_proj.bias");
    }
    if (family == "llama") c["mlp_bias"] = has(first + "mlp.down_proj.bias");
    if (options.contains("window")) c["sliding_window"] = options["window"];
    if (options.contains("layer_types")) c["layer_types"] = options["layer_types"];
    if (family == "gpt_oss") {
      c["num_local_experts"] = options["experts"];
      c["num_experts_per_tok"] = either({"top_k", "experts_per_tok", "num_experts_per_tok"}, 2);
      c["swiglu_limit"] = either({"limit", "swiglu_limit"}, 7.0);
    }
    return c;
  }

  /// The weights by their upstream names.
  Tensors weights() const { return tensors_under(tensors, "param."); }

  /// The model, in float64.
  std::unique_ptr<generate::LanguageModel> model() const {
    auto made =
        std::make_unique<generate::LanguageModel>(core::parse_config(config(), "config.json"));
    made->to(torch::kFloat64);
    load_state_dict(*made, weights(), made->config.names);
    return made;
  }

  /// Tokens must be equal, logits right to 1e-9 of the largest.
  void check(Report& report) const {
    const torch::NoGradGuard no_grad;
    const auto decoder = model();
    for (int i = 0; has("in.prompt." + std::to_string(i)); ++i) {
      const auto index = std::to_string(i);
      const auto prefill = decode(*decoder, at("in.prompt." + index).unsqueeze(0), {},
                                  at("out.ids." + index).unsqueeze(0),
                                  at("out.logits." + index).unsqueeze(1), index, report);
      compare("prefill_logits." + index, prefill[0], at("out.prefill_logits." + index), report);
    }
    decode(*decoder, at("in.batch.input_ids"), at("in.batch.attention_mask") != 0,
           at("out.batch.ids"), at("out.batch.logits"), "batch", report);
  }

  /// How far logits are from the reference's in norms, where its tokens are read through caches of
  /// this type in float32, and how many of the likeliest tokens are the same, of how many.
  struct Rounded {
    double error;
    int64_t same, all;
  };
  Rounded with_caches_of(torch::ScalarType dtype) const {
    const torch::NoGradGuard no_grad;
    const auto decoder = model();
    decoder->to(torch::kFloat32);
    double difference = 0, norm = 0;
    Rounded result{};
    for (int i = 0; has("in.prompt." + std::to_string(i)); ++i) {
      const auto index = std::to_string(i);
      const auto prompt = at("in.prompt." + index).unsqueeze(0), ids = at("out.ids." + index),
                 logits = at("out.logits." + index);
      auto state = decoder->make_state(1, prompt.size(1) + ids.size(0), {.dtype = dtype});
      auto next = prompt;
      for (int64_t s = 0; s < ids.size(0); ++s) {
        const auto got = decoder->logits(decoder->forward(next, state)).select(1, -1)[0];
        difference += (got - logits[s]).square().sum().item<double>();
        norm += logits[s].square().sum().item<double>();
        result.same += got.argmax().item<int64_t>() == ids[s].item<int64_t>();
        ++result.all;
        next = ids[s].view({1, 1});
      }
    }
    result.error = std::sqrt(difference / norm);
    return result;
  }

  const torch::Tensor& at(const std::string& name) const { return tensors.at(name); }
  bool has(const std::string& name) const { return tensors.count(name) > 0; }

  Tensors tensors;
  Json options;

 private:
  static void compare(const std::string& what, const torch::Tensor& got, const torch::Tensor& want,
                      Report& report) {
    const auto largest = want.abs().max();  // becomes 1, and the allowance twice the tolerance
    report.compare(what, got / largest, want / largest, 5e-10);
  }

  /// Greedy decoding of a batch through caches against ids [B, steps] and logits [steps, B, vocab];
  /// the prompt's logits.
  static torch::Tensor decode(generate::LanguageModel& model, const torch::Tensor& prompt,
                              const torch::Tensor& real, const torch::Tensor& ids,
                              const torch::Tensor& logits, const std::string& name,
                              Report& report) {
    const int64_t B = prompt.size(0), steps = ids.size(1);
    auto state = model.make_state(B, prompt.size(1) + steps);
    const auto first = model.logits(model.forward(prompt, state, real));
    auto last = first.select(1, -1);
    for (int64_t s = 0; s < steps; ++s) {
      const auto what = name + " step " + std::to_string(s);
      compare("logits." + what, last, logits[s], report);
      const auto next = last.argmax(-1);
      if (!torch::equal(next, ids.select(1, s))) {
        report.fail("ids." + what + " differ");
        break;  // what follows continues another text
      }
      if (s + 1 < steps) {
        last = model.logits(model.forward(next.unsqueeze(1), state)).select(1, -1);
      }
    }
    return first;
  }

  /// How many layers have weights.
  int64_t layers(const std::string& prefix) const {
    int64_t n = 0;
    while (true) {
      const auto it = tensors.lower_bound(prefix + std::to_string(n) + ".");
      if (it == tensors.end() || !it->first.starts_with(prefix + std::to_string(n) + ".")) return n;
      ++n;
    }
  }
  /// The first of these options that the case has.
  Json either(const std::vector<const char*>& names, Json otherwise) const {
    for (const auto* name : names) {
      if (options.contains(name)) return options[name];
    }
    return otherwise;
  }
};

}  // namespace attzoo::testing
