// What runs here, and how long kernels take to compile.

#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/image.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/version.hpp>

#include <string>

#include "gpu/report.hpp"
#include "timing.hpp"

namespace bench {
namespace {

using attzoo::core::cuda::Library;

/// A function of CUDA's driver, or null.
template <class F>
F driver_function(const char* name) {
  const auto driver = Library::open({"libcuda.so.1"});
  return driver ? reinterpret_cast<F>(driver.symbol(name)) : nullptr;
}

void device_facts(Entry& entry, const torch::Device& device) {
  const auto facts = attzoo::core::cuda::facts(device);
  char name[128] = "unknown";
  if (const auto ask = driver_function<int (*)(char*, int, int)>("cuDeviceGetName")) {
    ask(name, sizeof name, device.index());
  }
  int version = 0;
  if (const auto ask = driver_function<int (*)(int*)>("cuDriverGetVersion")) ask(&version);
  entry.text("device", name);
  entry.number("compute capability", facts.capability);
  entry.number("processors", facts.processors);
  entry.number("shared memory of a block", facts.shared_memory);
  entry.number("CUDA of the driver", version / 1000 + version % 1000 / 10 / 10.0);
}

void compiler_facts(Entry& entry, const torch::Device& device) {
  const auto size =
      attzoo::core::cuda::image_of("extern \"C\" __global__ void f(int* x) { *x = 1; }",
                                   attzoo::core::cuda::facts(device).capability)
          .size();
  entry.number("bytes of an empty kernel", static_cast<double>(size));
  const auto nvrtc = Library::open({"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"}, true);
  int major = 0, minor = 0;
  if (!nvrtc) return;  // it is within another library
  if (const auto ask = reinterpret_cast<int (*)(int*, int*)>(nvrtc.symbol("nvrtcVersion"))) {
    ask(&major, &minor);
  }
  entry.text("NVRTC", std::to_string(major) + "." + std::to_string(minor));
}

/// The first call compiles, the second does not.
void compile_time(Entry& entry, torch::ScalarType dtype, int64_t D, const torch::Device& device) {
  const auto softcap =
      attzoo::score_mod([](auto s, auto, auto, auto, auto) { return 17 * tanh(s / 17); });
  const auto x = torch::randn({1, 2, 200, D}, device).to(dtype).requires_grad_();
  torch::Tensor output;
  for (const char* which : {"first", "second"}) {
    const auto forward = seconds(torch::kCPU, [&] {
      output = attzoo::attention(x, x, x, attzoo::causal(), softcap).output;
      output.sum().item<double>();
    });
    const auto backward = seconds(torch::kCPU, [&] {
      torch::autograd::grad({output}, {x}, {output})[0].sum().item<double>();
    });
    entry.number(std::string(which) + " forward, s", forward);
    entry.number(std::string(which) + " backward, s", backward);
  }
}

}  // namespace

void check_facts(Report& report) {
  const auto& order = report.order();
  report.run("versions", [&](Entry& entry) {
    entry.text("attzoo", ATTZOO_VERSION_STRING);
    entry.text("LibTorch", TORCH_VERSION);
    entry.text("compiler", __VERSION__);
  });
  if (!order.on_cuda()) return;
  report.run("device", [&](Entry& entry) { device_facts(entry, order.device); });
  report.run("NVRTC", [&](Entry& entry) { compiler_facts(entry, order.device); });
  for (const auto dtype : {torch::kBFloat16, torch::kHalf, torch::kFloat32}) {
    for (const int64_t D : {64, 128, 256}) {
      if (order.quick && D > 64) continue;
      report.run(c10::str("compilation, ", dtype, ", D ", D),
                 [&](Entry& entry) { compile_time(entry, dtype, D, order.device); });
    }
  }
}

}  // namespace bench
