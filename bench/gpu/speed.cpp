// How fast attention is: by kernels compiled at run time, in chunks, and by ATen's
// scaled_dot_product_attention, in turn. bench/gpu/flex.py reads the shapes from the records and
// measures FlexAttention.

#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/alibi.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gpu/report.hpp"
#include "timing.hpp"

namespace bench {
namespace {

using Q = const torch::Tensor&;
using Attend = std::function<torch::Tensor(Q, Q, Q)>;

struct Shape {
  std::string pattern;
  torch::ScalarType dtype;
  int64_t B, H, Hkv, L, S, D;

  std::string name() const {
    return c10::str(pattern, ", ", dtype, ", B ", B, ", H ", H, Hkv == H ? "" : c10::str(":", Hkv),
                    L == S ? "" : c10::str(", L ", L), ", n ", S, ", D ", D);
  }
};

constexpr int64_t kWindow = 1024;  // keys that a query sees, itself among them

/// The same attention in both libraries; `aten` may be missing.
struct Sides {
  attzoo::AnyMask mask;
  attzoo::AnyScore score;
  Attend aten;
  double share = 1;  // of all pairs that are allowed

  torch::Tensor own(Q q, Q k, Q v) const { return attzoo::attention(q, k, v, mask, score).output; }
};

Sides sides_of(const Shape& s, const torch::Device& device) {
  using namespace attzoo;
  const bool groups = s.H != s.Hkv;
  const auto aten = [=](bool causal, const std::optional<torch::Tensor>& mask) -> Attend {
    return [=](Q q, Q k, Q v) {
      return at::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, std::nullopt, groups);
    };
  };
  const auto n = static_cast<double>(s.S);
  const auto half = (n + 1) / (2 * n);
  if (s.pattern == "dense" || s.pattern == "decoding") return {{}, {}, aten(false, std::nullopt)};
  if (s.pattern == "causal") return {causal(), {}, aten(true, std::nullopt), half};
  if (s.pattern == "causal by a callable") {  // which no library's own kernel can know
    return {mask_mod([](auto, auto, auto q, auto kv) { return kv <= q; }),
            {},
            aten(true, std::nullopt),
            half};
  }
  const bool fits = s.S <= 4096;  // n x n in ATen's memory
  const auto i = fits ? torch::arange(s.S, device) : torch::Tensor();
  const auto distance = fits ? i.unsqueeze(1) - i : i;
  if (s.pattern == "window") {
    const double w = std::min(n, static_cast<double>(kWindow));
    return {window(kWindow - 1, 0),
            {},
            fits ? aten(false, (distance >= 0) & (distance < kWindow)) : nullptr,
            (w * n - w * (w - 1) / 2) / (n * n)};
  }
  if (s.pattern == "alibi") {
    const auto slopes = alibi_slopes(s.H).to(device);
    torch::Tensor bias;
    if (fits) {
      bias = (slopes.view({s.H, 1, 1}) * distance.neg())
                 .masked_fill(distance < 0, -INFINITY)
                 .to(s.dtype)
                 .unsqueeze(0);
    }
    return {causal(), alibi(slopes), fits ? aten(false, bias) : nullptr, half};
  }
  TORCH_CHECK(s.pattern == "softcap", "no pattern ", s.pattern);
  return {causal(), softcap(20), nullptr, half};
}

/// The shapes, the more telling first; tokens of a batch are as many at all lengths.
std::vector<Shape> shapes(bool quick) {
  constexpr auto bf16 = torch::kBFloat16, f16 = torch::kHalf, f32 = torch::kFloat32;
  std::vector<Shape> all;
  const auto add = [&](const std::string& pattern, torch::ScalarType dtype, int64_t n, int64_t D,
                       int64_t Hkv = 16) {
    const int64_t tokens = dtype == f32 ? 8192 : 16384;
    all.push_back({pattern, dtype, std::max<int64_t>(1, tokens / n), 16, Hkv, n, n, D});
  };
  if (quick) {
    for (const char* pattern : {"dense", "causal", "window", "alibi", "softcap"}) {
      all.push_back({pattern, bf16, 1, 2, 1, 128, 128, 32});
    }
    all.push_back({"decoding", bf16, 1, 4, 2, 1, 600, 32});
    return all;
  }
  for (const int64_t D : {128, 64}) {
    add("causal", bf16, 4096, D);
    add("dense", bf16, 4096, D);
    add("causal by a callable", bf16, 4096, D);
    add("softcap", bf16, 4096, D);
    add("alibi", bf16, 4096, D);
    add("window", bf16, 4096, D);
    add("causal", bf16, 16384, D);
    add("causal", f32, 4096, D);
  }
  for (const int64_t S : {4096, 32768}) {
    all.push_back({"decoding", bf16, 8, 32, 8, 1, S, 128});
    all.push_back({"decoding", bf16, 1, 32, 8, 1, S, 128});
  }
  add("causal", bf16, 4096, 128, 4);
  add("causal", f16, 4096, 128);
  for (const int64_t D : {128, 64}) {
    add("causal by a callable", bf16, 1024, D);
    add("causal by a callable", bf16, 16384, D);
    add("causal", bf16, 1024, D);
    add("dense", bf16, 1024, D);
    add("dense", bf16, 16384, D);
    add("window", bf16, 16384, D);
    add("softcap", bf16, 16384, D);
  }
  add("dense", f32, 4096, 64);
  return all;
}

struct Tensors {
  torch::Tensor q, k, v, grad;
};
Tensors tensors_of(const Shape& s, const torch::Device& device) {
  const auto numbers = [&](int64_t heads, int64_t n) {
    return torch::randn({s.B, heads, n, s.D}, torch::dtype(s.dtype).device(device))
        .requires_grad_();
  };
  return {numbers(s.H, s.L), numbers(s.Hkv, s.S), numbers(s.Hkv, s.S), numbers(s.H, s.L).detach()};
}

void attend(const Attend& f, const Tensors& t, bool backward) {
  const torch::AutoGradMode grad_mode(backward);
  const auto output = f(t.q, t.k, t.v);
  if (backward) torch::autograd::grad({output}, {t.q, t.k, t.v}, {t.grad});
}

/// The least time of a call, in seconds: of several rounds in which all calls run in turn, each as
/// often as fills some milliseconds.
std::vector<double> least_times(const std::vector<std::function<void()>>& calls,
                                const torch::Device& device, bool quick) {
  const double filled = quick ? 0 : 0.02;
  std::vector<double> least;
  for (const auto& f : calls) {
    f();
    least.push_back(seconds(device, f));
  }
  for (int round = 0; round < (quick ? 1 : 6); ++round) {
    for (size_t i = 0; i < calls.size(); ++i) {
      if (round > 1 && least[i] > 0.1) continue;  // what is that slow is known well enough
      const int times = static_cast<int>(std::clamp(filled / least[i], 1.0, 100.0));
      const double t = seconds(device, [&] {
        for (int j = 0; j < times; ++j) calls[i]();
      });
      least[i] = std::min(least[i], t / times);
    }
  }
  return least;
}

void measure(Entry& entry, const Shape& s, bool backward, const Order& order) {
  const auto t = tensors_of(s, order.device);
  const auto sides = sides_of(s, order.device);
  const auto call = [&](const Attend& f, bool jit) -> std::function<void()> {
    return [&f, &t, jit, backward] {
      attzoo::set_cuda_jit(jit);
      attend(f, t, backward);
    };
  };
  std::vector<std::string> names{"attzoo"};
  const Attend own = [&](Q q, Q k, Q v) { return sides.own(q, k, v); };
  std::vector<std::function<void()>> calls{call(own, true)};
  if (order.on_cuda()) {
    names.push_back("chunks");
    calls.push_back(call(own, false));
  }
  if (sides.aten) {
    names.push_back("ATen");
    calls.push_back(call(sides.aten, true));
  }
  entry.text("way", way_of(attzoo::explain(t.q, t.k, t.v, sides.mask, sides.score)));
  const auto least = least_times(calls, order.device, order.quick);
  for (size_t i = 0; i < least.size(); ++i) entry.number(names[i] + "_ms", least[i] * 1e3);
  if (sides.aten) entry.number("ATen/attzoo", least.back() / least[0]);
  const auto pairs = static_cast<double>(s.B * s.H * s.L * s.S) * sides.share;
  const auto D = static_cast<double>(s.D);
  entry.number("TFLOP/s", (backward ? 14 : 4) * D * pairs / least[0] / 1e12);
  if (s.pattern == "decoding") {
    const auto bytes = static_cast<double>(t.k.nbytes() + t.v.nbytes());
    entry.number("TB/s", bytes / least[0] / 1e12);
  }
}

}  // namespace

void compile_speed(Report& report) {
  const auto& order = report.order();
  if (!order.on_cuda()) return;
  for (const auto& s : shapes(order.quick)) {
    report.run(s.name(), [&](Entry& entry) {
      const auto t = tensors_of(s, order.device);
      const auto sides = sides_of(s, order.device);
      const Attend own = [&](Q q, Q k, Q v) { return sides.own(q, k, v); };
      for (const bool backward : {false, true}) {
        if (backward && s.pattern == "decoding") continue;
        entry.number(backward ? "forward and backward, s" : "forward, s",
                     seconds(torch::kCPU, [&] { attend(own, t, backward); }));
      }
    });
  }
}

void measure_speed(Report& report) {
  const auto& order = report.order();
  for (const auto& s : shapes(order.quick)) {
    for (const bool backward : {false, true}) {
      if (backward && s.pattern == "decoding") continue;
      report.run(s.name() + (backward ? ", forward and backward" : ", forward"), [&](Entry& entry) {
        entry.text("pattern", s.pattern);
        entry.text("dtype", c10::toString(s.dtype));
        for (const auto& [name, value] : {std::pair{"B", s.B},
                                          {"H", s.H},
                                          {"Hkv", s.Hkv},
                                          {"L", s.L},
                                          {"S", s.S},
                                          {"D", s.D},
                                          {"backward", int64_t{backward}}}) {
          entry.number(name, static_cast<double>(value));
        }
        measure(entry, s, backward, order);
      });
    }
  }
}

}  // namespace bench
