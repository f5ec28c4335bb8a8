#pragma once
/// \file
/// One problem's kernels: which, with which arguments, in which order.

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/program.hpp>
#include <attzoo/core/cuda/schedule.hpp>

#include <memory>
#include <vector>

namespace attzoo::core {

/// What a call's kernels need, found once: the source of its modifiers, the forward kernels, and
/// which tiles are visited.
class CudaPlan {
 public:
  /// Compiles the forward kernels, or, `by_flash`, what comes behind ATen's. Throws c10::Error
  /// where that fails.
  CudaPlan(const Qkv& t, const Call& call, bool by_flash);
  OutputAndLse run(const Qkv& t, const Call& call) const;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const;

 private:
  ModifierSource source_;
  KernelKind kind_;
  kernel::Mask reach_;
  HostSchedule forward_;
  int parts_ = 1;
  bool by_flash_;
  std::shared_ptr<const cuda::Module> module_;

  void prepare_forward(const Qkv& t);
  OutputAndLse run_flash(const Qkv& t, const Call& call) const;
};

/// Why a problem is none of ATen's flash attention; null: it is one, unless the operator fails.
ATTZOO_API const char* why_no_flash(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cuda/arguments.hpp>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_flash_attention_forward.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

namespace attzoo::core {

/// Whether scores are products in a positive unit; in units of less they are beyond float32.
ATTZOO_API bool is_plain(const Rule& rule) {
  constexpr double kLeastScale = 1e-30;
  return rule.score.is_identity() && rule.scale > kLeastScale;
}

ATTZOO_API CudaPlan::CudaPlan(const Qkv& any, const Call& call, bool by_flash)
    : source_(modifier_source(call.rule.mask, call.rule.score, any.shape(), call.learning())),
      reach_(call.rule.mask.reach(any.shape())),
      by_flash_(by_flash) {
  const auto t = with_rows(any);
  const auto& rule = call.rule;
  constexpr size_t kMostBytes = 4096;
  TORCH_CHECK(sizeof(cuda::Problem) + ModifierArguments::size(source_) <= kMostBytes,
              "a mask and a score modifier with so many numbers and tables (",
              source_.numbers.size(), ", ", source_.tables.size(),
              ") are more than a kernel's arguments hold");
  kind_ = {.scalar = t.q.scalar_type(),
           .wide = rule.wide,
           .D = static_cast<int>(t.q.size(3)),
           .E = static_cast<int>(t.v.size(3)),
           .aligned = are_aligned(t),
           .dropout = rule.dropout.p > 0,
           .plain = is_plain(rule),
           .shared = false,
           .split = false};
  if (by_flash) {
    module_ = cuda::module_of(repair_program(source_, kind_), t.q.device());
  } else {
    prepare_forward(t);
  }
}

ATTZOO_API void CudaPlan::prepare_forward(const Qkv& t) {
  const auto n = t.shape();
  const auto blocks = forward_blocks(kind_);
  const int64_t group = n.H / t.k.size(1);
  kind_.shared = n.L * group <= blocks.rows;
  ScheduleOrder order{.queries = blocks.rows,
                      .keys = blocks.columns,
                      .rows_are_keys = false,
                      .by_batch = source_.by_batch,
                      .by_head = source_.by_head,
                      .shared_heads = kind_.shared ? static_cast<int>(group) : 0};
  forward_ = make_schedule(reach_, n, order);
  // Few blocks leave processors idle: several have a part of the keys each.
  const int64_t running = forward_.count * n.B * (kind_.shared ? t.k.size(1) : n.H);
  const int64_t wanted = 2 * cuda::facts(t.q.device()).processors / std::max<int64_t>(1, running);
  constexpr int64_t kLeastTiles = 4, kMostParts = 64;
  parts_ = static_cast<int>(std::clamp<int64_t>(
      std::min<int64_t>(wanted, forward_.most_tiles / kLeastTiles), 1, kMostParts));
  if (parts_ > 1) {
    kind_.split = true;
    order.parts = parts_;
    forward_ = make_schedule(reach_, n, order);
  }
  module_ = cuda::module_of(forward_program(source_, kind_), t.q.device());
}

ATTZOO_API const char* why_no_flash(const Qkv& t, const Rule& rule) {
  static const auto op =
      c10::Dispatcher::singleton().findSchema({"aten::_flash_attention_forward", ""});
  if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return "LibTorch has it not";
  const int64_t D = t.q.size(3);
  if (t.q.scalar_type() != torch::kBFloat16 && t.q.scalar_type() != torch::kHalf)
    return "it is for bfloat16 and float16";
  if (rule.wide) return "its output is rounded";
  if (t.v.size(3) != D || D % 8 != 0) return "it wants as many features of v, and multiples of 8";
  if (rule.dropout.p > 0) return "its dropout is another one";
  if (!is_plain(rule)) return "it knows no such scores";
  const auto window = rule.mask.window_size(t.shape());
  if (!window.known || window.left < 0 || window.right < 0)
    return "the mask is no window (full(), causal(), window())";
  if (!are_aligned(with_rows(t))) return "rows that do not begin at 16 bytes";
  return nullptr;
}

/// ATen's flash attention (arXiv:2307.08691), and what its results lack: weights of 0 times values
/// that are no numbers, and lse of rows without keys.
ATTZOO_API OutputAndLse CudaPlan::run_flash(const Qkv& t, const Call& call) const {
  const auto n = t.shape();
  const auto window = call.rule.mask.window_size(n);
  const auto side = [&](int64_t size) {
    return size < n.L + n.S ? std::optional<int64_t>(size) : std::nullopt;
  };
  const bool causal = !side(window.left) && window.right == 0;
  const auto tokens_first = [](const torch::Tensor& x) { return x.transpose(1, 2); };
  const auto results = at::_flash_attention_forward(
      tokens_first(t.q), tokens_first(t.k), tokens_first(t.v), {}, {}, n.L, n.S, /*dropout_p=*/0.0,
      causal, /*return_debug_mask=*/false, call.rule.scale,
      causal ? std::nullopt : side(window.left), causal ? std::nullopt : side(window.right));
  OutputAndLse result{tokens_first(std::get<0>(results)), std::get<1>(results)};
  TORCH_CHECK(result.lse.sizes() == torch::IntArrayRef({n.B, n.H, n.L}) &&
                  result.lse.is_contiguous() && result.output.sizes() == t.q.sizes(),
              "flash attention's results have another form");
  if (call.learns) result.softmax = torch::empty({2, n.B, n.H, n.L}, result.lse.options());
  auto problem = cuda_problem(t, call.rule);
  problem.output = cuda_view(result.output);
  put_softmax(problem, result);
  ModifierArguments modifier(source_, LearningPlaces(call));
  void* const parameters[] = {&problem, modifier.data()};
  const auto u = [](int64_t size) { return static_cast<unsigned>(size); };
  module_->launch("repair", {u((n.L + kRepairRows - 1) / kRepairRows), u(n.H), u(n.B)},
                  32 * kRepairRows, 0, parameters);
  return result;
}

ATTZOO_API OutputAndLse CudaPlan::run(const Qkv& any, const Call& call) const {
  const auto t = with_rows(any);
  if (by_flash_) return run_flash(t, call);
  const auto n = t.shape();
  const auto floats = t.q.options().dtype(torch::kFloat32).requires_grad(false);
  OutputAndLse result{empty_rows(t.q, t.v.size(3), call.rule.output_dtype(t.q)),
                      torch::empty({n.B, n.H, n.L}, floats)};
  const auto schedule = on_device(forward_, t.q.device());
  auto problem = cuda_problem(t, call.rule);
  put_schedule(problem, forward_, schedule);
  problem.output = cuda_view(result.output);
  if (call.learns) result.softmax = torch::empty({2, n.B, n.H, n.L}, floats);
  put_softmax(problem, result);
  problem.parts = parts_;
  torch::Tensor part_output, part_numbers;
  if (kind_.split) {
    part_output = torch::empty({parts_, n.B, n.H, n.L, t.v.size(3)}, floats);
    part_numbers = torch::empty({2, parts_, n.B, n.H, n.L}, floats);
    problem.part_output = part_output.data_ptr<float>();
    problem.part_max = part_numbers[0].data_ptr<float>();
    problem.part_sum = part_numbers[1].data_ptr<float>();
  }
  ModifierArguments modifier(source_, LearningPlaces(call));
  void* const parameters[] = {&problem, modifier.data()};
  const auto blocks = forward_blocks(kind_);
  const auto u = [](int64_t size) { return static_cast<unsigned>(size); };
  module_->launch("forward", {u(forward_.count), u(kind_.shared ? t.k.size(1) : n.H), u(n.B)},
                  blocks.threads(), blocks.bytes, parameters);
  if (kind_.split) module_->launch("merge_parts", {u(n.L), u(n.H), u(n.B)}, 32, 0, parameters);
  return result;
}

/// The rows of the output times its gradient, less the gradient of lse, [B, H, L].
ATTZOO_API torch::Tensor backward_delta(const OutputAndLse& result, const Cotangents& from) {
  auto delta = torch::zeros_like(result.lse);
  if (from.output.defined()) {
    delta = (from.output.to(torch::kFloat32) * result.output.to(torch::kFloat32)).sum(-1);
  }
  if (from.lse.defined()) delta = delta - from.lse;
  return delta.to(torch::kFloat32).contiguous();
}

ATTZOO_API Gradients CudaPlan::run_backward(const Qkv& any, const Call& call,
                                            const OutputAndLse& result,
                                            const Cotangents& from) const {
  const auto t = with_rows(any);
  const auto n = t.shape();
  const auto grad_output = from.output.defined() ? with_rows(from.output).to(t.q.scalar_type())
                                                 : torch::zeros({n.B, n.H, n.L, t.v.size(3)},
                                                                t.q.options().requires_grad(false));
  const auto delta = backward_delta(result, from);
  const auto grad_lse =
      from.lse.defined() ? from.lse.to(torch::kFloat32).contiguous() : torch::Tensor();
  const LearningPlaces places(call);
  auto kind = kind_;
  kind.wide = kind.shared = kind.split = false;
  kind.aligned = are_aligned(t) && is_aligned(grad_output);
  const bool learns = !places.learning.empty();
  const auto module = cuda::module_of(backward_program(source_, kind, learns), t.q.device());

  Gradients grads{empty_rows(t.q, t.q.size(3), t.q.scalar_type()),
                  empty_rows(t.k, t.k.size(3), t.k.scalar_type()),
                  empty_rows(t.v, t.v.size(3), t.v.scalar_type())};
  const auto schedule_of = [&](const BlockSizes& blocks, bool rows_are_keys) {
    return make_schedule(reach_, n,
                         {.queries = rows_are_keys ? blocks.columns : blocks.rows,
                          .keys = rows_are_keys ? blocks.rows : blocks.columns,
                          .rows_are_keys = rows_are_keys,
                          .by_batch = source_.by_batch,
                          .by_head = source_.by_head});
  };
  ModifierArguments modifier(source_, places);
  const auto u = [](int64_t size) { return static_cast<unsigned>(size); };
  const auto launch = [&](const char* kernel, const BlockSizes& blocks, const HostSchedule& host,
                          const std::array<unsigned, 3>& grid, double* learning) {
    const auto schedule = on_device(host, t.q.device());
    auto problem = cuda_problem(t, call.rule);
    put_schedule(problem, host, schedule);
    problem.grad_output = cuda_view(grad_output);
    put_softmax(problem, result);
    problem.delta = delta.const_data_ptr<float>();
    problem.grad_lse = grad_lse.defined() ? grad_lse.const_data_ptr<float>() : nullptr;
    problem.grad_q = cuda_view(grads.q);
    problem.grad_k = cuda_view(grads.k);
    problem.grad_v = cuda_view(grads.v);
    problem.learning = learning;
    problem.rows_apart = places.rows_apart();
    void* const parameters[] = {&problem, modifier.data()};
    module->launch(kernel, grid, blocks.threads(), blocks.bytes, parameters);
  };
  const auto query_sizes = query_blocks(kind), key_sizes = key_blocks(kind);
  const auto by_queries = schedule_of(query_sizes, false), by_keys = schedule_of(key_sizes, true);
  launch("backward_queries", query_sizes, by_queries, {u(by_queries.count), u(n.H), u(n.B)},
         nullptr);
  const std::array<unsigned, 3> of_keys{u(by_keys.count), u(t.k.size(1)), u(n.B)};
  launch("backward_keys", key_sizes, by_keys, of_keys, nullptr);
  if (keys_and_values_apart(kind)) launch("backward_values", key_sizes, by_keys, of_keys, nullptr);
  if (!learns) return grads;

  // As many warps as copies of the gradients that fit into 128 MiB.
  constexpr int64_t kMostNumbers = int64_t{1} << 24;
  const int warps = query_sizes.rows / 16;
  const int64_t items = by_queries.count * (places.rows_apart() ? 1 : n.B * n.H);
  const int64_t most = places.each == 0 ? items : kMostNumbers / (places.each * warps);
  const int64_t running = std::clamp<int64_t>(
      std::min<int64_t>(most, 4 * cuda::facts(t.q.device()).processors), 1, items);
  const auto sums = torch::zeros({places.once + running * warps * places.each},
                                 t.q.options().dtype(torch::kFloat64).requires_grad(false));
  launch("backward_tables", query_sizes, by_queries, {u(running), 1, 1}, sums.data_ptr<double>());
  const auto copies = sums.slice(0, places.once).view({running * warps, places.each}).sum(0);
  for (size_t i = 0; i < places.learning.size(); ++i) {
    const auto& l = places.learning[i];
    const int64_t at = places.place(i) - (places.by_query[i] ? 0 : places.once);
    grads.learning.push_back((places.by_query[i] ? sums : copies)
                                 .slice(0, at, at + l.numel())
                                 .view(l.sizes())
                                 .to(l.scalar_type()));
  }
  return grads;
}

}  // namespace attzoo::core

#endif
