// Calls attzoo's operators of PyTorch (torch_library/ops.cpp) as Python would: by their names,
// through the dispatcher: example_torch_library [LIBRARY].

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/autograd.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using torch::Tensor;

namespace {

template <class A>
using Argument = std::conditional_t<std::is_same_v<A, Tensor>, const Tensor&, A>;

template <class... A>
std::tuple<Tensor, Tensor> call(const char* name, const A&... arguments) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<std::tuple<Tensor, Tensor>(Argument<A>...)>()
      .call(arguments...);
}

/// The largest difference of two results and of all their gradients.
double difference(const std::vector<Tensor>& inputs, const std::tuple<Tensor, Tensor>& a,
                  const std::tuple<Tensor, Tensor>& b) {
  const auto all = [&](const std::tuple<Tensor, Tensor>& r) {
    const auto& [first, second] = r;
    auto found = torch::autograd::grad({first.sin().sum() + second.cos().sum()}, inputs);
    found.insert(found.end(), {first.detach(), second.detach()});
    return found;
  };
  const auto x = all(a), y = all(b);
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    largest = std::max(largest, (x[i] - y[i]).abs().max().item<double>());
  }
  return largest;
}

}  // namespace

int main(int argc, char** argv) {
  if (!dlopen(argc > 1 ? argv[1] : ATTZOO_OPS, RTLD_NOW)) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  torch::manual_seed(0);
  const auto random = [](torch::IntArrayRef sizes) { return torch::randn(sizes).requires_grad_(); };
  const auto q = random({2, 4, 100, 16}), k = random({2, 4, 100, 16}), v = random({2, 4, 100, 8});
  const int64_t left = 8, right = 0;
  const auto r = attzoo::attention(q, k, v, attzoo::window(left, right));
  const double window = difference({q, k, v}, {r.output, r.lse},
                                   call("attzoo::window_attention", q, k, v, left, right));

  const auto decay = torch::rand({2, 4, 100}).neg().requires_grad_(),
             beta = torch::rand({2, 4, 100}).requires_grad_();
  const auto y = attzoo::recurrence(q, k * 0.1, v, {.decay = decay, .beta = beta});
  const double delta = difference({q, k, v, decay, beta}, {y.output, y.state},
                                  call("attzoo::gated_delta_rule", q, k * 0.1, v, decay, beta));

  const auto meta = [](const Tensor& t) { return t.detach().to(torch::kMeta); };
  const auto [output, lse] =
      call("attzoo::window_attention", meta(q), meta(k), meta(v), left, right);
  const auto [out, state] =
      call("attzoo::gated_delta_rule", meta(q), meta(k), meta(v), meta(decay), meta(beta));
  const bool sizes = output.sizes() == r.output.sizes() && lse.sizes() == r.lse.sizes() &&
                     out.sizes() == y.output.sizes() && state.sizes() == y.state.sizes();
  std::cout << "through the dispatcher, output and gradients differ by " << window << " and "
            << delta << "; sizes without numbers are " << (sizes ? "right" : "wrong") << '\n';
  return window < 1e-5 && delta < 1e-5 && sizes ? 0 : 1;
}
