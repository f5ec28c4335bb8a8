// The same call gives the same bits: again and again, on several streams, in a captured graph.

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/core/cuda/image.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "gpu/report.hpp"

namespace bench {
namespace {

using Tensors = std::vector<torch::Tensor>;
using Call = std::function<Tensors(const Tensors& qkv)>;

bool equal(const Tensors& a, const Tensors& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!torch::equal(a[i], b[i])) return false;
  }
  return true;
}

Tensors new_qkv(int64_t L, int64_t S, torch::ScalarType dtype, const torch::Device& device) {
  const auto numbers = [&](int64_t heads, int64_t n) {
    return torch::randn({2, heads, n, 64}, device).to(dtype).requires_grad_();
  };
  return {numbers(8, L), numbers(2, S), numbers(2, S)};
}

/// Output and lse, and gradients if asked for.
Call call_of(attzoo::AnyMask mask, attzoo::AnyScore score, double dropout, Tensors learning,
             bool backward) {
  return [=](const Tensors& qkv) -> Tensors {
    const torch::AutoGradMode grad_mode(backward);
    const auto r =
        attzoo::attention(qkv[0], qkv[1], qkv[2], mask, score, {.dropout = dropout, .seed = 9});
    if (!backward) return {r.output, r.lse};
    auto inputs = qkv;
    inputs.insert(inputs.end(), learning.begin(), learning.end());
    auto all = torch::autograd::grad({r.output}, inputs, {r.output.detach()});
    all.insert(all.end(), {r.output.detach(), r.lse.detach()});
    return all;
  };
}

void repeat(Entry& entry, const Call& call, const Tensors& qkv, int64_t times) {
  const auto first = call(qkv);
  int64_t others = 0;
  for (int64_t i = 1; i < times; ++i) others += !equal(call(qkv), first);
  entry.number("calls", static_cast<double>(times));
  if (others > 0) entry.fail(c10::str(others, " have other bits than the first"));
}

/// Calls on streams that wait for nothing but their tensors, all in flight at once.
void repeat_on_streams(Entry& entry, const Call& call, const Tensors& qkv, int64_t times) {
  const auto device = qkv[0].device();
  const c10::impl::VirtualGuardImpl guard(device.type());
  const auto want = call(qkv);
  std::vector<c10::Stream> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(guard.getStreamFromGlobalPool(device));
  guard.synchronizeDevice(device.index());
  std::vector<Tensors> results;
  for (int64_t i = 0; i < times; ++i) {
    const c10::StreamGuard on(streams[static_cast<size_t>(i) % streams.size()]);
    results.push_back(call(qkv));
  }
  guard.synchronizeDevice(device.index());
  int64_t others = 0;
  for (const auto& r : results) others += !equal(r, want);
  entry.number("calls", static_cast<double>(times));
  if (others > 0) entry.fail(c10::str(others, " have other bits than the first"));
}

/// Functions of CUDA's driver for graphs; handles are pointers.
struct Graphs {
  int (*begin)(void* stream, int mode);
  int (*end)(void* stream, void** graph);
  int (*instantiate)(void** executable, void* graph, unsigned long long flags);
  int (*launch)(void* executable, void* stream);

  /// Whether the driver has all of them.
  bool find() {
    const auto driver = attzoo::core::cuda::Library::open({"libcuda.so.1"});
    const auto function = [&](auto& f, const char* name) {
      f = reinterpret_cast<std::decay_t<decltype(f)>>(driver ? driver.symbol(name) : nullptr);
      return f != nullptr;
    };
    return function(begin, "cuStreamBeginCapture_v2") && function(end, "cuStreamEndCapture") &&
           function(instantiate, "cuGraphInstantiateWithFlags") &&
           function(launch, "cuGraphLaunch");
  }
};

void check(int code, const char* what) { TORCH_CHECK(code == 0, what, " failed with ", code); }

/// Captures the call, after others that have compiled it and left memory to the stream, and
/// replays it with other numbers in q, k and v.
void replay(Entry& entry, const Call& call, const Tensors& qkv) {
  Graphs graphs;
  if (!graphs.find()) return entry.skip("not checked: the driver has no graphs");
  const auto device = qkv[0].device();
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.index());
  const c10::StreamGuard on(guard.getStreamFromGlobalPool(device));
  const auto stream = guard.getStream(device);
  for (int i = 0; i < 3; ++i) call(qkv);
  stream.synchronize();

  constexpr int kRelaxed = 2;  // LibTorch's allocator may ask the driver for memory
  void *graph = nullptr, *executable = nullptr;
  Tensors results;
  check(graphs.begin(stream.native_handle(), kRelaxed), "cuStreamBeginCapture");
  try {
    results = call(qkv);
  } catch (...) {
    graphs.end(stream.native_handle(), &graph);
    throw;
  }
  check(graphs.end(stream.native_handle(), &graph), "cuStreamEndCapture");
  check(graphs.instantiate(&executable, graph, 0), "cuGraphInstantiate");
  for (int i = 0; i < 3; ++i) {
    const torch::NoGradGuard no_grad;
    for (const auto& t : qkv) t.normal_();
    for (const auto& t : results) t.zero_();
    check(graphs.launch(executable, stream.native_handle()), "cuGraphLaunch");
    stream.synchronize();
    if (!equal(results, call(qkv))) entry.fail(c10::str("replay ", i, " has other bits"));
  }
}

}  // namespace

void check_repeats(Report& report) {
  const auto& order = report.order();
  torch::manual_seed(7);
  const int64_t n = order.quick ? 150 : 2000, times = order.quick ? 3 : 50;
  for (const auto dtype : {torch::kBFloat16, torch::kFloat32}) {
    const auto qkv = new_qkv(n, n, dtype, order.device),
               few = new_qkv(2, 4 * n, dtype, order.device);
    const auto slopes = torch::rand({8}, order.device).requires_grad_();
    const auto own = attzoo::mask_mod([](auto, auto, auto q, auto kv) { return kv <= q; });
    const auto cases = [&](bool backward) {
      const auto with = [=](const attzoo::AnyMask& mask, const attzoo::AnyScore& score,
                            double dropout, const Tensors& learning) {
        return call_of(mask, score, dropout, learning, backward);
      };
      return std::vector<std::tuple<std::string, Call, Tensors>>{
          {"causal", with(attzoo::causal(), {}, 0, {}), qkv},
          {"a callable", with(own, {}, 0, {}), qkv},
          {"slopes that learn and dropout", with(own, attzoo::alibi(slopes), 0.2, {slopes}), qkv},
          {"split keys", with(own, {}, 0, {}), few}};
    };
    for (const auto& [name, f, inputs] : cases(true)) {
      const auto full = name + c10::str(", ", dtype);
      const Call& call = f;
      const Tensors& tensors = inputs;
      report.run(full + ", again", [&](Entry& entry) { repeat(entry, call, tensors, times); });
      if (!order.on_cuda()) continue;
      report.run(full + ", on 4 streams",
                 [&](Entry& entry) { repeat_on_streams(entry, call, tensors, times); });
      report.run(full + ", in a graph, forward and backward",
                 [&](Entry& entry) { replay(entry, call, tensors); });
    }
    if (!order.on_cuda()) continue;
    for (const auto& [name, f, inputs] : cases(false)) {
      const Call& call = f;
      const Tensors& tensors = inputs;
      report.run(name + c10::str(", ", dtype, ", in a graph, forward"),
                 [&](Entry& entry) { replay(entry, call, tensors); });
    }
  }
}

}  // namespace bench
