#pragma once
/// \file
/// A call's tensors, numbers and tables as a kernel's arguments.

#include <attzoo/core/cuda/schedule.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// A schedule in the device's memory. The same again on the same stream is the same tensor, so that
/// calls that repeat copy nothing; on another one nothing would say that the copy is done. One that
/// a CUDA graph reads stays; while one is captured nothing is copied, and a new one throws
/// c10::Error.
ATTZOO_API torch::Tensor on_device(const HostSchedule& s, const torch::Device& device);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/problem.hpp>
#include <attzoo/core/cuda/source.hpp>
#include <attzoo/kernel/dropout.hpp>

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

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

ATTZOO_API torch::Tensor on_device(const HostSchedule& s, const torch::Device& device) {
  auto all = s.entries;
  all.insert(all.end(), s.segments.begin(), s.segments.end());
  struct Known {
    c10::Stream stream;
    std::vector<int> numbers;
    torch::Tensor tensor;
    bool in_graph;
  };
  constexpr int64_t kMost = 64;  // that are in no graph
  static std::mutex mutex;
  static auto& known = *new std::vector<Known>();  // the latest last
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const bool capturing = cuda::is_capturing(device);
  const std::lock_guard lock(mutex);
  const auto found = std::find_if(known.begin(), known.end(), [&](const Known& k) {
    return k.stream == stream && k.numbers == all;
  });
  if (found != known.end()) {
    found->in_graph |= capturing;
    std::rotate(found, found + 1, known.end());
    return known.back().tensor;
  }
  TORCH_CHECK(
      !capturing,
      "attention: a CUDA graph is captured on a stream that has not run this problem, forward "
      "and backward, before; run it there once and capture it then");
  const auto in_no_graph = [](const Known& k) { return !k.in_graph; };
  if (std::count_if(known.begin(), known.end(), in_no_graph) == kMost) {
    known.erase(std::find_if(known.begin(), known.end(), in_no_graph));
  }
  const auto tensor = torch::tensor(all, torch::kInt32).to(device);
  known.push_back({stream, std::move(all), tensor, false});
  return tensor;
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

ATTZOO_API cuda::Problem cuda_problem(const Qkv& t, const Rule& rule) {
  const auto n = [](int64_t size) { return static_cast<int>(size); };
  const double p = rule.dropout.p;
  cuda::Problem problem{};
  problem.q = cuda_view(t.q);
  problem.k = cuda_view(t.k);
  problem.v = cuda_view(t.v);
  problem.parts = 1;
  problem.B = n(t.q.size(0));
  problem.H = n(t.q.size(1));
  problem.group = n(t.q.size(1) / t.k.size(1));
  problem.L = n(t.q.size(2));
  problem.S = n(t.k.size(2));
  problem.D = n(t.q.size(3));
  problem.E = n(t.v.size(3));
  problem.step = 1;
  problem.scale = static_cast<float>(rule.scale);
  problem.keep = static_cast<float>(p < 1 ? 1 / (1 - p) : 1);  // 1: none is kept
  problem.seed = rule.dropout.seed;
  problem.threshold = static_cast<unsigned long long>(kernel::dropout_threshold(p));
  return problem;
}

ATTZOO_API void put_schedule(cuda::Problem& problem, const HostSchedule& s,
                             const torch::Tensor& on) {
  const int* entries = on.const_data_ptr<int>();
  problem.schedule = {entries, entries + s.entries.size(), s.count, s.by_batch, s.by_head};
  problem.step = s.step;
}

/// lse, and what the forward pass keeps for the backward one.
ATTZOO_API void put_softmax(cuda::Problem& problem, const OutputAndLse& result) {
  problem.lse = result.lse.data_ptr<float>();
  if (!result.softmax.defined()) return;
  problem.shift = result.softmax.data_ptr<float>();
  problem.log_sum = problem.shift + result.lse.numel();
}

}  // namespace attzoo::core

#endif
