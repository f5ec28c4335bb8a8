// How kernels are found, compiled, kept and launched, and what happens where that fails.

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <attzoo/core/cuda/arguments.hpp>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/image.hpp>

#include <locale.h>

#include <filesystem>
#include <thread>

#include "cuda/cuda_case.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

using CudaDriver = CudaKernels;

const torch::Device kFirst(torch::kCUDA, 0), kSecond(torch::kCUDA, 1);

torch::Tensor numbers(const torch::Device& device, int64_t length = 40) {
  torch::manual_seed(4);
  return torch::randn({1, 2, length, 16}).to(device);
}

/// A mask whose text nobody has compiled before.
AnyMask fresh_mask() {
  static int used = 0;
  const int steps = ++used;
  return mask_mod([=](auto, auto, auto q, auto kv) {
    auto sum = q - kv;
    for (int i = 0; i < steps; ++i) sum = sum * 2 + kv;
    return sum % 7 != 3;
  });
}

/// Attention is right whatever way it takes; returns that of a new mask.
std::string way_of_new_mask(const torch::Device& device = kFirst) {
  const auto mask = fresh_mask();
  const auto q = numbers(device);
  const auto got = attention(q, q, q, mask).output.cpu();
  EXPECT_TRUE(torch::allclose(got, attention(q.cpu(), q.cpu(), q.cpu(), mask).output, 1e-4, 1e-5));
  return explain(q, q, q, mask);
}
void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST_F(CudaDriver, LaunchesOnTheCurrentStream) {
  const auto q = numbers(kSecond);
  attention(q, q, q, causal());
  {
    const c10::StreamGuard other(c10::Stream(c10::Stream::UNSAFE, kSecond, 7));
    attention(q, q, q, causal());
  }
  ASSERT_EQ(attzoo_launches(), 2) << attzoo_error();
  EXPECT_EQ(attzoo_launch(0).stream, pretended_stream(kSecond, 0));
  EXPECT_EQ(attzoo_launch(1).stream, pretended_stream(kSecond, 7));
  EXPECT_EQ(attzoo_launch(0).device, 1);
}

TEST_F(CudaDriver, TakesTheTilesOfABlockMask) {
  const auto q = numbers(kSecond, 200);
  const int64_t n = q.size(2);
  const auto order = torch::randperm(n);
  const auto mask = [&](const torch::Device& device) {
    const auto place = table(order.to(device));
    return block_mask(mask_mod([=](auto, auto, auto i, auto j) { return place(j) <= place(i); }), n,
                      n);
  };
  const auto want = attention(q.cpu(), q.cpu(), q.cpu(), mask(torch::kCPU)).output;
  const auto got = attention(q, q, q, mask(kSecond)).output;
  EXPECT_TRUE(torch::allclose(got.cpu(), want, 1e-4, 1e-5));
  EXPECT_EQ(attzoo_launches(), 1) << attzoo_error();
}

TEST_F(CudaDriver, GoesBackToTheDeviceThatWas) {
  const c10::DeviceGuard guard(kFirst);
  const auto q = numbers(kSecond);
  attention(q, q, q, causal());
  EXPECT_EQ(c10::impl::getDeviceGuardImpl(c10::kCUDA)->getDevice(), kFirst);
}

TEST_F(CudaDriver, RunsOnThreadsWithoutAContext) {
  const auto q = numbers(kFirst);
  const auto mask = fresh_mask();
  torch::Tensor got;
  std::thread([&] { got = attention(q, q, q, mask).output; }).join();
  EXPECT_TRUE(torch::equal(got.cpu(), attention(q, q, q, mask).output.cpu()));
  EXPECT_EQ(attzoo_launches(), 2) << attzoo_error();
}

TEST_F(CudaDriver, CompilesATextOnce) {
  const auto q = numbers(kFirst), other = numbers(kFirst, 50);
  const auto of_width = [](int64_t width) {
    return mask_mod([=](auto, auto, auto q, auto kv) { return q - kv < width && kv % 3 != 1; });
  };
  attention(q, q, q, of_width(5));
  const int before = attzoo_compilations();
  attention(other, other, other, of_width(20));
  EXPECT_EQ(attzoo_compilations(), before) << "another length and another number";
  std::vector<std::thread> threads;
  const auto mask = fresh_mask();
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { attention(q, q, q, mask); });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(attzoo_compilations(), before + 1) << "four threads at once";
}

TEST_F(CudaDriver, UploadsNothingTwice) {
  const auto q = numbers(kFirst, 300);
  attention(q, q, q, causal());
  const auto before = host_synchronisations();
  attention(q, q, q, causal());
  EXPECT_EQ(host_synchronisations(), before);
}

TEST_F(CudaDriver, IsCapturedInAGraphOnceItHasRun) {
  const auto q = numbers(kFirst, 290).requires_grad_(), grad = torch::ones_like(q);
  const auto step = [&] {
    return torch::autograd::grad({attention(q, q, q, causal()).output}, {q}, {grad})[0].cpu();
  };
  attzoo_capture(true);
  expect_error(step, {"CUDA graph", "run it there once"});
  attzoo_capture(false);
  const auto want = step();
  attzoo_capture(true);
  EXPECT_TRUE(torch::equal(step(), want));
  attzoo_capture(false);
  // What the graph reads stays, however many others come.
  for (int i = 0; i < 70; ++i) core::on_device({.entries = {i, 0, 0, 0}}, kFirst);
  attzoo_capture(true);
  EXPECT_TRUE(torch::equal(step(), want));
  attzoo_capture(false);
}

TEST_F(CudaDriver, FallsBackWhereACompilationFails) {
  attzoo_fail_compilations(6);
  const auto way = way_of_new_mask();
  attzoo_fail_compilations(0);
  expect_part(way, "could not be compiled");
  expect_part(way, "the definition, n x n in memory: taken");
  EXPECT_EQ(attzoo_launches(), 0);
  expect_part(way_of_new_mask(), "CUDA kernels compiled at run time: taken");
}

TEST_F(CudaDriver, SaysTheCompilersWords) {
  attzoo_fail_compilations(6);
  expect_error([] { core::cuda::image_of("nonsense", 80); },
               {"NVRTC", "failed with 6", "a pretended failure"});
  attzoo_fail_compilations(0);
}

TEST_F(CudaDriver, FallsBackWhereTheDriverFails) {
  for (const char* function : {"cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"}) {
    SCOPED_TRACE(function);
    attzoo_fail(function, 2);
    way_of_new_mask();
    attzoo_reset();
    set_cuda_jit(true);  // a failed launch turns it off
  }
}

TEST_F(CudaDriver, FallsBackBeforeAndInTheBackwardPass) {
  for (const bool forward : {true, false}) {
    const auto mask = fresh_mask();
    const auto grad = [&](const torch::Device& d, bool fails) {
      const auto q = numbers(d).requires_grad_();
      if (fails && forward) attzoo_fail("cuLaunchKernel", 701);
      const auto output = attention(q, q, q, mask).output;
      if (fails && !forward) attzoo_fail("cuLaunchKernel", 701);
      return torch::autograd::grad({output.sum()}, {q})[0].cpu();
    };
    EXPECT_TRUE(torch::allclose(grad(kFirst, true), grad(torch::kCPU, false), 1e-4, 1e-5));
    set_cuda_jit(true);
  }
}

TEST_F(CudaDriver, NamesADeviceThatIsNotThere) {
  expect_error([] { core::cuda::facts(torch::Device(torch::kCUDA, 7)); },
               {"cuDeviceGetAttribute", "101"});
}

TEST_F(CudaDriver, IsAskedForByTheUser) {
  set_cuda_jit(false);
  expect_part(way_of_new_mask(), "not asked for");
  EXPECT_EQ(attzoo_launches(), 0);
}

TEST_F(CudaDriver, SaysWhyNot) {
  const auto q = numbers(kFirst).to(torch::kFloat64);
  expect_part(explain(q, q, q, causal()), "they have no float64");
  const auto wide = torch::zeros({1, 2, 4, 300}).to(kFirst);
  expect_part(explain(wide, wide, wide), "more than 256 features");
}

TEST_F(CudaDriver, KeepsImagesInAFolder) {
  const auto folder = std::filesystem::temp_directory_path() / "attzoo_cuda_cache_test";
  std::filesystem::remove_all(folder);
  setenv("ATTZOO_CUDA_CACHE", folder.c_str(), 1);
  const std::string text = "extern \"C\" __global__ void f(int* x) { *x = 1; }";
  const auto image = core::cuda::image_of(text, 80);
  const int before = attzoo_compilations();
  EXPECT_EQ(core::cuda::image_of(text, 80), image);
  EXPECT_EQ(attzoo_compilations(), before);
  core::cuda::image_of(text, 90);
  core::cuda::image_of(text + " ", 80);
  EXPECT_EQ(attzoo_compilations(), before + 2) << "another device and another text";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    std::filesystem::resize_file(file, 10);  // cut off
  }
  EXPECT_EQ(core::cuda::image_of(text, 80), image);
  setenv("ATTZOO_CUDA_CACHE", "/proc/nowhere", 1);
  EXPECT_EQ(core::cuda::image_of(text, 80), image);
  unsetenv("ATTZOO_CUDA_CACHE");
  std::filesystem::remove_all(folder);
}

TEST_F(CudaDriver, KeepsTheLocale) {
  const auto* before = uselocale(nullptr);
  core::cuda::image_of("extern \"C\" __global__ void g(int* x) { *x = 2; }", 80);
  EXPECT_EQ(uselocale(nullptr), before);
}

TEST_F(CudaDriver, AsksForPtxWhereTheDeviceIsNewer) {
  const auto asked_for = [](int capability) {
    core::cuda::image_of("extern \"C\" __global__ void h(int* x) { *x = 3; }", capability);
    return std::string(attzoo_architecture());
  };
  EXPECT_EQ(asked_for(80), "--gpu-architecture=sm_80");
  EXPECT_EQ(asked_for(999), "--gpu-architecture=compute_90");  // the newest that it knows
}

}  // namespace
}  // namespace attzoo::testing
