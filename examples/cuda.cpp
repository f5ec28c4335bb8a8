// A mask and a score modifier of your own as kernels for a GPU, compiled while the program runs.

#include <torch/cuda.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

int main() {
  const bool has_cuda = torch::cuda::is_available();
  const torch::Device device(has_cuda ? torch::kCUDA : torch::kCPU);
  const auto options = torch::dtype(has_cuda ? torch::kBFloat16 : torch::kFloat32).device(device);
  const auto q = torch::randn({1, 8, 1024, 64}, options).requires_grad_(),
             k = torch::randn({1, 2, 1024, 64}, options),
             v = torch::randn({1, 2, 1024, 64}, options);
  // [jit]
  set_cuda_jit(true);  // or ATTZOO_CUDA_JIT=1

  auto near = mask_mod([](auto, auto, auto q, auto kv) { return kv <= q && q - kv < 256; });
  auto capped = score_mod([](auto s, auto, auto, auto, auto) { return 20 * tanh(s / 20); });
  auto output = attention(q, k, v, near, capped).output;
  output.sum().backward();

  std::cout << explain(q, k, v, near, capped);
  // [/jit]
}
