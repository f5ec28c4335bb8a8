#pragma once
/// \file
/// Options that are settled when a module is made, since its parameters and layers are as they say.
/// All others are read at each call.

#include <attzoo/config.hpp>

#include <c10/util/StringUtil.h>

#include <string>
#include <string_view>
#include <type_traits>

namespace attzoo::core {

/// f(name, a's, b's) for every option that is settled, of those that O has. An aggregate of a
/// mechanism that is not in the zoo has these meanings, too.
template <class O, class F>
void for_each_settled(const O& a, const O& b, F&& f) {
#define ATTZOO_SETTLED(name) \
  if constexpr (requires { a.name; }) f(#name, a.name, b.name)
  ATTZOO_SETTLED(d_model);
  ATTZOO_SETTLED(input_dim);
  ATTZOO_SETTLED(bias);
  ATTZOO_SETTLED(num_heads);
  ATTZOO_SETTLED(num_query_heads);
  ATTZOO_SETTLED(num_kv_heads);
  ATTZOO_SETTLED(temperature);
  ATTZOO_SETTLED(rope);
  ATTZOO_SETTLED(head_dim);
  ATTZOO_SETTLED(out_bias);
  ATTZOO_SETTLED(qk_norm);
  ATTZOO_SETTLED(qk_norm_eps);
  ATTZOO_SETTLED(softcap);
  ATTZOO_SETTLED(sinks);
  ATTZOO_SETTLED(output_gate);
  ATTZOO_SETTLED(sliding_window);
  ATTZOO_SETTLED(feature_dim);  // linear
  ATTZOO_SETTLED(num_hashes);   // LSH, whose caches hash as the module did when they were made
  ATTZOO_SETTLED(exact_buckets);
  ATTZOO_SETTLED(seed);
  ATTZOO_SETTLED(num_buckets);
  ATTZOO_SETTLED(python_slopes);       // ALiBi
  ATTZOO_SETTLED(global_projections);  // Longformer
  ATTZOO_SETTLED(gate_hidden);         // gates, whose dropout is a layer
  ATTZOO_SETTLED(gate_bias);
  if constexpr (requires { a.gate_hidden; }) ATTZOO_SETTLED(dropout);
  ATTZOO_SETTLED(mlp_hidden);  // transformer blocks
  ATTZOO_SETTLED(norm);
  ATTZOO_SETTLED(norm_eps);
  ATTZOO_SETTLED(norm_placement);
  ATTZOO_SETTLED(mlp_gated);
  ATTZOO_SETTLED(mlp_bias);
#undef ATTZOO_SETTLED
}

/// An option's value in an error.
template <class T>
std::string told(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<int>(value));
  } else if constexpr (requires { value.has_value(); }) {
    return value ? told(*value) : "none";
  } else {
    return c10::str(value);
  }
}

/// Throws c10::ValueError.
[[noreturn]] ATTZOO_API void throw_unsettled(std::string_view who, std::string_view option,
                                             const std::string& was, const std::string& is);

/// Throws c10::ValueError if an option that was settled when the module was `made` is another one
/// now.
template <class O>
void check_settled(std::string_view who, const O& made, const O& now) {
  for_each_settled(made, now, [&](const char* option, const auto& was, const auto& is) {
    if (!(was == is)) throw_unsettled(who, option, told(was), told(is));
  });
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/settled.ipp>
#endif
