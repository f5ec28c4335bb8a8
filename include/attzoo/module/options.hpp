#pragma once
/// \file
/// The names of all options, in their one order: which of them are settled when a module is made,
/// since its parameters and layers are as they say, and how they are printed. All others are read
/// at each call.

#include <c10/util/Exception.h>

#include <ostream>
#include <string>
#include <string_view>
#include <type_traits>

namespace attzoo::core {

/// f(name, whether it is settled, a's, b's) for every option, of those that O has. An aggregate of
/// a mechanism that is not in the zoo has these meanings, too.
template <class O, class F>
void for_each_option(const O& a, const O& b, F&& f) {
#define ATTZOO_OPTION(name, is_settled) \
  if constexpr (requires { a.name; }) f(#name, is_settled, a.name, b.name)
  ATTZOO_OPTION(d_model, true);
  ATTZOO_OPTION(num_heads, true);
  ATTZOO_OPTION(num_query_heads, true);
  ATTZOO_OPTION(num_kv_heads, true);
  ATTZOO_OPTION(num_value_heads, true);  // recurrences
  ATTZOO_OPTION(value_head_dim, true);
  ATTZOO_OPTION(rope_dim, true);  // latent attention
  ATTZOO_OPTION(kv_rank, true);
  ATTZOO_OPTION(q_rank, true);
  ATTZOO_OPTION(state_size, true);
  ATTZOO_OPTION(num_groups, true);
  ATTZOO_OPTION(conv_size, true);
  ATTZOO_OPTION(conv_bias, true);
  ATTZOO_OPTION(half_pairs, true);
  ATTZOO_OPTION(norm_weight, true);
  ATTZOO_OPTION(layer, false);
  ATTZOO_OPTION(num_layers, false);
  ATTZOO_OPTION(decay_rank, true);
  ATTZOO_OPTION(rate_rank, true);
  ATTZOO_OPTION(gate_rank, true);
  ATTZOO_OPTION(gate_normalizer, false);
  ATTZOO_OPTION(dt_min, false);
  ATTZOO_OPTION(dt_max, false);
  ATTZOO_OPTION(dilation_rate, false);
  ATTZOO_OPTION(num_sinks, true);
  ATTZOO_OPTION(window_size, false);
  ATTZOO_OPTION(cache_positions, false);
  ATTZOO_OPTION(kernel_size, false);  // of a grid, as the next three
  ATTZOO_OPTION(dilation, false);
  ATTZOO_OPTION(is_causal, false);
  ATTZOO_OPTION(grid, false);
  ATTZOO_OPTION(global_projections, true);
  ATTZOO_OPTION(block_size, false);
  ATTZOO_OPTION(num_random_blocks, false);
  ATTZOO_OPTION(count_repeats, false);
  ATTZOO_OPTION(top_k, false);
  ATTZOO_OPTION(overlap, false);
  ATTZOO_OPTION(seq_len, true);  // Linformer
  ATTZOO_OPTION(num_projected, true);
  ATTZOO_OPTION(one_kv_head, true);
  ATTZOO_OPTION(share_kv, true);
  ATTZOO_OPTION(num_landmarks, false);  // Nystromformer
  ATTZOO_OPTION(inverse_steps, false);
  ATTZOO_OPTION(batch_inverse, false);
  ATTZOO_OPTION(count_padding, false);
  ATTZOO_OPTION(conv_kernel_size, true);
  ATTZOO_OPTION(num_features, true);  // Performer
  ATTZOO_OPTION(relu_kernel, true);
  ATTZOO_OPTION(equal_norms, true);
  ATTZOO_OPTION(feature_seed, true);
  ATTZOO_OPTION(feature_eps, true);
  ATTZOO_OPTION(block_count, false);
  ATTZOO_OPTION(compression, true);
  ATTZOO_OPTION(index_heads, true);
  ATTZOO_OPTION(index_dim, true);
  ATTZOO_OPTION(feature_dim, true);
  ATTZOO_OPTION(remainder, false);
  ATTZOO_OPTION(eps, false);
  ATTZOO_OPTION(bucket_size, false);
  ATTZOO_OPTION(num_hashes, true);  // LSH's caches hash as the module did when they were made
  ATTZOO_OPTION(num_buckets, true);
  ATTZOO_OPTION(exact_buckets, true);
  ATTZOO_OPTION(max_distance, false);
  ATTZOO_OPTION(bidirectional, false);
  ATTZOO_OPTION(has_relative_bias, true);
  ATTZOO_OPTION(scaled, true);
  ATTZOO_OPTION(seed, true);
  ATTZOO_OPTION(gate_hidden, true);
  ATTZOO_OPTION(gate_bias, true);
  ATTZOO_OPTION(forget_bias, true);
  ATTZOO_OPTION(mlp_hidden, true);  // transformer blocks
  ATTZOO_OPTION(norm, true);
  ATTZOO_OPTION(norm_eps, true);
  ATTZOO_OPTION(norm_placement, true);
  ATTZOO_OPTION(mlp_gated, true);
  ATTZOO_OPTION(mlp_bias, true);
  ATTZOO_OPTION(input_dim, true);
  ATTZOO_OPTION(context_dim, true);
  ATTZOO_OPTION(
      dropout, requires { a.gate_hidden; });  // of a gate it is a layer
  ATTZOO_OPTION(bias, true);
  ATTZOO_OPTION(temperature, true);
  ATTZOO_OPTION(rope, true);
  ATTZOO_OPTION(causal, false);
  ATTZOO_OPTION(head_dim, true);
  ATTZOO_OPTION(out_bias, true);
  ATTZOO_OPTION(key_bias, true);
  ATTZOO_OPTION(qk_norm, true);
  ATTZOO_OPTION(qk_norm_eps, true);
  ATTZOO_OPTION(softcap, true);
  ATTZOO_OPTION(sinks, true);
  ATTZOO_OPTION(output_gate, true);
  ATTZOO_OPTION(sliding_window, true);
  ATTZOO_OPTION(absorb, false);
  ATTZOO_OPTION(python_slopes, true);
  ATTZOO_OPTION(python_blend, false);
  ATTZOO_OPTION(python_weights, false);
#undef ATTZOO_OPTION
}

/// An option's value in an error and in print.
template <class T>
std::string told(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<int>(value));
  } else if constexpr (requires { value.has_value(); }) {
    return value ? told(*value) : "none";
  } else if constexpr (requires { value.begin(); }) {
    std::string all;
    for (typename T::value_type one : value) all += (all.empty() ? "{" : ", ") + told(one);
    return all.empty() ? "none" : all + "}";
  } else {
    return c10::str(value);
  }
}

/// Throws c10::ValueError if an option that was settled when the module was `made` is another one
/// now.
template <class O>
void check_settled(std::string_view who, const O& made, const O& now) {
  for_each_option(
      made, now, [&](const char* option, bool is_settled, const auto& was, const auto& is) {
        TORCH_CHECK_VALUE(!is_settled || was == is, who, ": ", option,
                          " is settled when the module is made: it was ", told(was), ", now it is ",
                          told(is), "; make another module of these options");
      });
}

/// ", name=value" for each option but d_model that has a value; of those behind `causal` where it
/// is not the default.
template <class O>
void print_options(std::ostream& stream, const O& options) {
  bool all = true;
  for_each_option(options, O(),
                  [&](std::string_view name, bool, const auto& is, const auto& plain) {
                    const auto value = told(is);
                    if (name != "d_model" && value != "none" && (all || !(is == plain))) {
                      stream << ", " << name << "=" << value;
                    }
                    all = all && name != "causal";
                  });
}

}  // namespace attzoo::core
