#pragma once
/// \file
/// Builds any mechanism from the Python constructor arguments that a golden case carries as JSON.

#include <attzoo/io/json.hpp>

#include <map>
#include <optional>
#include <set>
#include <string>

#include "support/any_attention.hpp"
#include "support/mechanisms.hpp"

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
    if constexpr (std::is_same_v<T, Rope>) {
      field = value.boolean();
    } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
      if (!value.is_null()) field = value.integer();
    } else if constexpr (std::is_same_v<T, double>) {
      field = value.number();
    } else {
      field = value.as<T>();
    }
  }

  /// Every field that the Python library has a name for, where `o` has it.
  template <class Options>
  void read_all(Options& o) {
#define ATTZOO_READ(field) \
  if constexpr (requires { o.field; }) read(#field, o.field)
    ATTZOO_READ(d_model);
    ATTZOO_READ(num_heads);
    ATTZOO_READ(num_query_heads);
    ATTZOO_READ(num_kv_heads);
    ATTZOO_READ(input_dim);
    ATTZOO_READ(feature_dim);
    ATTZOO_READ(dropout);
    ATTZOO_READ(bias);
    ATTZOO_READ(temperature);
    ATTZOO_READ(rope);
    ATTZOO_READ(window_size);
    ATTZOO_READ(dilation_rate);
    ATTZOO_READ(block_size);
    ATTZOO_READ(overlap);
    ATTZOO_READ(bucket_size);
    ATTZOO_READ(num_hashes);
    ATTZOO_READ(eps);
    ATTZOO_READ(gate_hidden);
    ATTZOO_READ(gate_bias);
#undef ATTZOO_READ
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

/// Where attzoo has a way of its own, the Python library's.
template <class Options>
void choose_python(Options& o, const std::set<std::string>& quirks) {
  if constexpr (requires { o.python_blend; }) {
    o.python_blend = quirks.count("block_overlap_blend") > 0;
  }
  if constexpr (requires { o.exact_buckets; }) o.exact_buckets = true;
  if constexpr (requires { o.python_weights; }) {
    o.python_weights = true;
    o.num_heads = 1;
  }
}

/// The options of a case; the fields named in `inner` are read elsewhere.
template <class Options>
Options read_options(const Json& config, const std::set<std::string>& quirks,
                     std::initializer_list<const char*> inner = {}) {
  Options options;
  ConfigReader reader(config);
  reader.read_all(options);
  Json::Object ignored;
  for (const char* name : inner) reader.read(name, ignored);
  int64_t no_limit = 0;
  reader.read("max_seq_len", no_limit);  // of ALiBi, whose bias is computed where it is used
  reader.check_all_read();
  choose_python(options, quirks);
  return options;
}

/// Throws UnknownMechanism.
inline AnyAttention build_module(const std::string& mechanism, const Json& config,
                                 const std::set<std::string>& quirks) {
  const auto inner = [&](const char* field) {
    return build_module(config[field]["mechanism"].string(), config[field]["config"], quirks);
  };
  const std::string wanted = mechanism == "mhsa" ? "multi_head" : mechanism;
  AnyAttention built{nullptr};
  for_each_mechanism([&](const std::string& name, Cost, auto make) {
    if (name != wanted) return;
    using Module = decltype(make(Size()));
    using Config = typename Module::ContainedType::Config;
    if constexpr (requires(Config c) { c.attn; }) {
      built = erase(gated(inner("attn"), read_options<GateOptions>(config, quirks, {"attn"})));
    } else if constexpr (requires(Config c) { c.attn_a; }) {
      built = erase(combined(inner("attn_a"), inner("attn_b"),
                             read_options<GateOptions>(config, quirks, {"attn_a", "attn_b"})));
    } else {
      built = erase(Module(read_options<Config>(config, quirks)));
    }
  });
  if (built.is_empty()) throw UnknownMechanism{mechanism};
  return built;
}

}  // namespace attzoo::testing
