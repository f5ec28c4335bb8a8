// The pretended device computes what the CPU does.

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>
#include <thread>
#include <vector>

#include "cuda/pretended_device.hpp"

namespace attzoo::testing {
namespace {

const torch::Device kDevice(torch::kCUDA, 0), kOther(torch::kCUDA, 1);

torch::Tensor numbers(const torch::Device& device) {
  torch::manual_seed(1);
  return torch::randn({4, 6}).to(device);
}

/// A function of a device gives the same tensors on the pretended ones as on the CPU.
template <class F>
void expect_same(F f) {
  const std::vector<torch::Tensor> expected = f(torch::Device(torch::kCPU));
  for (const auto& device : {kDevice, kOther}) {
    const std::vector<torch::Tensor> got = f(device);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].device(), device) << i;
      EXPECT_TRUE(torch::equal(got[i].cpu(), expected[i])) << i << got[i] << expected[i];
    }
  }
}

TEST(PretendedDevice, ComputesAsTheCpuDoes) {
  torch::manual_seed(1);
  const auto x = torch::randn({3, 4, 5}), y = torch::randn({3, 5, 4});
  const auto index = torch::tensor({2, 0});
  const auto f = [&](const torch::Device& d) {
    const auto a = x.to(d), b = y.to(d), i = index.to(d);
    auto c = torch::softmax(torch::matmul(a, b) * 2 + 1, -1).transpose(1, 2).contiguous();
    c.slice(1, 0, 2).add_(
        torch::arange(3, torch::dtype(torch::kFloat32).device(d)).view({3, 1, 1}));
    c.index_add_(0, i, torch::ones({2, 4, 4}, torch::device(d)));
    c = torch::where(c > 0.5, c, torch::zeros({}, torch::device(d))).masked_fill(c > 2, 7.0);
    const auto rows = c.index_select(0, i), picked = torch::index(c, {i, i});
    return torch::cat({rows.flatten(), picked.flatten(), c.sum(1).flatten(), c.amax(-1).flatten(),
                       torch::cumsum(c, 2).flatten(), torch::constant_pad_nd(c, {1, 2}).flatten()});
  };
  const auto got = f(kDevice);
  EXPECT_EQ(got.device(), kDevice);
  EXPECT_TRUE(torch::equal(got.cpu(), f(torch::kCPU)));
}

TEST(PretendedDevice, MakesTensors) {
  expect_same([](const torch::Device& d) -> std::vector<torch::Tensor> {
    const auto on = torch::device(d);
    torch::manual_seed(3);
    return {torch::zeros({2, 3}, on),
            torch::arange(5, on),
            torch::full({2}, 3.5, on),
            torch::tensor({1.f, 2.f}, on),
            torch::empty({3}, on).fill_(2),
            torch::empty_strided({2, 3}, {1, 2}, on).fill_(1),
            torch::rand({3}, on),
            torch::randint(10, {3}, on),
            torch::randperm(9, on.dtype(torch::kInt64)),
            torch::eye(3, on),
            torch::zeros_like(numbers(d))};
  });
}

TEST(PretendedDevice, Indexes) {
  expect_same([](const torch::Device& d) -> std::vector<torch::Tensor> {
    const auto rows = torch::tensor({0, 2}).to(d);
    auto put = numbers(d), added = numbers(d), masked = numbers(d), scattered = numbers(d);
    put.index_put_({rows}, torch::tensor(7.f));
    added.index_put_({torch::indexing::Slice(1, 3), 0}, 9.0);
    masked.index_put_({masked > 0}, torch::tensor(5.f).to(d));
    scattered.scatter_(1, rows.view({2, 1}), 1.0);
    const auto x = numbers(d);
    return {put,
            added,
            masked,
            scattered,
            torch::index(x, {torch::tensor({1, 2})}),
            torch::index(x, {x > 0}),
            x.gather(1, rows.view({2, 1})),
            x.masked_select(x > 0),
            (x > 0).nonzero(),
            std::get<1>(x.topk(2, 1)),
            std::get<0>(x.max(1)),
            x.argmax()};
  });
}

TEST(PretendedDevice, CopiesBetweenDevicesAndTypes) {
  expect_same([](const torch::Device& d) -> std::vector<torch::Tensor> {
    auto x = torch::zeros({4, 6}, torch::device(d));
    x.slice(0, 1, 3).copy_(numbers(torch::kCPU).slice(0, 0, 2));
    auto other = torch::zeros({4, 6}, torch::device(d)).copy_(numbers(kOther).t().contiguous().t());
    return {x,
            other,
            numbers(torch::kCPU).t().to(d, torch::kFloat64),
            numbers(kDevice).to(d),
            x.to(torch::kCPU, torch::kFloat16).to(d),
            torch::zeros({6}, torch::device(d)).copy_(torch::arange(6)),
            torch::ones({1}).expand({5}).to(d)};
  });
}

TEST(PretendedDevice, WritesWhereItIsTold) {
  expect_same([](const torch::Device& d) -> std::vector<torch::Tensor> {
    const auto x = numbers(d);
    auto empty = torch::empty({0}, torch::device(d)),
         whole = torch::zeros({8, 6}, torch::device(d));
    auto part = whole.slice(0, 2, 6);
    torch::cat_out(empty, {x, x}, 1);
    torch::mul_out(part, x, x);
    auto moved = numbers(d), source = numbers(d), parts = numbers(d);
    moved.set_(source.storage(), 2, {3}, {1}).zero_();
    parts.unbind(0)[2].add_(3);
    return {empty, whole, source, parts, x.as_strided({2, 2}, {1, 6}, 3).zero_(), x};
  });
}

TEST(PretendedDevice, GrowsTheMemoryOfAllViews) {
  auto x = numbers(kDevice);
  const auto view = x.view({24});
  const auto old = view.clone();
  x.resize_({10, 10});
  EXPECT_EQ(x.device(), kDevice);
  EXPECT_TRUE(x.is_alias_of(view));
  EXPECT_TRUE(torch::equal(view, old));
  x.fill_(3);
  EXPECT_EQ(view.sum().item<float>(), 72);
}

TEST(PretendedDevice, KeepsConjugates) {
  expect_same([](const torch::Device& d) -> std::vector<torch::Tensor> {
    const auto z = torch::view_as_complex(numbers(d).view({4, 3, 2}));
    return {torch::view_as_real((z.conj() * z).resolve_conj()),
            torch::view_as_real(torch::matmul(z.conj(), z.t())), torch::imag(z.conj()).clone()};
  });
}

TEST(PretendedDevice, TakesTensorsOfOneDevice) {
  const auto x = numbers(kDevice), far = numbers(kOther), host = numbers(torch::kCPU);
  EXPECT_THROW(x + host, c10::Error);
  EXPECT_THROW(x + far, c10::Error);
  EXPECT_THROW(torch::matmul(x, host.t()), c10::Error);
  EXPECT_THROW(torch::cat({x, far}), c10::Error);
  EXPECT_THROW(x.index_select(0, torch::tensor({1})), c10::Error);
  EXPECT_THROW(x.masked_fill(host > 0, 1), c10::Error);
  EXPECT_THROW(torch::index(host, {torch::tensor({1}).to(kDevice)}), c10::Error);
  EXPECT_TRUE(torch::equal((x * torch::tensor(2.0)).cpu(), host * 2));
  EXPECT_TRUE(torch::equal(torch::where(x > 0, x, torch::tensor(0.f)).cpu(), host.clamp_min(0)));
}

TEST(PretendedDevice, HasTwoDevices) {
  const c10::Device missing(torch::kCUDA, 5);
  EXPECT_THROW(torch::ones({2}, torch::device(missing)), c10::Error);
  EXPECT_THROW(numbers(missing), c10::Error);
  EXPECT_EQ(torch::cuda::device_count(), 2);
  const c10::DeviceGuard on(kOther);
  EXPECT_EQ(torch::ones({2}, torch::kCUDA).device(), kOther);
  EXPECT_EQ(numbers(torch::kCUDA).device(), kOther);
}

TEST(PretendedDevice, Prints) {
  std::ostringstream text;
  text << torch::full({2}, 3, torch::device(kDevice));
  EXPECT_EQ(text.str(), " 3\n 3\n[ CUDALongType{2} ]");
}

TEST(PretendedDevice, IsSavedAndLoaded) {
  std::stringstream file;
  torch::save(numbers(kOther), file);
  torch::Tensor x;
  torch::load(x, file);
  EXPECT_EQ(x.device(), kOther);
  EXPECT_TRUE(torch::equal(x.cpu(), numbers(torch::kCPU)));
}

TEST(PretendedDevice, SharesMemoryBetweenViews) {
  auto x = torch::zeros({4, 4}, torch::device(kDevice));
  x.view({16}).slice(0, 0, 8).fill_(3);
  x.t().select(0, 1).zero_();
  EXPECT_TRUE(x.is_alias_of(x.t()));
  EXPECT_EQ(x.sum().item<float>(), 18);
}

TEST(PretendedDevice, HasAutograd) {
  const auto f = [](const torch::Device& d) {
    torch::manual_seed(2);
    torch::nn::Linear layer(4, 3);
    layer->to(d);
    const auto x = torch::randn({5, 4}).to(d).requires_grad_();
    const auto y = torch::tanh(layer(x)).pow(2).sum() + (x * x).mean();
    y.backward();
    return torch::cat({x.grad().flatten(), layer->weight.grad().flatten(), layer->bias.grad()})
        .cpu();
  };
  EXPECT_TRUE(torch::equal(f(kOther), f(torch::kCPU)));
}

TEST(PretendedDevice, Trains) {
  const auto f = [](const torch::Device& d) {
    torch::manual_seed(3);
    torch::nn::Sequential layers(torch::nn::Linear(6, 8), torch::nn::GELU(),
                                 torch::nn::LayerNorm(torch::nn::LayerNormOptions({8})),
                                 torch::nn::Dropout(0.2), torch::nn::Linear(8, 2));
    layers->to(d);
    torch::optim::AdamW optimiser(layers->parameters());
    torch::manual_seed(4);
    const auto x = numbers(d);
    for (int i = 0; i < 3; ++i) {
      optimiser.zero_grad();
      layers->forward(x).pow(2).mean().backward();
      torch::nn::utils::clip_grad_norm_(layers->parameters(), 1.0);
      optimiser.step();
    }
    layers->eval();
    return layers->forward(x).cpu();
  };
  EXPECT_TRUE(torch::allclose(f(kOther), f(torch::kCPU), 1e-4, 1e-5));
}

TEST(PretendedDevice, GoesBackOnTheStreamOfTheForwardPass) {
  struct {
    c10::Device device = kDevice;
    void* stream = nullptr;
    std::thread::id thread;
  } seen;
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  const c10::Stream stream(c10::Stream::UNSAFE, kOther, 9);
  const auto x = numbers(kOther).requires_grad_();
  torch::Tensor square;
  {
    const c10::StreamGuard on(stream);
    square = x * x;
  }
  square.register_hook([&](const torch::Tensor& grad) {
    seen = {guard.getDevice(), guard.getStream(kOther).native_handle(), std::this_thread::get_id()};
    return grad;
  });
  square.to(kDevice).cpu().sum().backward();
  EXPECT_EQ(seen.device, kOther);
  EXPECT_EQ(seen.stream, stream.native_handle());
  EXPECT_NE(seen.thread, std::this_thread::get_id());
  EXPECT_TRUE(torch::equal(x.grad().cpu(), 2 * numbers(torch::kCPU)));
}

TEST(PretendedDevice, HasEventsAndNewStreams) {
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  const auto a = guard.getNewStream(kOther), b = guard.getStreamFromGlobalPool(kOther);
  EXPECT_NE(a.native_handle(), b.native_handle());
  EXPECT_NE(a.native_handle(), guard.getDefaultStream(kOther).native_handle());
  c10::Event event(c10::kCUDA);
  event.record(a);
  event.block(b);
  EXPECT_TRUE(event.query());
  numbers(kOther).record_stream(a);
}

TEST(PretendedDevice, HasDevicesAndStreams) {
  const auto& guard = *c10::impl::getDeviceGuardImpl(c10::kCUDA);
  EXPECT_EQ(guard.deviceCount(), 2);
  const c10::Stream stream(c10::Stream::UNSAFE, kOther, 5);
  {
    const c10::StreamGuard on(stream);
    EXPECT_EQ(guard.getDevice(), kOther);
    EXPECT_EQ(guard.getStream(kOther).native_handle(), pretended_stream(kOther, 5));
  }
  EXPECT_EQ(guard.getDevice(), kDevice);
  EXPECT_EQ(guard.getStream(kOther).native_handle(), pretended_stream(kOther, 0));
  EXPECT_EQ(torch::ones({2}, torch::device(kOther)).device(), kOther);
}

TEST(PretendedDevice, CountsWaits) {
  const auto x = torch::ones({3}).to(kDevice);
  const auto before = host_synchronisations();
  const auto y = x + x;
  EXPECT_EQ(host_synchronisations(), before);
  EXPECT_EQ(y.sum().item<float>(), 6);
  y.cpu();
  EXPECT_EQ(host_synchronisations(), before + 2);
  y.nonzero();
  y.masked_select(y > 0);
  at::_unique2(y);
  EXPECT_EQ(host_synchronisations(), before + 5);
  y.to(kOther);
  y.to(torch::kCPU, /*non_blocking=*/true);
  EXPECT_EQ(host_synchronisations(), before + 5);
}

}  // namespace
}  // namespace attzoo::testing
