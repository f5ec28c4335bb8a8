// How much of full attention's mass LSH attention finds, by the number of rounds: random tokens,
// and queries and keys with projections of their own or with a shared one.

#include <attzoo/lsh.hpp>
#include <cmath>
#include <cstdio>

int main() {
  torch::NoGradGuard no_grad;
  constexpr int64_t n = 2048, d_model = 256, heads = 4, chunk = 256;
  std::printf("%-12s %6s %12s %15s\n", "w_q, w_k", "rounds", "mass found", "pairs visited");
  for (const bool shared : {true, false}) {
    for (const int64_t rounds : {1, 2, 4, 8}) {
      torch::manual_seed(1);
      attzoo::LSHSelfAttention m(
          {.d_model = d_model, .num_heads = heads, .num_hashes = rounds, .dropout = 0});
      m->eval();
      if (shared) m->w_k->weight.copy_(m->w_q->weight);
      const auto x = torch::randn({1, n, d_model});
      const auto split = [](const torch::Tensor& t) {  // [1, n, d_model] -> [1, H, n, d_head]
        return t.view({1, n, heads, -1}).transpose(1, 2);
      };
      const auto q = split(m->w_q(x)), k = split(m->w_k(x));
      const auto weights = m(x).weights;
      double mass = 0, pairs = 0;
      for (int64_t i = 0; i < n; i += chunk) {
        const auto scores = torch::matmul(q.slice(2, i, i + chunk), k.transpose(-2, -1));
        const auto full = torch::softmax(scores / std::sqrt(64.0), -1);
        const auto found = weights.rows(i, i + chunk) > 0;
        mass += (full * found).sum(-1).mean().item<double>() * chunk / n;
        pairs += found.to(torch::kFloat32).mean().item<double>() * chunk / n;
      }
      std::printf("%-12s %6ld %12.3f %15.3f\n", shared ? "shared" : "their own",
                  static_cast<long>(rounds), mass, pairs);
    }
  }
}
