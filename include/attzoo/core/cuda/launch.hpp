#pragma once
/// \file
/// One problem's kernels: which, with which arguments, in which order.

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/problem.hpp>
#include <attzoo/core/cuda/program.hpp>
#include <attzoo/core/cuda/schedule.hpp>

#include <memory>
#include <vector>

namespace attzoo::core {

/// What a call's kernels need, found once: the source of its modifiers, the forward kernels, and
/// which tiles are visited.
class CudaPlan {
 public:
  /// Compiles the forward kernels. Throws c10::Error where that fails.
  CudaPlan(const Qkv& t, const Call& call);
  OutputAndLse run(const Qkv& t, const Call& call) const;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const;

 private:
  ModifierSource source_;
  KernelKind kind_;
  kernel::Mask reach_;
  HostSchedule forward_;
  int parts_ = 1;
  std::shared_ptr<const cuda::Module> module_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/kernel/dropout.hpp>

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

namespace attzoo::core {

/// A tensor whose last dimension is contiguous.
ATTZOO_API torch::Tensor with_rows(const torch::Tensor& x) {
  const auto t = plain(x.detach());
  return t.size(3) == 1 || t.stride(3) == 1 ? t : t.contiguous();
}
ATTZOO_API Qkv with_rows(const Qkv& t) { return {with_rows(t.q), with_rows(t.k), with_rows(t.v)}; }

ATTZOO_API cuda::View cuda_view(const torch::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

/// Empty, with heads inside of tokens where `like` has them so.
ATTZOO_API torch::Tensor empty_rows(const torch::Tensor& like, int64_t features,
                                    torch::ScalarType dtype) {
  const auto options = like.options().dtype(dtype).requires_grad(false);
  const int64_t B = like.size(0), H = like.size(1), N = like.size(2);
  if (like.stride(1) >= like.stride(2)) return torch::empty({B, H, N, features}, options);
  return torch::empty({B, N, H, features}, options).transpose(1, 2);
}

/// Whether each row begins at 16 bytes and is made of so many.
ATTZOO_API bool is_aligned(const torch::Tensor& t) {
  const auto bytes = [&](int64_t numbers) {
    return numbers * static_cast<int64_t>(t.element_size());
  };
  bool aligned = reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 && bytes(t.size(3)) % 16 == 0;
  for (int64_t d = 0; d < 3; ++d) aligned &= t.size(d) == 1 || bytes(t.stride(d)) % 16 == 0;
  return aligned;
}
ATTZOO_API bool are_aligned(const Qkv& t) {
  return is_aligned(t.q) && is_aligned(t.k) && is_aligned(t.v);
}

/// A schedule in the device's memory. The same again on the same stream is the same tensor, so that
/// calls that repeat copy nothing; on another one nothing would say that the copy is done.
ATTZOO_API torch::Tensor on_device(const HostSchedule& s, const torch::Device& device) {
  auto all = s.entries;
  all.insert(all.end(), s.segments.begin(), s.segments.end());
  struct Known {
    c10::Stream stream;
    std::vector<int> numbers;
    torch::Tensor tensor;
  };
  constexpr size_t kMost = 64;
  static std::mutex mutex;
  static auto& known = *new std::vector<Known>();  // the latest last
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const std::lock_guard lock(mutex);
  const auto found = std::find_if(known.begin(), known.end(), [&](const Known& k) {
    return k.stream == stream && k.numbers == all;
  });
  if (found != known.end()) {
    std::rotate(found, found + 1, known.end());
    return known.back().tensor;
  }
  if (known.size() == kMost) known.erase(known.begin());
  const auto tensor = torch::tensor(all, torch::kInt32).to(device);
  known.push_back({stream, std::move(all), tensor});
  return tensor;
}
ATTZOO_API cuda::Schedule cuda_schedule(const HostSchedule& s, const torch::Tensor& on) {
  const int* entries = on.const_data_ptr<int>();
  return {entries, entries + s.entries.size(), s.count, s.by_batch, s.by_head};
}

/// Gradients of tables: in doubles, those with an entry for each query once, the others once for
/// each warp.
struct LearningPlaces {
  std::vector<torch::Tensor> learning;  // as Call::learning() has them
  std::vector<bool> by_query;
  int64_t once = 0, each = 0;  // numbers
  int64_t place(size_t i) const {
    int64_t at = by_query[i] ? 0 : once;
    for (size_t j = 0; j < i; ++j) at += by_query[j] == by_query[i] ? learning[j].numel() : 0;
    return at;
  }

  explicit LearningPlaces(const Call& call) {
    for (const auto& l : call.tensors) {
      if (!l.tensor.defined()) continue;
      learning.push_back(l.tensor);
      by_query.push_back(l.is_by_query());
      (by_query.back() ? once : each) += l.tensor.numel();
    }
  }
  bool rows_apart() const { return once > 0; }
};

/// Numbers and tables as kernels read them, and the tensors that they point into.
class ModifierArguments {
 public:
  ModifierArguments(const ModifierSource& source, const LearningPlaces& places) {
    const size_t numbers = std::max<size_t>(source.numbers.size(), 1);
    bytes_.resize(numbers * sizeof(cuda::Number) +
                  std::max<size_t>(source.tables.size(), 1) * sizeof(cuda::Table));
    auto* to = bytes_.data();
    for (const auto& x : source.numbers) to = put(to, cuda::Number{x.integer, x.real});
    to = bytes_.data() + numbers * sizeof(cuda::Number);
    for (const auto& t : source.tables) to = put(to, table(t, places));
  }
  void* data() { return bytes_.data(); }
  static size_t size(const ModifierSource& source) {
    return std::max<size_t>(source.numbers.size(), 1) * sizeof(cuda::Number) +
           std::max<size_t>(source.tables.size(), 1) * sizeof(cuda::Table);
  }

 private:
  template <class T>
  static char* put(char* to, const T& x) {
    std::memcpy(to, &x, sizeof(x));
    return to + sizeof(x);
  }
  cuda::Table table(const torch::Tensor& of, const LearningPlaces& places) {
    const auto t = plain(of.detach());
    held_.push_back(t);
    cuda::Table table{};
    table.data = t.data_ptr();
    int64_t stride = 1;
    for (int64_t d = t.dim() - 1; d >= 0; --d) {
      table.size[d] = static_cast<int>(t.size(d));
      table.stride[d] = t.stride(d);
      table.gradient_stride[d] = stride;
      stride *= t.size(d);
    }
    const int i = learnable_of(of, places.learning);
    if (i >= 0) {
      const auto& l = places.learning[static_cast<size_t>(i)];
      table.gradient = places.place(static_cast<size_t>(i)) +
                       (of.is_same(l) ? 0 : of.storage_offset() - l.storage_offset());
      table.slot = places.by_query[static_cast<size_t>(i)] ? 0 : places.each;
    }
    return table;
  }

  std::vector<char> bytes_;
  std::vector<torch::Tensor> held_;
};

ATTZOO_API cuda::Problem cuda_problem(const Qkv& t, const Rule& rule, const HostSchedule& s,
                                      const torch::Tensor& schedule) {
  const auto n = [](int64_t size) { return static_cast<int>(size); };
  const double p = rule.dropout.p;
  cuda::Problem problem{};
  problem.q = cuda_view(t.q);
  problem.k = cuda_view(t.k);
  problem.v = cuda_view(t.v);
  problem.schedule = cuda_schedule(s, schedule);
  problem.parts = 1;
  problem.B = n(t.q.size(0));
  problem.H = n(t.q.size(1));
  problem.group = n(t.q.size(1) / t.k.size(1));
  problem.L = n(t.q.size(2));
  problem.S = n(t.k.size(2));
  problem.D = n(t.q.size(3));
  problem.E = n(t.v.size(3));
  problem.step = s.step;
  problem.scale = static_cast<float>(rule.scale);
  problem.keep = static_cast<float>(p < 1 ? 1 / (1 - p) : 1);  // 1: none is kept
  problem.seed = rule.dropout.seed;
  problem.threshold = static_cast<unsigned long long>(kernel::dropout_threshold(p));
  return problem;
}

/// What the forward pass keeps for the backward one.
ATTZOO_API void put_softmax(cuda::Problem& problem, const OutputAndLse& result) {
  if (!result.softmax.defined()) return;
  problem.shift = result.softmax.data_ptr<float>();
  problem.log_sum = problem.shift + result.lse.numel();
}

ATTZOO_API CudaPlan::CudaPlan(const Qkv& any, const Call& call)
    : source_(modifier_source(call.rule.mask, call.rule.score, any.shape(), call.learning())),
      reach_(call.rule.mask.reach(any.shape())) {
  const auto t = with_rows(any);
  const auto& rule = call.rule;
  const auto n = t.shape();
  constexpr size_t kMostBytes = 4096;
  constexpr double kLeastScale = 1e-30;  // scores in units of less are beyond float32
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
           .plain = rule.score.is_identity() && rule.scale > kLeastScale,
           .shared = false,
           .split = false};
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

ATTZOO_API OutputAndLse CudaPlan::run(const Qkv& any, const Call& call) const {
  const auto t = with_rows(any);
  const auto n = t.shape();
  const auto floats = t.q.options().dtype(torch::kFloat32).requires_grad(false);
  OutputAndLse result{empty_rows(t.q, t.v.size(3), call.rule.output_dtype(t.q)),
                      torch::empty({n.B, n.H, n.L}, floats)};
  const auto schedule = on_device(forward_, t.q.device());
  auto problem = cuda_problem(t, call.rule, forward_, schedule);
  problem.output = cuda_view(result.output);
  problem.lse = result.lse.data_ptr<float>();
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
    auto problem = cuda_problem(t, call.rule, host, schedule);
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
