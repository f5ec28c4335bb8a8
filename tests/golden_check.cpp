// golden_check DIR: runs every case of a folder of reference cases through the public API and
// compares outputs, weights and all gradients. A case is a safetensors file whose metadata name the
// mechanism, its constructor arguments and the tensors of the call, or, if they have an `op`, a
// public implementation of a model's layer (golden_modern.hpp), of a decoder (golden_decode.hpp) or
// an operator of ONNX (golden_onnx.hpp).
//
// A line for every failing case, a table of worst error / allowance, and `N passed, N failed,
// N skipped`. Exit status 1 if a case failed or there was none, 2 for a wrong call.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>

#include "golden_decode.hpp"
#include "golden_lowrank.hpp"
#include "golden_mla.hpp"
#include "golden_modern.hpp"
#include "golden_modules.hpp"
#include "golden_nsa.hpp"
#include "golden_onnx.hpp"
#include "golden_recurrence.hpp"
#include "golden_recurrent_modules.hpp"
#include "golden_report.hpp"
#include "golden_scores.hpp"
#include "golden_sparse.hpp"

namespace attzoo::testing {
namespace {

struct Case {
  std::string name, mechanism, dtype;
  Json config;
  std::set<std::string> quirks;
  NamedTensors t;

  bool has(const std::string& tensor) const { return t.count(tensor) > 0; }
  const torch::Tensor& at(const std::string& tensor) const { return t.at(tensor); }
  bool quirk(const char* tag) const { return quirks.count(tag) > 0; }
};

double tolerance(const Case& c) { return c.dtype == "float64" ? 1e-12 : 1e-5; }
double parameter_tolerance(const Case& c) { return c.dtype == "float64" ? 1e-12 : 5e-5; }

// ---- modules ------------------------------------------------------------------------------------

void load_parameters(AnyAttention& module, const Case& c) {
  std::map<std::string, torch::Tensor> state;
  std::map<std::string, std::string> erased;
  for (const auto& [name, tensor] : state_dict(*module)) erased[plain_name(name)] = name;
  for (const auto& [name, tensor] : c.t) {
    if (!name.starts_with("param.")) continue;
    const auto plain = name.substr(6);
    const auto it = erased.find(plain);
    state[it == erased.end() ? plain : it->second] = tensor;
  }
  if (c.dtype == "float64") module->to(torch::kFloat64);
  load_state_dict(*module, state);
}

/// Hashes with the vectors that the Python library drew.
void set_projections(AnyAttention& module, const Case& c) {
  std::vector<torch::Tensor> projections;
  for (int r = 0; c.has("projection." + std::to_string(r)); ++r) {
    projections.push_back(c.at("projection." + std::to_string(r)));
  }
  if (projections.empty()) return;
  for (const auto& part : module->modules()) {
    if (auto* lsh = dynamic_cast<LSHSelfAttentionImpl*>(part.get())) {
      lsh->set_projections(projections);
    }
  }
}

/// A floating mask is added in every mechanism; the Python library's local one reads it as a bool.
/// What it should give: multi-head attention under the window and the floats.
void check_local_float_mask(const Case& c, Report& report) {
  Json::Object config = c.config.object();
  const int64_t half = config.at("window_size").integer() / 2;
  config.erase("window_size");
  auto dense = build_module("mhsa", config, {});
  auto local = build_module("local", c.config, {});
  load_parameters(dense, c);
  load_parameters(local, c);
  const auto& x = c.at("x");
  const int64_t n = x.size(1);
  const auto outside = create_local_mask(n, 2 * half).logical_not();
  auto mask = c.at("mask").to(x.scalar_type());
  if (mask.dim() == 1) mask = mask.expand({n, n});
  const auto want = dense->forward(x, {.mask = mask.masked_fill(outside, -INFINITY)});
  const auto got = local->forward(x, {.mask = mask});
  report.compare("out", got.output, want.output, tolerance(c));
  report.compare("weights", got.weights, want.weights, tolerance(c));
}

bool has_linear(const Case& c) {
  return c.mechanism == "linear" ||
         c.config.dump().find("\"mechanism\":\"linear\"") != std::string::npos;
}

/// A mask over the keys alone, [S] or [B, S], which Python's linear attention multiplies with the
/// keys, and the others add to the scores or, if it is bool, mask with.
bool place_key_mask(AnyAttention& module, const Case& c, const torch::Tensor& x,
                    AttentionInputs& inputs, Report& report) {
  const auto& mask = c.at("mask");
  const int64_t B = x.size(0), S = x.size(1);
  report.expect_error("key_padding_mask", [&] { module->forward(x, {.mask = mask}); });
  // The Python library's blocks drop it without a word.
  if (c.mechanism == "block" && S > c.config["block_size"].integer()) return true;
  if (mask.is_floating_point() && !has_linear(c)) {
    inputs.mask = mask.view({1, S});
    return true;
  }
  if (mask.scalar_type() != torch::kBool) {
    report.expect_error("kBool", [&] {
      module->forward(x, {.key_padding_mask = mask.expand({B, S})});
    });
    // As a factor it masks if it is 0 or 1; any other has no counterpart.
    if (!torch::logical_or(mask == 0, mask == 1).all().item<bool>()) return false;
  }
  inputs.key_padding_mask = mask.to(torch::kBool).expand({B, S});
  return true;
}

/// The mask of a case in the place where attzoo takes it; false if the case ends with an error.
bool place_mask(AnyAttention& module, const Case& c, const torch::Tensor& x,
                AttentionInputs& inputs, Report& report) {
  if (c.has("global_attention")) inputs.global_attention = c.at("global_attention");
  if (!c.has("mask")) return true;
  const auto& mask = c.at("mask");
  const auto call = [&] { module->forward(x, {.mask = mask}); };
  if (c.quirk("linear_mask_diagonal_only")) {
    report.expect_error("key_padding_mask", call);
    return false;
  }
  if (has_linear(c) && mask.dim() <= 2) return place_key_mask(module, c, x, inputs, report);
  if (!mask.is_floating_point() && mask.scalar_type() != torch::kBool) {
    report.expect_error("kBool", call);
    return false;
  }
  if (mask.dim() == 1) return place_key_mask(module, c, x, inputs, report);
  inputs.mask = mask;
  return true;
}

/// Where a row has nothing to attend to the Python library gives NaN. In one softmax attzoo's
/// output is w_o's bias, or 0; in rounds, blends and gates, the rest of the sum.
torch::Tensor wanted_output(const Case& c, const torch::Tensor& got) {
  const auto& want = c.at("out");
  if (!c.quirk("nan_rows")) return want;
  auto fill = torch::zeros_like(want);
  if (c.mechanism == "lsh" || c.mechanism == "gated" || c.mechanism == "combined") {
    fill = got.detach();
  } else if (c.has("param.w_o.bias")) {
    fill = c.at("param.w_o.bias").expand_as(want);
  }
  return torch::where(want.isnan(), fill, want);
}

void check_gradients(const Case& c, AnyAttention& module, const torch::Tensor& x, Report& report) {
  report.compare("grad.x", x.grad(), c.at("grad.x"), tolerance(c));
  std::set<std::string> seen;
  for (const auto& p : module->named_parameters()) {
    const auto name = "grad.param." + plain_name(p.key());
    seen.insert(name);
    if (c.has(name)) {
      report.compare(name, p.value().grad(), c.at(name), parameter_tolerance(c));
    } else {
      report.fail(name + ": the case has no such gradient");
    }
  }
  for (const auto& [name, tensor] : c.t) {
    report.expect(!name.starts_with("grad.param.") || seen.count(name),
                  name + ": the module has no such parameter");
  }
}

void check_module(const Case& c, Report& report) {
  if (c.quirk("block_silent_normalisation")) {
    return report.expect_error("BlockSelfAttention",
                               [&] { build_module(c.mechanism, c.config, c.quirks); });
  }
  if (c.quirk("local_nonbool_cast_to_bool") && c.at("mask").is_floating_point()) {
    return check_local_float_mask(c, report);
  }
  auto module = build_module(c.mechanism, c.config, c.quirks);
  load_parameters(module, c);
  set_projections(module, c);
  module->eval();
  const auto x = c.at("x").detach().clone().requires_grad_();
  AttentionInputs inputs;
  if (!place_mask(module, c, x, inputs, report)) return;

  const auto result = module->forward(x, inputs);
  report.expect(result.output.isfinite().all().item<bool>(), "out: not finite");
  report.compare("out", result.output, wanted_output(c, result.output), tolerance(c));
  if (c.quirk("nan_rows") && c.mechanism == "lsh") return;  // a round's NaN hides the others
  report.compare("weights", result.weights, c.at("weights"), tolerance(c));
  if (c.has("stored_weights") && c.mechanism != "combined") {
    report.compare("head_mean", result.weights.head_mean(), c.at("stored_weights"), tolerance(c));
  }
  if (!c.has("cotangent") || c.quirk("nan_rows")) return;
  (result.output * c.at("cotangent")).sum().backward();
  check_gradients(c, module, x, report);
}

// ---- functions ----------------------------------------------------------------------------------

void check_sdpa(const Case& c, Report& report) {
  const auto leaf = [&](const char* name) { return c.at(name).detach().clone().requires_grad_(); };
  const auto q = leaf("query"), k = leaf("key"), v = leaf("value");
  ScaledDotProductOptions options;
  options.temperature = c.config["temperature"].number();
  if (c.has("mask")) options.mask = c.at("mask");
  if (c.has("mask") && !options.mask.is_floating_point() &&
      options.mask.scalar_type() != torch::kBool) {
    return report.expect_error("kBool", [&] { scaled_dot_product_attention(q, k, v, options); });
  }
  if (c.has("grad.mask")) options.mask = leaf("mask");
  const auto result = scaled_dot_product_attention(q, k, v, options);
  report.compare("out", result.output, c.at("out"), tolerance(c));
  report.compare("weights", result.weights, c.at("weights"), tolerance(c));
  if (!c.has("cotangent")) return;
  (result.output * c.at("cotangent")).sum().backward();
  report.compare("grad.query", q.grad(), c.at("grad.query"), tolerance(c));
  report.compare("grad.key", k.grad(), c.at("grad.key"), tolerance(c));
  report.compare("grad.value", v.grad(), c.at("grad.value"), tolerance(c));
  if (c.has("grad.mask")) {
    report.compare("grad.mask", options.mask.grad(), c.at("grad.mask"), tolerance(c));
  }
}

void check_rope(const Case& c, Report& report) {
  const RopeOptions options{.base = c.config["base"].number()};
  report.compare("out_query", apply_rope(c.at("query"), options), c.at("out_query"), tolerance(c));
  report.compare("out_key", apply_rope(c.at("key"), options), c.at("out_key"), tolerance(c));
}

void check_mask_function(const Case& c, Report& report) {
  const auto integer = [&](const char* name) { return c.config[name].integer(); };
  torch::Tensor got;
  if (c.mechanism == "create_causal_mask") {
    got = create_causal_mask(integer("seq_len"));
  } else if (c.mechanism == "create_padding_mask") {
    std::vector<int64_t> lengths;
    for (const auto& n : c.config["seq_lengths"].array()) lengths.push_back(n.integer());
    std::optional<int64_t> max_len;
    if (!c.config["max_len"].is_null()) max_len = integer("max_len");
    got = create_padding_mask(lengths, max_len);
  } else if (c.mechanism == "create_local_mask") {
    got = create_local_mask(integer("seq_len"), integer("window_size"));
  } else if (c.mechanism == "create_dilated_mask") {
    got = create_dilated_mask(integer("seq_len"), integer("dilation_rate"));
  } else if (c.mechanism == "create_block_mask") {
    got = create_block_mask(integer("seq_len"), integer("block_size"));
  } else if (c.mechanism == "combine_masks") {
    std::vector<torch::Tensor> masks;
    for (int64_t i = 0; i < integer("count"); ++i)
      masks.push_back(c.at("mask." + std::to_string(i)));
    got = combine_masks(masks);
  } else {
    got = expand_mask_for_heads(c.at("mask"), integer("batch_size"), integer("num_heads"),
                                integer("seq_len"));
  }
  // combine_masks gives bool where the Python library keeps the first mask's dtype.
  const auto want = c.mechanism == "combine_masks" ? c.at("out").to(torch::kBool) : c.at("out");
  report.expect(got.scalar_type() == want.scalar_type() && torch::equal(got, want), "out differs");
}

void check_alibi_slopes(const Case& c, Report& report) {
  const auto got = alibi_slopes(c.config["num_heads"].integer(), c.quirk("alibi_slopes"));
  report.compare("slopes", got, c.at("slopes"), tolerance(c));
}

/// First token of every block, and the one behind its last, as who attends to whom shows them.
std::vector<std::pair<int64_t, int64_t>> blocks_under(const std::vector<core::AnyMask>& masks,
                                                      int64_t n) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (const auto& mask : masks) {
    const core::Grid grid({1, 1, n, n}, 0, n, torch::kCPU);
    const auto allowed = mask.evaluate(grid).expand({1, 1, n, n})[0][0];
    for (int64_t i = 0; i < n;) {
      const auto size = allowed[i].slice(0, i).sum().item<int64_t>();
      if (size > 0) found.emplace_back(i, i + size);
      i += std::max<int64_t>(size, 1);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

void check_block_indices(const Case& c, Report& report) {
  const int64_t n = c.config["seq_len"].integer(), size = c.config["block_size"].integer();
  std::vector<core::AnyMask> masks;
  if (c.config["overlap"].boolean()) {
    const core::OverlappingBlocks overlapping(n, size, {});
    for (int64_t f = 0; f < overlapping.families(); ++f) masks.push_back(overlapping.family(f));
  } else {
    masks.push_back(blocks(size));
  }
  std::vector<int64_t> starts, ends;
  for (const auto& [start, end] : blocks_under(masks, n)) {
    starts.push_back(start);
    ends.push_back(end);
  }
  report.expect(torch::equal(torch::tensor(starts), c.at("starts")), "starts differ");
  report.expect(torch::equal(torch::tensor(ends), c.at("ends")), "ends differ");
}

void check_case(const Case& c, Report& report) {
  if (c.mechanism == "sdpa") return check_sdpa(c, report);
  if (c.mechanism == "rope") return check_rope(c, report);
  if (c.mechanism == "alibi_slopes") return check_alibi_slopes(c, report);
  if (c.mechanism == "block_indices") return check_block_indices(c, report);
  if (c.mechanism.ends_with("_mask") || c.mechanism == "combine_masks" ||
      c.mechanism == "expand_mask_for_heads") {
    return check_mask_function(c, report);
  }
  check_module(c, report);
}

Case load_case(const std::filesystem::path& path) {
  auto file = load_safetensors(path);
  Case c;
  c.name = path.stem().string();
  c.mechanism = file.metadata.at("mechanism");
  c.dtype = file.metadata.at("dtype");
  c.config = Json::parse(file.metadata.at("config"));
  const auto quirks = Json::parse(file.metadata.at("quirks"));
  for (const auto& quirk : quirks.array()) c.quirks.insert(quirk.string());
  c.t = std::move(file.tensors);
  return c;
}

/// Runs the case of a file; gives its mechanism or op, and its dtype.
std::pair<std::string, std::string> check_file(const std::filesystem::path& path, Report& report) {
  if (auto file = load_safetensors(path); file.metadata.count("op")) {
    if (is_onnx(file)) {
      check_onnx(file, report);
      const auto out = std::find_if(file.tensors.begin(), file.tensors.end(),
                                    [](const auto& t) { return t.first.starts_with("out."); });
      return {file.metadata.at("op"), c10::toString(out->second.scalar_type())};
    }
    if (file.metadata.at("op").starts_with("decode_")) {
      DecodeCase(file).check(report);
      return {file.metadata.at("op"), file.metadata.at("dtype")};
    }
    const auto c = modern_case(std::move(file));
    if (recurrent_ops().count(c.op)) {
      check_recurrence(c, report);
    } else if (!check_recurrent_module(c, report) && !check_mla(c, report) &&
               !check_scores(c, report) && !check_lowrank(c, report) &&
               !check_chosen_keys(c, report) && !check_sparse_op(c, report)) {
      check_modern(c, report);
    }
    return {c.op, c.dtype};
  }
  const auto c = load_case(path);
  try {
    check_case(c, report);
  } catch (const UnknownMechanism& unknown) {
    throw Skipped{"attzoo has no mechanism " + unknown.name};
  }
  return {c.mechanism, c.dtype};
}

int run(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  int passed = 0, failed = 0, skipped = 0;
  std::map<std::pair<std::string, std::string>, std::pair<int, double>> table;
  std::map<std::string, std::vector<std::string>> skips;  // reason -> cases
  for (const auto& path : files) {
    Report report;
    const auto name = path.stem().string();
    std::pair<std::string, std::string> kind{"unreadable", ""};
    try {
      kind = check_file(path, report);
    } catch (const Skipped& skip) {
      skips[skip.reason].push_back(name);
      ++skipped;
      continue;
    } catch (const std::exception& error) {
      const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
      report.fail(c10_error ? c10_error->what_without_backtrace() : error.what());
      kind.first = name.substr(0, name.find("__"));
    }
    auto& [count, worst] = table[kind];
    ++count;
    worst = std::max(worst, report.worst);
    ++(report.failures.empty() ? passed : failed);
    if (report.failures.empty()) continue;
    std::printf("FAIL %s:", name.c_str());
    for (const auto& failure : report.failures) std::printf(" %s;", failure.c_str());
    std::printf("\n");
  }
  for (const auto& [reason, cases] : skips) {
    std::printf("SKIP %s (%zu cases): %s\n", cases[0].c_str(), cases.size(), reason.c_str());
  }
  std::printf("%-26s %-8s %6s %24s\n", "mechanism", "dtype", "cases", "worst error / allowance");
  for (const auto& [key, value] : table) {
    std::printf("%-26s %-8s %6d %24.3g\n", key.first.c_str(), key.second.c_str(), value.first,
                value.second);
  }
  if (files.empty()) std::printf("no cases in %s\n", folder.string().c_str());
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed > 0 || files.empty() ? 1 : 0;
}

}  // namespace
}  // namespace attzoo::testing

int main(int argc, char** argv) {
  if (argc != 2 || !std::filesystem::is_directory(argv[1])) {
    std::fprintf(stderr, "usage: golden_check DIR\nDIR holds reference cases (*.safetensors).\n");
    return 2;
  }
  return attzoo::testing::run(argv[1]);
}
