#pragma once
/// \file
/// The CPU's short convolution (kernel/recurrence/short_convolution.hpp) on tensors. Calls are not
/// recorded by autograd.

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/convolution.hpp>

namespace attzoo::core {

/// Whether c is on the CPU, has something to compute, and sizes that the kernel takes.
ATTZOO_API bool takes_on_cpu(const Convolution& c);

/// The output, in x's dtype.
ATTZOO_API torch::Tensor convolve_on_cpu(const Convolution& c);

/// The gradients of x, weight, bias and state, each in its place, from those of the output; of bias
/// and state where there are such.
ATTZOO_API Convolution gradients_on_cpu(const Convolution& c, const torch::Tensor& of_output);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/isa.hpp>

#include <attzoo/kernel/recurrence/short_convolution.hpp>

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API bool takes_on_cpu(const Convolution& c) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto fits = [](int64_t size) { return size > 0 && size < kMost; };
  return c.x.device().is_cpu() && std::all_of(c.x.sizes().begin(), c.x.sizes().end(), fits) &&
         c.weight.size(1) <= kernel::kMostTaps;
}

namespace convolution {

/// A view of [B, tokens, C] whose channels lie one after the other.
inline kernel::View view_rows(const torch::Tensor& t) {
  return {.data = t.data_ptr(),
          .dtype = kernel_dtype(t.scalar_type()),
          .b = t.stride(0),
          .n = t.stride(1),
          .d = 1};
}

inline torch::Tensor with_rows(const torch::Tensor& t) {
  const auto numbers = plain(t);
  return numbers.stride(2) == 1 ? numbers : numbers.contiguous();
}

/// [C, rows] or [C] -> [rows, C], padded with zeros, in the type of sums. A loop, because ATen's
/// calls take longer where one token is computed.
template <class T>
torch::Tensor by_rows(const torch::Tensor& any) {
  const auto t = plain(any);
  const int64_t C = t.size(0), rows = t.dim() == 1 ? 1 : t.size(1);
  const int64_t width = kernel::padded(static_cast<int>(C));
  torch::Tensor out = at::detail::empty_cpu({rows, width}, c10::CppTypeToScalarType<T>::value);
  auto* to = out.mutable_data_ptr<T>();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      torch::kHalf, torch::kBFloat16, t.scalar_type(), "short_convolution", [&] {
        const int64_t step = t.stride(0), row_step = t.dim() == 1 ? 0 : t.stride(1);
        for (int64_t i = 0; i < rows; ++i, to += width) {
          const auto* from = t.const_data_ptr<scalar_t>() + i * row_step;
          for (int64_t c = 0; c < C; ++c) to[c] = static_cast<T>(from[c * step]);
          std::fill(to + C, to + width, T(0));
        }
      });
  return out;
}

/// c in the kernel's terms, and the tensors that it points into.
template <class T>
struct OnCpu {
  explicit OnCpu(const Convolution& c)
      : x(with_rows(c.x)),
        weight(by_rows<T>(c.weight)),
        bias(c.bias.defined() ? by_rows<T>(c.bias) : c.bias),
        state(c.state.defined() && c.before() > 0 ? with_rows(c.state) : torch::Tensor()),
        run(c.run.defined() ? c.run.contiguous() : c.run) {
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    problem.x = view_rows(x);
    if (state.defined()) problem.state = view_rows(state);
    problem.weight = weight.const_data_ptr<T>();
    if (bias.defined()) problem.bias = bias.const_data_ptr<T>();
    problem.B = size(x.size(0));
    problem.n = size(x.size(1));
    problem.C = size(x.size(2));
    problem.K = size(c.weight.size(1));
    problem.silu = c.silu;
    if (!run.defined()) return;
    problem.run = run.const_data_ptr<int64_t>();
    problem.run_b = run.size(0) == 1 ? 0 : run.size(1);
  }

  torch::Tensor x, weight, bias, state, run;
  kernel::ConvolutionProblem<T> problem;
};

}  // namespace convolution

ATTZOO_API torch::Tensor convolve_on_cpu(const Convolution& c) {
  check_isa();
  torch::Tensor out = at::detail::empty_cpu(c.x.sizes(), c.x.scalar_type());
  const auto rows = convolution::view_rows(out);
  with_compute_type(c.x, [&]<class T>(T) {
    const convolution::OnCpu<T> on(c);
    const int64_t grain = at::internal::GRAIN_SIZE / c.x.size(2) + 1;
    at::parallel_for(0, c.x.size(0) * c.x.size(1), grain, [&](int64_t begin, int64_t end) {
      kernel::convolve(on.problem, rows, begin, end);
    });
  });
  return out;
}

ATTZOO_API Convolution gradients_on_cpu(const Convolution& c, const torch::Tensor& of_output) {
  check_isa();
  const auto given = convolution::with_rows(of_output);
  Convolution result;
  const auto empty_like = [](const torch::Tensor& t) -> torch::Tensor {
    return at::detail::empty_cpu(t.sizes(), t.scalar_type());
  };
  result.x = empty_like(c.x);
  if (c.state.defined()) result.state = empty_like(c.state);
  with_compute_type(c.x, [&]<class T>(T) {
    const convolution::OnCpu<T> on(c);
    const auto& p = on.problem;
    torch::Tensor sums = at::detail::empty_cpu(
        {int64_t{p.B} * p.blocks(), p.K + 1, on.weight.size(1)}, on.weight.scalar_type());
    kernel::ConvolutionGradients<T> g{convolution::view_rows(given),
                                      convolution::view_rows(result.x),
                                      {},
                                      sums.template mutable_data_ptr<T>()};
    if (p.state.data) g.state = convolution::view_rows(result.state);
    TorchRuntime runtime;
    kernel::convolve_backward(p, g, runtime);
    const auto of_taps = sums[0].narrow(1, 0, p.C);
    result.weight = of_taps.narrow(0, 0, p.K).t().contiguous().to(c.weight.scalar_type());
    if (c.bias.defined()) result.bias = of_taps[p.K].to(c.bias.scalar_type(), false, true);
  });
  return result;
}

}  // namespace attzoo::core

#endif
