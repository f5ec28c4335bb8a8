#include <attzoo/functional/rope.hpp>
#include <attzoo/multi_head_latent.hpp>

#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing {
namespace {

using Options = MultiHeadLatentAttentionOptions;

torch::Tensor rms(const torch::Tensor& t, const RMSNorm& norm) {
  const auto mean = t.square().mean(-1, /*keepdim=*/true) + norm->options.eps;
  return (t / mean.sqrt() * norm->weight).to(t.scalar_type());
}

/// The paper's equations, for keys and values of every head.
Projected by_definition(MultiHeadLatentAttentionImpl& m, const torch::Tensor& x,
                        const torch::Tensor& context) {
  const auto& o = m.options;
  const int64_t H = o.num_heads, n = *o.head_dim, r = *o.rope_dim, rank = *o.kv_rank;
  auto q = split_heads(o.q_rank ? m.w_q_b(rms(m.w_q_a(x), m.norm_q)) : m.w_q(x), H);
  const auto down = m.w_kv_a(context);
  const auto up = split_heads(m.w_kv_b(rms(down.slice(-1, 0, rank), m.norm_kv)), H);
  auto k = down.slice(-1, rank).unsqueeze(1).expand({-1, H, -1, -1}).contiguous();
  auto s = q.slice(-1, n).contiguous();
  EXPECT_EQ(k.size(-1), r);
  if (o.rope) s = apply_rope(s, *o.rope.options()), k = apply_rope(k, *o.rope.options());
  return {torch::cat({q.slice(-1, 0, n), s}, -1), torch::cat({up.slice(-1, 0, n), k}, -1),
          up.slice(-1, n)};
}

Options small() {
  return {.d_model = 12,
          .num_heads = 3,
          .head_dim = 5,
          .rope_dim = 4,
          .value_head_dim = 6,
          .kv_rank = 7,
          .dropout = 0};
}

struct Traits : PlainTraits {
  using Module = MultiHeadLatentAttention;
  static Options options() {
    auto o = small();
    o.q_rank = 10;
    o.bias = true;
    return o;
  }
  static Projected project(MultiHeadLatentAttentionImpl& m, const torch::Tensor& x,
                           const torch::Tensor& context) {
    return by_definition(m, x, context);
  }
};
INSTANTIATE_TEST_SUITE_P(Latent, MechanismContract, mechanism<Traits>());

/// Everything in the absorbed form, and queries of one matrix.
struct AbsorbedTraits : Traits {
  static Options options() {
    auto o = small();
    o.absorb = true;
    return o;
  }
};
INSTANTIATE_TEST_SUITE_P(LatentAbsorbed, MechanismContract, mechanism<AbsorbedTraits>());

}  // namespace
}  // namespace attzoo::testing
