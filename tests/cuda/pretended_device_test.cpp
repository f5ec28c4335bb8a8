// The pretended device computes what the CPU does.

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "cuda/pretended_device.hpp"

namespace attzoo::testing {
namespace {

const torch::Device kDevice(torch::kCUDA, 0), kOther(torch::kCUDA, 1);

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
}

}  // namespace
}  // namespace attzoo::testing
