#pragma once
/// \file
/// ONNX's node test cases (tests/golden-onnx/convert.py) of recurrences, through recurrence() and
/// short_convolution(), and of attention. A case has the metadata `onnx`, `op` and `attributes`,
/// and tensors in.NAME and out.NAME by the names of the operator's schema.

#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/recurrence.hpp>
#include <attzoo/functional/short_convolution.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>

#include <cmath>
#include <string>
#include <utility>

#include "golden_onnx_attention.hpp"

namespace attzoo::testing {

inline bool is_onnx(const SafeTensors& file) { return file.metadata.count("onnx") > 0; }

/// LinearAttention: heads of queries share heads of keys, values and state, which recurrence() is
/// given for each of them.
inline OnnxResult onnx_linear_attention(const OnnxInputs& in, Fields& f) {
  const int64_t queries = f.integer("q_num_heads"), heads = f.integer("kv_num_heads");
  const std::string rule = f.need("update_rule").string();
  const double scale = f.number("scale", 0);
  f.ignore({"chunk_size"});  // how to compute it, not what
  const bool gated = rule == "gated" || rule == "gated_delta";
  const bool delta = rule == "delta" || rule == "gated_delta";
  TORCH_CHECK_VALUE(gated || delta || rule == "linear", "unknown update_rule ", rule);
  TORCH_CHECK_VALUE(in("decay").defined() == gated && in("beta").defined() == delta,
                    "decay and beta do not go with the update_rule ", rule);
  const auto of_queries = [&](const torch::Tensor& t) {  // [B, heads, ...]
    return t.repeat_interleave(queries / heads, 1);
  };
  const auto split = [](const torch::Tensor& t, int64_t into) {  // [B, T, into * D]
    return t.unflatten(2, {into, t.size(2) / into}).transpose(1, 2);
  };
  RecurrenceOptions o;
  if (scale != 0) o.scale = scale;
  if (gated) {
    const auto decay = of_queries(split(in("decay"), heads));
    o.decay = in("decay").size(2) == heads ? decay.squeeze(3) : decay;
  }
  if (delta) {  // of each head, or one for all
    const auto beta = in("beta").transpose(1, 2);
    o.beta = of_queries(beta.expand({-1, heads, -1}));
  }
  const auto state = in("past_state");
  if (state.defined()) {
    o.initial_state = of_queries(
        state.to(state.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32));
  }
  const auto y = recurrence(split(in("query"), queries), of_queries(split(in("key"), heads)),
                            of_queries(split(in("value"), heads)), o);
  return {{{"output", y.output.transpose(1, 2).flatten(2)},
           {"present_state", y.state.slice(1, 0, std::nullopt, queries / heads)}},
          in("query").size(1) + in("query").size(2) / queries};
}

/// CausalConvWithState, whose channels come first.
inline OnnxResult onnx_convolution(const OnnxInputs& in, Fields& f) {
  const std::string activation = f.need("activation").string();
  const bool silu = activation == "silu" || activation == "swish";
  TORCH_CHECK_VALUE(silu || activation == "none", "unknown activation ", activation);
  const auto turned = [](const torch::Tensor& t) { return t.defined() ? t.transpose(1, 2) : t; };
  const auto y = short_convolution(
      turned(in("input")), in("weight").squeeze(1),
      {.bias = in("bias"), .silu = silu, .initial_state = turned(in("past_state"))});
  return {{{"output", turned(y.output)}, {"present_state", turned(y.state)}}, in("weight").size(2)};
}

/// What a number of this dtype may be off: half a unit in the last place for itself and the other
/// half where it is rounded twice, and the rounding of sums of so many terms, in float32.
inline double onnx_tolerance(torch::ScalarType dtype, int64_t terms) {
  const double own = dtype == torch::kBFloat16 ? 0x1p-7 : dtype == torch::kHalf ? 0x1p-10 : 0;
  return own + 4 * 0x1p-23 * std::sqrt(static_cast<double>(terms));
}

/// Compares attzoo's outputs and ONNX's with each other, and both with attzoo's definition in
/// float64.
inline void check_onnx(const SafeTensors& file, Report& report) {
  const std::string op = file.metadata.at("op");
  const auto attributes = core::Json::parse(file.metadata.at("attributes"));
  NamedTensors in, out;
  for (const auto& [name, t] : file.tensors) {
    (name.starts_with("in.") ? in : out)[name.substr(name.find('.') + 1)] = t;
  }
  const auto run = [&](const OnnxInputs& inputs) {
    Fields f(attributes, "attributes");
    const auto y = [&] {
      if (op == "LinearAttention") return onnx_linear_attention(inputs, f);
      if (op == "CausalConvWithState") return onnx_convolution(inputs, f);
      if (op == "Attention") return onnx_attention(inputs, f);
      if (op == "FlexAttention") return onnx_flex_attention(inputs, f);
      if (op == "RotaryEmbedding") return onnx_rotary_embedding(inputs, f);
      throw Skipped{"attzoo has no counterpart of ONNX's " + op};
    }();
    f.check_all_asked();
    return y;
  };
  const OnnxInputs inputs(in);
  const auto got = run(inputs);
  const auto gold = [&] {
    const EagerReferenceGuard guard;
    return run(inputs.to(torch::kFloat64)).out;
  }();
  for (const auto& [name, want] : out) {
    const auto ours = got.out.at(name).to(want.scalar_type());
    const double tolerance = onnx_tolerance(want.scalar_type(), got.terms);
    report.compare(name + " against the definition", ours, gold.at(name), tolerance);
    report.compare(name + " of ONNX against the definition", want, gold.at(name), tolerance);
    report.compare(name, ours, want, 2 * tolerance);
  }
}

}  // namespace attzoo::testing
