// What becomes of a callable: how attention() would run it, and its source in CUDA C++.

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

int main() {
  const auto q = torch::randn({1, 8, 4096, 64}), k = torch::randn({1, 8, 4096, 64}),
             v = torch::randn({1, 8, 4096, 64});
  // [explain]
  const int64_t width = 128;
  const double cap = 20;
  auto recent = mask_mod([=](auto, auto, auto q, auto kv) { return kv <= q && q - kv < width; });
  auto capped = score_mod([=](auto s, auto, auto, auto, auto) { return cap * tanh(s / cap); });
  std::cout << explain(q, k, v, recent, capped);
  // [/explain]

  // [source]
  const auto source = cuda_source(recent, capped);
  std::cout << source.substr(source.find("// Whether query"));  // behind what it calls
  // [/source]
}
