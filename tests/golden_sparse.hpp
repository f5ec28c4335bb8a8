#pragma once
/// \file
/// Reference cases of block-sparse attention: BigBird's module and MoBA's operator.

#include <attzoo/big_bird.hpp>
#include <attzoo/moba.hpp>

#include <vector>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// out.o and the gradients of a case by what `f` computes of leaves; `given` by their names in the
/// file behind "in." or "param.".
inline void check_sparse(const ModernCase& c, Report& report, const NamedTensors& leaves,
                         const std::function<torch::Tensor()>& f) {
  const auto o = f();
  report.compare("out.o", o, c.at("out.o"), c.tolerance());
  std::vector<torch::Tensor> inputs;
  for (const auto& [name, t] : leaves) inputs.push_back(t);
  const auto grads = torch::autograd::grad({(o * c.at("cot.o")).sum()}, inputs);
  size_t i = 0;
  for (const auto& [name, t] : leaves) {
    report.compare("grad." + name, grads[i++], c.at("grad." + name), c.tolerance());
  }
}

/// Hugging Face's BigBirdBlockSparseAttention, which ends before w_o.
inline void check_big_bird(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  f.ignore({"B", "N", "case", "np_seed", "op", "pad_last", "random"});
  const int64_t E = f.integer("E");
  BigBirdSelfAttention m(BigBirdSelfAttentionOptions{.d_model = E,
                                                     .num_heads = f.integer("H"),
                                                     .block_size = f.integer("block"),
                                                     .num_random_blocks = f.integer("rand"),
                                                     .count_repeats = true,
                                                     .bias = true});
  f.check_all_asked();
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  m->to(x.scalar_type());
  NamedTensors leaves{{"hidden_states", x}};
  {
    const torch::NoGradGuard no_grad;
    torch::nn::init::eye_(m->w_o->weight);
    m->w_o->bias.zero_();
    for (const auto& [name, layer] : std::map<std::string, torch::nn::Linear>{
             {"query", m->w_q}, {"key", m->w_k}, {"value", m->w_v}}) {
      layer->weight.copy_(c.at("param." + name + ".weight"));
      layer->bias.copy_(c.at("param." + name + ".bias"));
      leaves["param." + name + ".weight"] = layer->weight;
      leaves["param." + name + ".bias"] = layer->bias;
    }
  }
  m->set_random_blocks(c.at("aux.rand_attn").to(torch::kInt64));
  AttentionInputs in;
  auto rows = torch::ones({}, x.options());
  if (c.has("in.keep")) {
    in.key_padding_mask = c.at("in.keep") != 0;
    rows = in.key_padding_mask.unsqueeze(-1).to(x.scalar_type());  // of padding are 0 there
  }
  check_sparse(c, report, leaves, [&] { return m(x, in).output * rows; });
}

/// fla's parallel_moba, on queries, keys and values: the module with projections that do nothing.
inline void check_moba(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  f.ignore({"B", "N", "Dk", "Dv", "case", "op", "cu_seqlens"});
  const int64_t H = f.integer("H"), chunk = f.integer("chunk"), top_k = f.integer("topk");
  f.check_all_asked();
  NamedTensors leaves;
  for (const auto* name : {"q", "k", "v"}) {
    leaves[name] = c.at(std::string("in.") + name).detach().clone().requires_grad_();
  }
  const auto &q = leaves["q"], &k = leaves["k"], &v = leaves["v"];
  const int64_t Dk = q.size(3), Dv = v.size(3), D = std::max(Dk, Dv), N = q.size(2), E = H * D;
  MixtureOfBlocksSelfAttention m(
      {.d_model = E,
       .num_heads = H,
       .block_size = chunk,
       .top_k = top_k == 1 ? N : top_k,  // of one chunk they make all
       .input_dim = 3 * E,
       .temperature = std::sqrt(static_cast<double>(Dk) / static_cast<double>(D))});
  m->to(q.scalar_type());
  {
    const torch::NoGradGuard no_grad;
    const auto one = torch::eye(3 * E, q.options().requires_grad(false));
    int64_t i = 0;
    for (const auto& layer : {m->w_q, m->w_k, m->w_v}) {
      layer->weight.copy_(one.slice(0, i * E, (i + 1) * E));
      ++i;
    }
    torch::nn::init::eye_(m->w_o->weight);
  }
  AttentionInputs in;
  if (c.has("in.cu_seqlens")) in.documents.offsets = c.at("in.cu_seqlens").to(torch::kInt64);
  check_sparse(c, report, leaves, [&] {
    std::vector<torch::Tensor> parts;
    for (const auto& t : {q, k, v}) {
      parts.push_back(torch::constant_pad_nd(t, {0, D - t.size(3)}).transpose(1, 2).flatten(2));
    }
    const auto o = m(torch::cat(parts, 2), in).output;
    return o.unflatten(2, {H, D}).slice(3, 0, Dv).transpose(1, 2);
  });
}

/// Whether it was such a case.
inline bool check_sparse_op(const ModernCase& c, Report& report) {
  if (c.op == "bigbird_block_sparse") {
    check_big_bird(c, report);
  } else if (c.op == "moba") {
    check_moba(c, report);
  } else {
    return false;
  }
  return true;
}

}  // namespace attzoo::testing
