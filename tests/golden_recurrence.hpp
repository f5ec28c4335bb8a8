#pragma once
/// \file
/// Reference cases of linear recurrences (golden_modern.hpp says what a case has), through
/// recurrence(): outputs, the last state, and all gradients, whole and in two parts.

#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/recurrence.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// The inputs of a case by name, as leaves.
class Leaves {
 public:
  explicit Leaves(const ModernCase& c) {
    for (const auto& [name, t] : c.under("in.")) all_[name] = t.detach().clone().requires_grad_();
  }
  bool has(const std::string& name) const { return all_.count(name) > 0; }
  torch::Tensor operator()(const std::string& name) const {
    const auto it = all_.find(name);
    return it == all_.end() ? torch::Tensor() : it->second;
  }
  torch::Tensor need(const std::string& name) const {
    TORCH_CHECK_VALUE(has(name), "the case has no input ", name);
    return all_.at(name);
  }
  const NamedTensors& all() const { return all_; }

 private:
  NamedTensors all_;
};

/// What a case computes: q, k, v and options of recurrence(), and the rest of its formula.
struct RecurrentCase {
  torch::Tensor q, k, v;
  RecurrenceOptions options = {};
  /// What is added to or made of the output, by name.
  std::function<NamedTensors(const RecurrenceResult&)> outputs = [](const auto& y) {
    return NamedTensors{{"o", y.output}, {"final_state", y.state}};
  };
};

/// Logs of a decay that does not depend on the input, [H].
inline torch::Tensor fixed_decay(const ModernCase& c, int64_t heads) {
  const auto h = torch::arange(heads, torch::kFloat64);
  if (c.op == "retention") return torch::log(1 - torch::exp2(-5 - h));
  Fields f(c.config, "config");
  const double layer = f.number("layer_idx", f.number("layer", 0));
  const double layers = f.number("num_layers", f.number("layers", 1));
  return -(8.0 / static_cast<double>(heads)) * (1 - layer / layers) * h;  // lightning
}

/// [B, H, n, features] -> n + 1 tokens, zeros before the first.
inline torch::Tensor a_token_later(const torch::Tensor& t) {
  return torch::constant_pad_nd(t, {0, 0, 1, 0});
}

/// o_t reads the state before the decay and the write of its token: that of the tokens before, and
/// of its own k and v as much as u says.
inline RecurrentCase rwkv6(const Leaves& in) {
  const auto r = in.need("r"), k = in.need("k"), v = in.need("v");
  RecurrentCase x{
      .q = torch::constant_pad_nd(r, {0, 0, 0, 1}), .k = a_token_later(k), .v = a_token_later(v)};
  x.options.decay = a_token_later(in.need("w"));
  const double scale = 1 / std::sqrt(static_cast<double>(r.size(3)));
  const auto own = scale * (r * in.need("u").unsqueeze(0).unsqueeze(2) * k).sum(-1, true) * v;
  x.outputs = [own](const auto& y) {
    return NamedTensors{{"o", y.output.slice(2, 0, own.size(2)) + own}, {"final_state", y.state}};
  };
  return x;
}

inline RecurrentCase mamba2(const ModernCase& c, const Leaves& in) {
  Fields f(c.config, "config");
  auto dt = torch::softplus(in.need("dt") + in.need("dt_bias").view({1, -1, 1}));
  if (const auto* limit = f.find("dt_limit")) {
    dt = dt.clamp(limit->array()[0].number(), limit->array()[1].number());
  }
  const auto x = in.need("x");
  RecurrentCase r{.q = in.need("C"), .k = in.need("B"), .v = x * dt.unsqueeze(-1)};
  r.options.decay = -in.need("A_log").exp().view({1, -1, 1}) * dt;
  r.options.scale = 1.0;
  const auto skip = in.need("D").view({1, -1, 1, 1}) * x;
  r.outputs = [skip](const auto& y) {
    return NamedTensors{{"y", y.output + skip}, {"final_state", y.state.mT()}};
  };
  return r;
}

/// M steps of the delta rule for each token, the first of which decays.
inline RecurrentCase delta_product(const Leaves& in) {
  const auto q = in.need("q"), k = in.need("k"), g = in("g");
  const int64_t M = k.size(2) / q.size(2);
  const auto last = [&](const torch::Tensor& t) {  // of M rows the last one is the token's
    return torch::constant_pad_nd(t.unsqueeze(3), {0, 0, M - 1, 0}).flatten(2, 3);
  };
  RecurrentCase x{.q = last(q), .k = k, .v = in.need("v")};
  x.options.beta = in.need("beta");
  x.options.scale = 1.0;
  if (g.defined()) {
    x.options.decay = torch::constant_pad_nd(g.unsqueeze(3), {0, M - 1}).flatten(2, 3);
  }
  x.outputs = [M](const auto& y) {
    return NamedTensors{{"o", y.output.slice(2, M - 1, std::nullopt, M)}, {"final_state", y.state}};
  };
  return x;
}

/// No heads: each feature is a head of one key and one value, which its own state is read by.
inline RecurrentCase hgrn(const Leaves& in) {
  const auto split = [](const torch::Tensor& t) { return t.transpose(1, 2).unsqueeze(-1); };
  const auto x = split(in.need("x"));
  RecurrentCase r{.q = torch::ones_like(x), .k = torch::ones_like(x), .v = x};
  r.options.decay = split(in.need("g"));
  r.options.scale = 1.0;
  if (in.has("initial_state"))
    r.options.initial_state = in("initial_state").view({x.size(0), -1, 1, 1});
  r.outputs = [](const auto& y) {
    return NamedTensors{{"o", y.output.squeeze(-1).transpose(1, 2)},
                        {"final_state", y.state.squeeze(-1).squeeze(-1)}};
  };
  return r;
}

/// The normaliser is a value of 1 in each token.
inline RecurrentCase normalized(const Leaves& in) {
  const auto v = in.need("v");
  const auto with = [](const torch::Tensor& t, const torch::Tensor& more) {
    return torch::cat({t, more}, -1);
  };
  RecurrentCase x{
      .q = in.need("q"), .k = in.need("k"), .v = with(v, torch::ones_like(v.slice(3, 0, 1)))};
  if (in.has("initial_state")) {
    x.options.initial_state = with(in("initial_state"), in.need("initial_z").unsqueeze(-1));
  }
  const int64_t E = v.size(3);
  x.outputs = [E](const auto& y) {
    const auto sums = y.output.slice(3, 0, E), z = y.output.slice(3, E);
    return NamedTensors{{"o", sums / (z + 1e-10)},
                        {"final_state", y.state.slice(3, 0, E)},
                        {"final_z", y.state.select(3, E)}};
  };
  return x;
}

/// The ops that are checked here.
inline const std::set<std::string>& recurrent_ops() {
  static const std::set<std::string> all{"retention",
                                         "simple_gla",
                                         "lightning",
                                         "gla",
                                         "delta_rule",
                                         "gated_delta_rule",
                                         "kda",
                                         "gated_delta_rule_qk_l2norm",
                                         "comba",
                                         "gdn2",
                                         "dplr_delta_rule",
                                         "iplr_delta_rule",
                                         "linear_attn",
                                         "rwkv6",
                                         "rwkv7",
                                         "mamba2_ssd",
                                         "hgrn",
                                         "gated_delta_product"};
  return all;
}

inline RecurrentCase read_recurrence(const ModernCase& c, const Leaves& in) {
  Fields f(c.config, "config");
  const auto* normalize = f.find("normalize");
  RecurrentCase x;
  if (c.op == "rwkv6") {
    x = rwkv6(in);
  } else if (c.op == "mamba2_ssd") {
    x = mamba2(c, in);
  } else if (c.op == "gated_delta_product") {
    x = delta_product(in);
  } else if (c.op == "hgrn") {
    return hgrn(in);
  } else if (normalize && normalize->boolean()) {
    return normalized(in);
  } else {
    x = {.q = in.has("r") ? in("r") : in.need("q"), .k = in.need("k"), .v = in.need("v")};
    x.options.decay = in.has("gk") ? in("gk") : in.has("w") && c.op == "rwkv7" ? in("w") : in("g");
    x.options.beta = in("beta");
  }
  x.options.initial_state = in("initial_state");
  if (c.op == "mamba2_ssd" && in.has("initial_state")) {
    x.options.initial_state = in("initial_state").mT();
  }
  if (c.op == "retention" || c.op == "lightning") x.options.decay = fixed_decay(c, x.v.size(1));
  if (c.op == "rwkv7") {
    x.options.a = in.need("a");
    x.options.b = in.need("b");
    x.options.scale = 1.0;
  }
  if (c.op == "dplr_delta_rule" || c.op == "iplr_delta_rule") {
    x.options.beta = torch::Tensor();
    x.options.a = in.need("alpha");
    x.options.b = in.need("beta");
  }
  if (c.op == "comba") x.options.erase = in.need("p");
  if (c.op == "gdn2") {
    x.options.erase = in.need("b") * x.k;
    x.v = in.need("w") * x.v;
  }
  if (c.op == "gated_delta_rule_qk_l2norm") {
    for (auto* t : {&x.q, &x.k}) *t = *t * torch::rsqrt((*t * *t).sum(-1, true) + 1e-6);
  }
  if (const auto* scale = f.find("scale")) x.options.scale = scale->number();
  return x;
}

/// The case in two calls, the second from the state of the first.
inline RecurrenceResult in_two(const RecurrentCase& x, int64_t split) {
  const int64_t n = x.v.size(2);
  RecurrenceResult joined{{}, x.options.initial_state};
  std::vector<torch::Tensor> outputs;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, split}, {split, n}}) {
    auto options = x.options;
    options.initial_state = joined.state;
    for (auto* t : {&options.decay, &options.beta, &options.erase, &options.a, &options.b}) {
      if (t->defined() && t->dim() > 1) *t = t->slice(2, begin, end);
    }
    const auto part = [&, b = begin, e = end](const torch::Tensor& t) { return t.slice(2, b, e); };
    const auto y = recurrence(part(x.q), part(x.k), part(x.v), options);
    outputs.push_back(y.output);
    joined.state = y.state;
  }
  joined.output = torch::cat(outputs, 2);
  return joined;
}

inline void check_recurrence(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const int64_t tokens = read_recurrence(c, Leaves(c)).v.size(2);
  const int64_t split = std::min(tokens, f.maybe_integer("split").value_or((tokens + 1) / 2));
  for (const bool whole : {true, false}) {
    const std::string prefix = whole ? "" : "in two parts: ";
    const Leaves in(c);
    const auto x = read_recurrence(c, in);
    const auto found = x.outputs(whole ? recurrence(x.q, x.k, x.v, x.options) : in_two(x, split));
    auto loss = torch::zeros({}, x.v.options());
    for (const auto& [name, want] : c.under("out.")) {
      const auto it = found.find(name);
      if (it == found.end()) {
        report.fail("out." + name + ": the checker does not know it");
        continue;
      }
      report.compare(prefix + "out." + name, it->second, want, c.tolerance());
      if (c.has("cot." + name)) loss = loss + (it->second * c.at("cot." + name)).sum();
    }
    if (!loss.requires_grad()) continue;
    loss.backward();
    for (const auto& [name, want] : c.under("grad.")) {
      report.compare(prefix + "grad." + name, in.need(name).grad(), want, c.tolerance());
    }
  }
}

}  // namespace attzoo::testing
