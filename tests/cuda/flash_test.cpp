// Attention whose forward pass is ATen's flash attention, here an operator that computes and errs
// as that one does.

#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <optional>
#include <tuple>

#include "cuda/cuda_case.hpp"

namespace attzoo::testing {
namespace {

using MaybeTensor = std::optional<torch::Tensor>;
using MaybeSize = std::optional<c10::SymInt>;
using Tensors5 =
    std::tuple<torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor>;

std::atomic<int> calls{0};
std::atomic<bool> fails{false};

/// aten::_flash_attention_forward. Weights of 0 are multiplied with whatever the values are, and
/// lse of rows without keys is inf.
Tensors5 flash_forward(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const MaybeTensor&, const MaybeTensor&, c10::SymInt max_q, c10::SymInt max_k,
                       double dropout, bool causal, bool, std::optional<double> scale,
                       MaybeSize left, MaybeSize right, const MaybeTensor&, const MaybeTensor&,
                       const MaybeTensor&, std::optional<int64_t>) {
  TORCH_CHECK(!fails, "flash attention fails");
  ++calls;
  TORCH_CHECK(dropout == 0 && max_q == q.size(1) && max_k == k.size(1));
  TORCH_CHECK(q.stride(3) == 1 && k.stride(3) == 1 && v.stride(3) == 1);
  const int64_t L = q.size(1), S = k.size(1), group = q.size(2) / k.size(2);
  const auto heads_first = [&](const torch::Tensor& x, int64_t repeat) {
    return x.cpu().transpose(1, 2).to(torch::kFloat32).repeat_interleave(repeat, 1);
  };
  auto s = heads_first(q, 1).matmul(heads_first(k, group).transpose(2, 3)) * *scale;
  const auto ahead =
      torch::arange(S).unsqueeze(0) - (torch::arange(L).unsqueeze(1) + (S - L));  // of the query
  auto hidden = torch::zeros({L, S}, torch::kBool);
  if (causal) right = c10::SymInt(0);
  if (right) hidden |= ahead > right->expect_int();
  if (left) hidden |= ahead < -left->expect_int();
  s = s.masked_fill(hidden, -std::numeric_limits<float>::infinity());
  const auto most = s.amax(-1, true).clamp_min(-1e30), w = (s - most).exp();
  const auto sum = w.sum(-1, true);
  const auto lse = (most + sum.log()).squeeze(-1), none = sum.squeeze(-1) == 0;
  const auto output = (w.to(q.scalar_type()).to(torch::kFloat32).matmul(heads_first(v, group)) /
                       sum.masked_fill(sum == 0, 1))
                          .to(q.scalar_type());
  const auto to = [&](const torch::Tensor& x) { return x.contiguous().to(q.device()); };
  return {to(output.transpose(1, 2)),
          to(lse.masked_fill(none, std::numeric_limits<float>::infinity())), to(sum), to(sum),
          to(sum)};
}

class CudaFlash : public CudaKernels {
 protected:
  void SetUp() override {
    CudaKernels::SetUp();
    calls = 0;
  }

 private:
  torch::Library library_ = [] {
    torch::Library l(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
    l.impl("_flash_attention_forward", flash_forward);
    return l;
  }();
};

TEST_F(CudaFlash, TakesWindows) {
  for (const auto dtype : {kBf16, kF16}) {
    for (const auto& [name, mask, L] : std::vector<std::tuple<std::string, AnyMask, int64_t>>{
             {"all", {}, 130},
             {"causal", causal(), 130},
             {"window", window(50, 20), 130},
             {"past", window(40, 0), 330},
             {"future", window(kUnbounded, 30), 330},
             {"causal and window", causal() && window(60, 60), 130},
             {"from the first key", causal(CausalAlignment::kTopLeft), 330},
             {"one query", causal(), 1},
             {"rows without keys", causal(), 400},
         }) {
      expect_attention(
          {.name = name, .dtype = dtype, .B = 2, .H = 4, .L = L, .make = constant(mask)}, "repair");
    }
  }
  EXPECT_EQ(calls, 18);
}

TEST_F(CudaFlash, KeepsWhatIsNoNumberWhereItIs) {
  const double kNan = std::numeric_limits<double>::quiet_NaN();
  expect_attention({.name = "later values",
                    .L = 330,
                    .make = constant(causal()),
                    .spoil =
                        [&](auto& q, auto& k, auto& v) {
                          v.slice(2, 200, 201).fill_(kNan);
                          k.slice(2, 300, 301).fill_(std::numeric_limits<double>::infinity());
                          q.slice(2, 100, 101).fill_(kNan);
                        }},
                   "repair");
}

TEST_F(CudaFlash, IsExactForLargeScores) {
  expect_attention({.name = "large",
                    .L = 330,
                    .make = constant(causal()),
                    .spoil =
                        [&](auto& q, auto& k, auto&) {
                          q.slice(3, 0, 1).fill_(200);
                          k.slice(3, 0, 1).fill_(200);
                        }},
                   "repair");
}

TEST_F(CudaFlash, IsNotAskedForWhatItDoesNotKnow) {
  for (const Case& c :
       std::vector<Case>{{.name = "float32", .dtype = kF32},
                         {.name = "features of 12", .D = 12, .E = 12},
                         {.name = "other features of values", .E = 24},
                         {.name = "a softcap", .make = constant({}, softcap(5))},
                         {.name = "a prefix", .make = constant(causal() || prefix(9))},
                         {.name = "later keys", .make = constant(!causal())},
                         {.name = "beyond the diagonal",
                         .make = constant(causal(CausalAlignment::kTopLeft) && window(900, 900))},
                         {.name = "dropout", .options = {.dropout = 0.2, .seed = 1}},
                         {.name = "a negative scale", .options = {.scale = -1.0}},
                         {.name = "rows beside 16 bytes", .layout = [](auto& t) {
                            return torch::cat({t.slice(3, 0, 1), t}, 3).slice(3, 1);
                          }}}) {
    expect_attention(c);
  }
  EXPECT_EQ(calls, 0);
}

TEST_F(CudaFlash, IsExplained) {
  const auto q = torch::randn({1, 2, 130, 16}).to(kBf16).to(torch::Device(torch::kCUDA, 0));
  EXPECT_NE(explain(q, q, q, causal()).find("ATen's flash attention, CUDA kernels backward: taken"),
            std::string::npos);
}

TEST_F(CudaFlash, GivesWayToKernelsWhereItFails) {  // for good: the last one
  fails = true;
  expect_attention({.name = "a failure", .L = 330, .make = constant(causal())});
  fails = false;
  expect_attention({.name = "behind it", .L = 330, .make = constant(causal())});
  EXPECT_EQ(calls, 0);
}

}  // namespace
}  // namespace attzoo::testing
