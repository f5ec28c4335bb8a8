// decode_bench: few queries against a cache of keys and values, as in decoding token by token.
// attention(), ATen's scaled_dot_product_attention, and a loop that merely reads K and V run in
// turn in every iteration of one benchmark, on the same buffers: the first S of S + 64 tokens. The
// counters are
//   own_us, aten_us, read_us   the least times
//   aten/own                   how many times faster than ATen
//   read/own                   share of the time in which the memory could be read at all
//
//   decode_bench --benchmark_filter='decode/f32/mha/.*/threads:2'
//
// i8 and f8 are queries of bfloat16 and quantize_rows() of int8 and float8_e4m3fn; in ATen's place
// attention() runs on bfloat16: bf16_us, and own/bf16, the share of its time.
//
// mha has 8 heads, gqa 32 of queries and 8 of keys, mqa 8 and 1. mla/H:N are N heads that share one
// latent of D features, of which the first 8 ninths are the values, too, as the absorbed form of
// MultiHeadLatentAttention has them: read once, by the loop as well; without ATen, which would take
// a hundred times as long.
//
// `step/<mechanism>/context:N` is one token through a module, d_model 512, with a cache of N
// tokens. `cross/context:N` is one of cross attention: step_us with a cache of its context,
// context_us with the context itself, attention_us attention() to as many keys and values.

#include <ATen/Parallel.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <attzoo/functional/attention.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "decode_steps.hpp"
#include "measure.hpp"

namespace {

struct Case {
  torch::ScalarType dtype;
  std::string heads;
  int64_t H, Hkv, S, D, B, L;
  bool latent = false;

  bool quantized() const { return attzoo::core::is_eight_bits(dtype); }
  int64_t bytes() const {
    return (latent ? 1 : 2) * B * Hkv * S * D * static_cast<int64_t>(torch::elementSize(dtype));
  }
  std::string type() const {
    return dtype == torch::kFloat32    ? "f32/"
           : dtype == torch::kBFloat16 ? "bf16/"
           : dtype == torch::kInt8     ? "i8/"
                                       : "f8/";
  }
  std::string name() const {
    const auto number = [](const char* what, int64_t n) {
      return std::string("/") + what + ":" + std::to_string(n);
    };
    return "decode/" + type() + heads + number("S", S) + number("D", D) + number("B", B) +
           number("L", L);
  }
};

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
uint64_t
read_bytes(const char* from, int64_t size) {
  typedef uint64_t Vector __attribute__((vector_size(32)));
  Vector sum[4] = {};
  for (int64_t at = 0; at < size; at += 128) {
    for (int i = 0; i < 4; ++i) {
      Vector x;
      std::memcpy(&x, from + at + 32 * i, sizeof x);
      sum[i] ^= x;
    }
  }
  const Vector all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3];
}

/// A head is contiguous. Blocks of 64 KiB are shared among the threads.
void read(const torch::Tensor& t) {
  constexpr int64_t kBlock = 1 << 16;
  const int64_t size = t.size(2) * t.size(3) * t.element_size();
  const int64_t per_head = (size + kBlock - 1) / kBlock;
  const char* data = static_cast<const char*>(t.const_data_ptr());
  const int64_t head_stride = t.stride(1) * t.element_size();
  at::parallel_for(0, t.size(0) * t.size(1) * per_head, 1, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i % per_head * kBlock;
      sum ^= read_bytes(data + i / per_head * head_stride + at, std::min(kBlock, size - at));
    }
    benchmark::DoNotOptimize(sum);
  });
}

void measure(benchmark::State& state, const Case& c) {
  torch::NoGradGuard no_grad;
  const auto tokens = [&](int64_t heads, int64_t n) {
    return torch::rand({c.B, heads, n, c.D})
        .sub_(0.5)
        .to(c.quantized() ? torch::kBFloat16 : c.dtype);
  };
  const auto stored = [&](const torch::Tensor& t) {
    return (c.quantized() ? attzoo::quantize_rows(t, c.dtype) : t).slice(2, 0, c.S);
  };
  const auto q = tokens(c.H, c.L), all_k = tokens(c.Hkv, c.S + 64),
             all_v = c.latent ? all_k.narrow(3, 0, c.D / 9 * 8) : tokens(c.Hkv, c.S + 64);
  const auto k = stored(all_k), v = stored(all_v);
  const std::function<void()> calls[] = {
      [&] { benchmark::DoNotOptimize(attzoo::attention(q, k, v).output); },
      [&] {
        if (c.latent) return;
        if (c.quantized()) {
          benchmark::DoNotOptimize(
              attzoo::attention(q, all_k.slice(2, 0, c.S), all_v.slice(2, 0, c.S)).output);
          return;
        }
        benchmark::DoNotOptimize(
            at::scaled_dot_product_attention(q, k, v, {}, 0.0, false, std::nullopt, c.H != c.Hkv));
      },
      [&] {
        read(k);
        if (!c.latent) read(v);
      }};
  double least[] = {1e300, 1e300, 1e300};
  for (const auto& call : calls) call();
  for (auto _ : state) {
    for (size_t i = 0; i < 3; ++i) {
      const double t = bench::seconds(torch::kCPU, calls[i]);
      least[i] = std::min(least[i], t);
      if (i == 0) state.SetIterationTime(t);
    }
  }
  state.counters["own_us"] = least[0] * 1e6;
  state.counters["read_us"] = least[2] * 1e6;
  if (c.quantized()) {
    state.counters["bf16_us"] = least[1] * 1e6;
    state.counters["own/bf16"] = least[0] / least[1];
  } else if (!c.latent) {
    state.counters["aten_us"] = least[1] * 1e6;
    state.counters["aten/own"] = least[1] / least[0];
  }
  state.counters["read/own"] = least[2] / least[0];
}

void add(const Case& c) {
  if (c.bytes() > int64_t{1} << 30) return;
  const int64_t work = c.bytes() * std::max<int64_t>(1, c.H / c.Hkv * c.L / 4);
  for (const int threads : {2, 1}) {
    const std::string name = c.name() + "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(name.c_str(),
                                 [=](benchmark::State& state) {
                                   at::set_num_threads(threads);
                                   measure(state, c);
                                 })
        ->UseManualTime()
        ->Iterations(std::clamp<int64_t>((int64_t{1} << 32) / work, 5, 2000))
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto dtype :
       {torch::kFloat32, torch::kBFloat16, torch::kInt8, torch::kFloat8_e4m3fn}) {
    for (const auto& [heads, H, Hkv] :
         {std::tuple<const char*, int64_t, int64_t>{"mha", 8, 8}, {"gqa", 32, 8}, {"mqa", 8, 1}}) {
      for (int64_t S = 256; S <= 65536; S *= 2) {
        for (const int64_t D : {64, 128}) {
          for (const int64_t B : {1, 8}) {
            for (const int64_t L : {1, 4, 16}) add({dtype, heads, H, Hkv, S, D, B, L});
          }
        }
      }
    }
  }
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const auto& [H, D] : {std::pair<int64_t, int64_t>{8, 288}, {16, 576}, {128, 576}}) {
      for (const int64_t S : {1024, 8192, 65536}) {
        const auto heads = "mla/H:" + std::to_string(H);
        add({dtype, heads, H, 1, S, D, 1, 1, /*latent=*/true});
      }
    }
  }
  bench::add_steps();
  bench::add_cross();
  benchmark::RunSpecifiedBenchmarks();
}
