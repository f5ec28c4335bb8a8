#pragma once
/// \file
/// Reference cases of attention to chosen keys and blocks (golden_modern.hpp says what a case has).

#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/indexer.hpp>
#include <attzoo/functional/native_sparse.hpp>

#include <string>
#include <vector>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// Numbers in any order, -1 at the begin.
inline torch::Tensor as_set(const torch::Tensor& numbers, int64_t count) {
  const auto sorted = std::get<0>(numbers.to(torch::kInt64).sort(-1));
  return torch::constant_pad_nd(sorted, {std::max<int64_t>(0, count - sorted.size(-1)), 0}, -1);
}

/// dsa and nsa; false for other ops.
inline bool check_chosen_keys(const ModernCase& c, Report& report) {
  if (c.op != "dsa" && c.op != "nsa") return false;
  Fields f(c.config, "config");
  f.ignore({"op", "case", "f32", "B", "H", "N", "Hkv", "HQ", "HI", "DI", "Dk", "Dv"});
  std::map<std::string, torch::Tensor> leaf;
  for (const auto& [name, t] : c.under("in.")) {
    leaf[name] = c.has("grad." + name) ? t.detach().clone().requires_grad_() : t;
  }
  const auto in = [&](const std::string& name) {
    const auto it = leaf.find(name);
    return it == leaf.end() ? torch::Tensor() : it->second;
  };
  std::optional<double> scale;
  if (const auto* given = f.find("scale")) scale = given->number();
  torch::Tensor output, chosen, want;
  if (c.op == "dsa") {
    const Indexer indexer{in("q_idx"), in("k_idx"), in("w_idx")};
    chosen = choose_keys(indexer, f.integer("topk"), causal());
    want = c.at("out.indices").unsqueeze(1);
    output =
        chosen_attention(in("q"), in("k"), in("v"), {.index = chosen}, {}, {}, {.scale = scale})
            .output;
  } else {
    const auto result =
        native_sparse_attention(in("q"), in("k"), in("v"),
                                {.block_size = f.integer("block_size"),
                                 .block_count = f.integer("block_counts"),
                                 .window_size = f.maybe_integer("window").value_or(0),
                                 .gate_compressed = in("g_cmp"),
                                 .gate_selected = in("g_slc"),
                                 .gate_window = in("g_swa"),
                                 .scale = scale});
    output = result.output;
    chosen = result.blocks;
    want = c.at("aux.block_indices");
  }
  f.check_all_asked();
  const int64_t most = std::max(chosen.size(-1), want.size(-1));
  report.expect(torch::equal(as_set(chosen, most), as_set(want, most)), "others were chosen");
  report.compare("o", output, c.at("out.o"), c.tolerance());
  (output * c.at("cot.o")).sum().backward();
  for (const auto& [name, t] : c.under("grad.")) {
    report.compare("grad." + name, leaf.at(name).grad(), t, c.tolerance());
  }
  return true;
}

}  // namespace attzoo::testing
