#pragma once
/// \file
/// Builds any mechanism from the Python constructor arguments that a golden case carries as JSON.

#include <attzoo/attzoo.hpp>

#include <map>
#include <optional>
#include <set>
#include <string>

#include "support/any_attention.hpp"

namespace attzoo::testing {

using core::Json;

/// A mechanism that this build of the checker does not know.
struct UnknownMechanism {
  std::string name;
};

/// Reads fields of a config and notices those that nobody read.
class ConfigReader {
 public:
  explicit ConfigReader(const Json& json) : json_(json) {}

  template <class T>
  void read(const char* name, T& field) {
    if (!json_.contains(name)) return;
    read_.insert(name);
    const Json& value = json_[name];
    if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
      if (!value.is_null()) field = value.integer();
    } else if constexpr (std::is_same_v<T, double>) {
      field = value.number();
    } else {
      field = value.as<T>();
    }
  }

  /// The fields that most mechanisms share.
  template <class Options>
  void read_common(Options& o) {
    if constexpr (requires { o.d_model; }) read("d_model", o.d_model);
    if constexpr (requires { o.num_heads; }) read("num_heads", o.num_heads);
    if constexpr (requires { o.temperature; }) read("temperature", o.temperature);
    if constexpr (requires { o.rope; }) read("rope", o.rope);
    if constexpr (requires { o.bias; }) read("bias", o.bias);
    read("input_dim", o.input_dim);
    read("dropout", o.dropout);
  }

  void check_all_read() const {
    for (const auto& [key, value] : json_.object()) {
      TORCH_CHECK_VALUE(read_.count(key), "golden config: unknown field ", key);
    }
  }

 private:
  const Json& json_;
  std::set<std::string> read_;
};

AnyAttention build_module(const std::string& mechanism, const Json& config,
                          const std::set<std::string>& quirks);

inline AnyAttention build_inner(const Json& wrapped, const std::set<std::string>& quirks) {
  return build_module(wrapped["mechanism"].string(), wrapped["config"], quirks);
}

template <class Module, class Options, class ReadMore>
AnyAttention build(const Json& config, ReadMore&& read_more) {
  Options options;
  ConfigReader reader(config);
  reader.read_common(options);
  read_more(reader, options);
  reader.check_all_read();
  return erase(Module(options));
}

inline GateOptions read_gate(const Json& config, std::initializer_list<const char*> inner) {
  GateOptions options;
  ConfigReader reader(config);
  reader.read_common(options);
  reader.read("gate_hidden", options.gate_hidden);
  reader.read("gate_bias", options.gate_bias);
  Json::Object ignored;
  for (const char* name : inner) reader.read(name, ignored);
  reader.check_all_read();
  return options;
}

inline AnyAttention build_module(const std::string& mechanism, const Json& config,
                                 const std::set<std::string>& quirks) {
  if (mechanism == "vanilla") {
    return build<VanillaSelfAttention, VanillaSelfAttentionOptions>(config, [](auto&, auto&) {});
  }
  if (mechanism == "mhsa") {
    return build<MultiHeadSelfAttention, MultiHeadSelfAttentionOptions>(config,
                                                                        [](auto&, auto&) {});
  }
  if (mechanism == "grouped") {
    return build<GroupedSelfAttention, GroupedSelfAttentionOptions>(config, [](auto& r, auto& o) {
      r.read("num_query_heads", o.num_query_heads);
      r.read("num_kv_heads", o.num_kv_heads);
    });
  }
  if (mechanism == "local") {
    return build<LocalSelfAttention, LocalSelfAttentionOptions>(
        config, [](auto& r, auto& o) { r.read("window_size", o.window_size); });
  }
  if (mechanism == "dilated") {
    return build<DilatedSelfAttention, DilatedSelfAttentionOptions>(
        config, [](auto& r, auto& o) { r.read("dilation_rate", o.dilation_rate); });
  }
  if (mechanism == "block") {
    return build<BlockSelfAttention, BlockSelfAttentionOptions>(config, [&](auto& r, auto& o) {
      r.read("block_size", o.block_size);
      r.read("overlap", o.overlap);
      o.python_blend = quirks.count("block_overlap_blend") > 0;
    });
  }
  if (mechanism == "alibi") {
    return build<ALiBiSelfAttention, ALiBiSelfAttentionOptions>(
        config, [](auto& r, auto& o) { r.read("max_seq_len", o.max_seq_len); });
  }
  if (mechanism == "linear") {
    return build<LinearSelfAttention, LinearSelfAttentionOptions>(config, [](auto& r, auto& o) {
      r.read("feature_dim", o.feature_dim);
      r.read("eps", o.eps);
      o.num_heads = 1;
      o.python_weights = true;
    });
  }
  if (mechanism == "lsh") {
    return build<LSHSelfAttention, LSHSelfAttentionOptions>(config, [](auto& r, auto& o) {
      r.read("bucket_size", o.bucket_size);
      r.read("num_hashes", o.num_hashes);
      o.exact_buckets = true;
    });
  }
  if (mechanism == "longformer") {
    return build<LongformerSelfAttention, LongformerSelfAttentionOptions>(
        config, [](auto& r, auto& o) { r.read("window_size", o.window_size); });
  }
  if (mechanism == "gated") {
    const auto inner = build_inner(config["attn"], quirks);
    return erase(GatedSelfAttention(inner, read_gate(config, {"attn"})));
  }
  if (mechanism == "combined") {
    const auto a = build_inner(config["attn_a"], quirks), b = build_inner(config["attn_b"], quirks);
    return erase(CombinedAttention(a, b, read_gate(config, {"attn_a", "attn_b"})));
  }
  throw UnknownMechanism{mechanism};
}

}  // namespace attzoo::testing
