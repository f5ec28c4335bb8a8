#pragma once
/// \file
/// The CPU's kernel of linear recurrences (kernel/recurrence/recurrence.hpp).

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/backend.hpp>

namespace attzoo::core {

/// Takes what is on the CPU, has something to compute, and sizes that the kernel's 32-bit indices
/// hold.
class CpuRecurrence final : public RecurrenceBackend {
 public:
  bool takes(const Recurrence& x) const override;
  Recurred run(const Recurrence& x) const override;
  Recurrence run_backward(const Recurrence& x, const Recurred& grad) const override;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/isa.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/kernel/recurrence/recurrence.hpp>

#include <algorithm>
#include <vector>

namespace attzoo::core {

/// A problem, and the tensors and chunks that it points to.
class CpuRecurrenceProblem {
 public:
  explicit CpuRecurrenceProblem(const Recurrence& x) : dtype_(compute_dtype(x.v)) {
    const int64_t heads = x.v.size(1);
    const auto rows = [&](const torch::Tensor& t) -> kernel::HeadRows {
      if (!t.defined()) return {};
      kept_.push_back(readable(t));
      return {view(kept_.back()), static_cast<int>(heads / t.size(1))};
    };
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    p.q = rows(x.q), p.k = rows(x.k), p.v = rows(x.v);
    p.decay = rows(x.decay), p.p = rows(x.p), p.beta = rows(x.beta);
    p.a = rows(x.a), p.b = rows(x.b);
    p.delta = x.delta;
    p.decays = x.decay.defined() ? size(x.decay.size(3)) : 0;
    p.scale = x.scale;
    if (x.state.defined()) {
      kept_.push_back(plain(x.state).contiguous());
      p.first = kept_.back().const_data_ptr();
    }
    p.B = size(x.v.size(0)), p.H = size(heads), p.n = size(x.v.size(2));
    p.F = size(x.q.size(3)), p.E = size(x.v.size(3));
    cut(x.run);
  }

  kernel::RecurrenceProblem p;

 private:
  /// Memory that the kernel reads numbers of its type from.
  torch::Tensor readable(const torch::Tensor& t) const {
    const bool is = (t.scalar_type() == torch::kFloat64) == (dtype_ == torch::kFloat64);
    return plain(is ? t : t.to(dtype_));
  }
  /// Chunks end with documents.
  void cut(const torch::Tensor& run) {
    const auto ids = run.defined() ? run.to(torch::kCPU).contiguous() : run;
    row_.push_back(0);
    for (int b = 0; b < p.B; ++b) {
      const int64_t* id =
          ids.defined() ? ids.const_data_ptr<int64_t>() + (ids.size(0) > 1 ? b * ids.size(1) : 0)
                        : nullptr;
      for (int begin = 0; begin < p.n;) {
        int end = std::min(p.n, begin + kernel::kChunkTokens);
        for (int i = begin + 1; id && i < end; ++i) {
          if (id[i] != id[begin]) end = i;
        }
        chunks_.push_back({begin, end - begin, id && begin > 0 && id[begin] != id[begin - 1]});
        begin = end;
      }
      row_.push_back(static_cast<int>(chunks_.size()));
    }
    p.chunks = chunks_.data();
    p.row = row_.data();
  }

  torch::ScalarType dtype_;
  std::vector<torch::Tensor> kept_;
  std::vector<kernel::Chunk> chunks_;
  std::vector<int> row_;
};

ATTZOO_API bool CpuRecurrence::takes(const Recurrence& x) const {
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto fits = [](int64_t size) { return size > 0 && size < kMost; };
  return x.q.device().is_cpu() && std::all_of(x.v.sizes().begin(), x.v.sizes().end(), fits) &&
         fits(x.q.size(3));
}

ATTZOO_API Recurred CpuRecurrence::run(const Recurrence& x) const {
  check_isa();
  CpuRecurrenceProblem problem(x);
  auto& p = problem.p;
  const auto dtype = compute_dtype(x.v);
  const bool over = x.over_state && x.state.defined() && x.state.is_contiguous() &&
                    x.state.scalar_type() == dtype && plain(x.state).is_same(x.state);
  Recurred y{empty_as(x.v, p.E, x.v.scalar_type()),
             over ? x.state : torch::empty({p.B, p.H, p.F, p.E}, x.v.options().dtype(dtype))};
  p.out = {view(y.out)};
  p.last = y.state.mutable_data_ptr();
  if (over && !y.state.is_inference()) y.state.unsafeGetTensorImpl()->bump_version();
  constexpr int64_t kSmall = int64_t{1} << 15;  // numbers that the tokens read of states
  TorchRuntime threads;
  CallersThread here;
  kernel::Runtime& runtime =
      y.state.numel() * p.n <= kSmall ? static_cast<kernel::Runtime&>(here) : threads;
  with_compute_type(x.v, [&]<class T>(T) { kernel::recur<T>(p, runtime); });
  return y;
}

/// Columns of the values that are a head of their own in the backward pass of a single one, so that
/// it uses several threads.
inline constexpr int64_t kColumnsOfOne = 64;

/// [B, H, rows, columns] as [B, H * pieces, rows, kColumnsOfOne], and back.
ATTZOO_API torch::Tensor in_pieces(const torch::Tensor& t) {
  if (!t.defined()) return t;
  return t.unflatten(3, {-1, kColumnsOfOne}).permute({0, 1, 3, 2, 4}).flatten(1, 2);
}
ATTZOO_API torch::Tensor joined(const torch::Tensor& t, int64_t heads) {
  return t.unflatten(1, {heads, -1}).permute({0, 1, 3, 2, 4}).flatten(3);
}

ATTZOO_API Recurrence CpuRecurrence::run_backward(const Recurrence& x, const Recurred& grad) const {
  const int64_t heads = x.v.size(1), E = x.v.size(3);
  if (x.v.size(0) * heads == 1 && E > kColumnsOfOne && E % kColumnsOfOne == 0) {
    auto pieces = x;
    pieces.v = in_pieces(x.v);
    pieces.state = in_pieces(x.state);
    auto d = run_backward(pieces, {in_pieces(grad.out), in_pieces(grad.state)});
    d.v = joined(d.v, heads);
    d.state = joined(d.state, heads);
    return d;
  }
  check_isa();
  CpuRecurrenceProblem problem(x);
  const auto& p = problem.p;
  const auto dtype = compute_dtype(x.v);
  Recurrence d;
  kernel::RecurrenceGradients g;
  const auto of_heads = [&](const torch::Tensor& t, torch::Tensor& to) -> kernel::View {
    if (!t.defined()) return {};
    to = torch::empty({p.B, p.H, p.n, t.size(3)}, x.v.options().dtype(dtype));
    return view(to);
  };
  const auto d_out = grad.out.defined()
                         ? plain(grad.out).to(x.v.scalar_type())
                         : torch::zeros({1, 1, 1, 1}, x.v.options()).expand({p.B, p.H, p.n, p.E});
  const auto d_last = grad.state.defined() ? plain(grad.state).to(dtype).contiguous() : grad.state;
  g.d_out = view(d_out);
  if (d_last.defined()) g.d_last = d_last.const_data_ptr();
  g.q = of_heads(x.q, d.q), g.k = of_heads(x.k, d.k), g.v = of_heads(x.v, d.v);
  g.decay = of_heads(x.decay, d.decay), g.p = of_heads(x.p, d.p), g.beta = of_heads(x.beta, d.beta);
  g.a = of_heads(x.a, d.a), g.b = of_heads(x.b, d.b);
  d.state = torch::empty({p.B, p.H, p.F, p.E}, x.v.options().dtype(dtype));
  g.first = d.state.mutable_data_ptr();
  with_compute_type(x.v, [&]<class T>(T) {
    TorchRuntime runtime;
    kernel::recur_backward<T>(p, g, runtime);
  });
  const auto shared = [](torch::Tensor& t, const torch::Tensor& like) {  // heads, and the dtype
    if (!t.defined()) return;
    const int64_t of_like = like.size(1);
    if (t.size(1) != of_like) t = t.unflatten(1, {of_like, t.size(1) / of_like}).sum(2);
    t = t.to(like.scalar_type());
  };
  shared(d.q, x.q), shared(d.k, x.k), shared(d.v, x.v), shared(d.decay, x.decay);
  shared(d.p, x.p), shared(d.beta, x.beta), shared(d.a, x.a), shared(d.b, x.b);
  return d;
}

}  // namespace attzoo::core

#endif
