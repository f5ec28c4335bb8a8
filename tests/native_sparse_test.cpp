#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/masks.hpp>
#include <attzoo/native_sparse.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::native_sparse_test {
namespace {

NativeSparseSelfAttentionOptions small() {
  return {.d_model = 12,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .block_size = 4,
          .block_count = 4,
          .window_size = 5,
          .dropout = 0,
          .bias = true};
}

/// softmax over the places of a row [S] that may attend, times v [S, E]; 0 where there is none.
torch::Tensor attend_row(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                         const std::vector<int64_t>& places, double scale, torch::Tensor* weights) {
  if (places.empty()) return torch::zeros({v.size(1)}, v.options());
  const auto at = torch::tensor(places);
  const auto w = torch::softmax(torch::mv(k.index_select(0, at), q) * scale, 0);
  if (weights) *weights = w;
  return torch::mv(v.index_select(0, at).t(), w);
}

/// The definition, one query after the other.
NativeSparseResult by_definition(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const NativeSparseOptions& o) {
  const int64_t B = q.size(0), H = q.size(1), L = q.size(2), Hkv = k.size(1), S = k.size(2);
  const int64_t G = H / Hkv, b = o.block_size, all = (S + b - 1) / b,
                count = std::min(o.block_count, all);
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  const auto chosen = torch::full({B, Hkv, L, count}, -1, torch::kInt64);
  std::vector<torch::Tensor> outputs;
  for (int64_t n = 0; n < B; ++n) {
    for (int64_t g = 0; g < Hkv; ++g) {
      std::vector<std::vector<torch::Tensor>> rows(static_cast<size_t>(G));
      std::vector<torch::Tensor> bk, bv;
      for (int64_t c = 0; c < S / b; ++c) {
        bk.push_back(o.block_keys.defined() ? o.block_keys[n][g][c]
                                            : k[n][g].slice(0, c * b, c * b + b).mean(0));
        bv.push_back(o.block_values.defined() ? o.block_values[n][g][c]
                                              : v[n][g].slice(0, c * b, c * b + b).mean(0));
      }
      for (int64_t i = 0; i < L; ++i) {
        const int64_t t = i + S - L, own = t / b;
        std::vector<int64_t> past, near;
        for (int64_t c = 0; (c + 1) * b - 1 <= t; ++c) past.push_back(c);
        for (int64_t j = std::max<int64_t>(0, t - o.window_size + 1); j <= t; ++j)
          near.push_back(j);
        std::map<int64_t, double> value;
        std::vector<torch::Tensor> compressed;
        for (int64_t h = g * G; h < (g + 1) * G; ++h) {
          torch::Tensor w;
          compressed.push_back(past.empty() ? torch::zeros({v.size(3)}, v.options())
                                            : attend_row(q[n][h][i], torch::stack(bk),
                                                         torch::stack(bv), past, scale, &w));
          for (size_t c = 0; c < past.size(); ++c) {
            value[past[c]] += w[static_cast<int64_t>(c)].item<double>();
          }
        }
        value[0] = 1e3, value[std::max<int64_t>(0, own - 1)] = 1e4, value[own] = 1e5;
        std::vector<std::pair<double, int64_t>> best;
        for (const auto& [c, x] : value) best.emplace_back(x, c);
        std::sort(best.rbegin(), best.rend());
        best.resize(std::min(best.size(), static_cast<size_t>(count)));
        std::vector<int64_t> selected;
        for (size_t m = 0; m < best.size(); ++m) {
          chosen[n][g][i][static_cast<int64_t>(m)] = best[m].second;
          for (int64_t j = best[m].second * b; j < (best[m].second + 1) * b && j <= t; ++j) {
            selected.push_back(j);
          }
        }
        for (int64_t h = g * G; h < (g + 1) * G; ++h) {
          const auto gate = [&](const torch::Tensor& x) {
            return x.defined() ? x[n][h][i] : torch::ones({}, v.options());
          };
          auto y = compressed[static_cast<size_t>(h - g * G)] * gate(o.gate_compressed) +
                   attend_row(q[n][h][i], k[n][g], v[n][g], selected, scale, nullptr) *
                       gate(o.gate_selected);
          if (o.window_size > 0) {
            y = y + attend_row(q[n][h][i], k[n][g], v[n][g], near, scale, nullptr) *
                        gate(o.gate_window);
          }
          rows[static_cast<size_t>(h - g * G)].push_back(y);
        }
      }
      for (const auto& r : rows) outputs.push_back(torch::stack(r));
    }
  }
  return {torch::stack(outputs).view({B, H, L, v.size(3)}), chosen, {}};
}

TEST(NativeSparse, FunctionIsItsDefinition) {
  torch::manual_seed(1);
  const auto leaf = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, torch::kFloat64).requires_grad_();
  };
  struct Try {
    int64_t L, S, size, count, window;
    bool gates, blocks;
  };
  for (const auto& [L, S, size, count, window, gates, blocks] :
       std::vector<Try>{{37, 37, 4, 4, 5, true, false},
                        {37, 37, 4, 5, 0, true, true},
                        {9, 37, 3, 6, 4, false, true},
                        {20, 20, 6, 1, 3, true, false},
                        {20, 20, 6, 2, 3, true, false},
                        {3, 3, 8, 4, 2, true, false},
                        {12, 12, 1, 3, 100, true, false}}) {
    std::vector<torch::Tensor> leaves{leaf({2, 6, L, 4}), leaf({2, 2, S, 4}), leaf({2, 2, S, 3})};
    NativeSparseOptions o{.block_size = size, .block_count = count, .window_size = window};
    const auto learn = [&](torch::Tensor& field, std::vector<int64_t> sizes) {
      leaves.push_back(field = leaf(std::move(sizes)));
    };
    if (gates) {
      learn(o.gate_compressed, {2, 6, L});
      learn(o.gate_selected, {2, 6, L});
      if (window > 0) learn(o.gate_window, {2, 6, L});
    }
    if (blocks) {
      learn(o.block_keys, {2, 2, S / size, 4});
      learn(o.block_values, {2, 2, S / size, 3});
    }
    const auto got = native_sparse_attention(leaves[0], leaves[1], leaves[2], o);
    const auto want = by_definition(leaves[0], leaves[1], leaves[2], o);
    const auto sorted = [](const torch::Tensor& t) { return std::get<0>(t.sort(-1)); };
    EXPECT_TRUE(torch::equal(sorted(got.blocks), sorted(want.blocks))) << S << " " << count;
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12)) << S << " " << count;
    const auto c = torch::randn_like(want.output);
    const auto a = torch::autograd::grad({(got.output * c).sum()}, leaves, {}, {}, false, true),
               b = torch::autograd::grad({(want.output * c).sum()}, leaves, {}, {}, false, true);
    for (size_t i = 0; i < leaves.size(); ++i) {
      const auto zero = torch::zeros_like(leaves[i]);
      EXPECT_TRUE(
          torch::allclose(a[i].defined() ? a[i] : zero, b[i].defined() ? b[i] : zero, 1e-9, 1e-11))
          << i;
    }
  }
}

/// What the module's parameters say, by the definition of the function.
torch::Tensor by_parts(NativeSparseSelfAttention& m, const torch::Tensor& x) {
  const auto& o = m->options;
  const int64_t Hkv = o.num_kv_heads, size = o.block_size, n = x.size(1) / size;
  auto q = split_heads(m->w_q(x), o.num_query_heads), k = split_heads(m->w_k(x), Hkv);
  const auto v = split_heads(m->w_v(x), Hkv);
  if (o.rope) q = apply_rope(q, *o.rope.options()), k = apply_rope(k, *o.rope.options());
  const auto gates = torch::sigmoid(split_heads(m->w_branch(x), o.num_query_heads));
  NativeSparseOptions f{.block_size = size,
                        .block_count = o.block_count,
                        .window_size = o.window_size,
                        .gate_compressed = gates.select(3, 0),
                        .gate_selected = gates.select(3, 1),
                        .gate_window = gates.select(3, 2)};
  if (o.compression == BlockCompression::kLearned) {
    const auto whole = [&](const torch::Tensor& t, const torch::Tensor& places,
                           torch::nn::Linear& block, torch::nn::Linear& to) {
      std::vector<torch::Tensor> all;
      for (int64_t c = 0; c < n; ++c) {
        const auto tokens = t.slice(2, c * size, (c + 1) * size) + places;
        all.push_back(to(torch::gelu(block(tokens.flatten(2)))));
      }
      return torch::stack(all, 2);
    };
    f.block_keys = whole(k, m->key_places, m->w_k_block, m->w_k_whole);
    f.block_values = whole(v, m->value_places, m->w_v_block, m->w_v_whole);
  }
  return m->w_o(by_definition(q, k, v, f).output.transpose(1, 2).flatten(2));
}

TEST(NativeSparse, ModuleIsItsDefinition) {
  torch::manual_seed(2);
  for (const auto compression : {BlockCompression::kLearned, BlockCompression::kMean}) {
    auto options = small();
    options.compression = compression;
    options.rope = compression == BlockCompression::kLearned;
    NativeSparseSelfAttention m(options);
    m->to(torch::kFloat64);
    auto x = torch::randn({2, 27, 12}, torch::kFloat64).requires_grad_();
    const auto got = m(x).output, want = by_parts(m, x);
    EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
    std::vector<torch::Tensor> leaves{x};
    for (const auto& p : m->parameters()) leaves.push_back(p);
    const auto c = torch::randn_like(want);
    const auto a = torch::autograd::grad({(got * c).sum()}, leaves),
               b = torch::autograd::grad({(want * c).sum()}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-9, 1e-11)) << i;
    }
  }
}

TEST(NativeSparse, WeightsOfMeansMakeTheOutput) {
  torch::manual_seed(6);
  auto options = small();
  options.compression = BlockCompression::kMean;
  options.bias = false;
  NativeSparseSelfAttention m(options);
  m->to(torch::kFloat64);
  const auto x = torch::randn({2, 27, 12}, torch::kFloat64);
  auto real = torch::ones({2, 27}, torch::kBool);
  real[1].slice(0, 0, 5) = false;
  for (const auto& in : {AttentionInputs{}, AttentionInputs{.key_padding_mask = real}}) {
    const auto [output, weights] = m(x, in);
    const torch::Tensor w = weights;
    const auto v = split_heads(m->w_v(x), 2).repeat_interleave(3, 1);
    const auto want = m->w_o(torch::matmul(w, v).transpose(1, 2).flatten(2));
    EXPECT_TRUE(torch::allclose(output, want, 1e-10, 1e-12));
    EXPECT_TRUE(torch::allclose(weights.rows(3, 9), w.slice(2, 3, 9), 1e-12, 1e-14));
  }
}

TEST(NativeSparse, WithAllSelectedItIsGroupedAttention) {
  torch::manual_seed(3);
  auto options = small();
  options.block_count = 100;
  NativeSparseSelfAttention m(options);
  GroupedSelfAttention dense({.d_model = 12,
                              .num_query_heads = 6,
                              .num_kv_heads = 2,
                              .dropout = 0,
                              .bias = true,
                              .causal = true});
  std::map<std::string, torch::Tensor> own;
  for (const auto& [name, t] : state_dict(*dense)) own[name] = state_dict(*m).at(name);
  load_state_dict(*dense, own);
  const torch::NoGradGuard no_grad;
  m->w_branch->weight.zero_();
  m->w_branch->bias.copy_(torch::tensor({-1e4, 1e4, -1e4}).repeat({6}));
  const auto x = torch::randn({2, 30, 12});
  EXPECT_TRUE(torch::allclose(m(x).output, dense(x).output, 1e-5, 1e-6));
}

TEST(NativeSparse, CachesGoOnAsTheWholePass) {
  torch::manual_seed(4);
  const torch::NoGradGuard no_grad;
  for (const auto compression : {BlockCompression::kLearned, BlockCompression::kMean}) {
    auto options = small();
    options.compression = compression;
    options.rope = true;
    NativeSparseSelfAttention m(options);
    m->to(torch::kFloat64);
    const auto x = torch::randn({2, 70, 12}, torch::kFloat64);
    const auto want = m(x).output;
    auto cache = m->make_cache(2, 70);
    for (int64_t at = 0, end = 10; at < 70;
         at = end, end = std::min<int64_t>(70, end + 1 + at % 6)) {
      const auto got = m(x.slice(1, at, end), {.cache = cache}).output;
      EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
    }
    for (const int64_t n : {41, 40, 3}) {
      cache.truncate(n);
      auto copy = cache.clone();
      copy.reorder(torch::tensor({1, 0}));
      const auto next = torch::randn({2, 9, 12}, torch::kFloat64);  // others than before
      const auto goes_on = m(torch::cat({x.slice(1, 0, n), next}, 1)).output.slice(1, n);
      EXPECT_TRUE(torch::allclose(m(next, {.cache = cache}).output, goes_on, 1e-10, 1e-12));
      EXPECT_TRUE(
          torch::allclose(m(next.flip(0), {.cache = copy}).output, goes_on.flip(0), 1e-10, 1e-12));
      cache.truncate(n);
      m(x.slice(1, n, n + 9), {.cache = cache});
    }
  }
}

TEST(NativeSparse, AHalfCacheOfAFloatModule) {
  torch::manual_seed(7);
  const torch::NoGradGuard no_grad;
  NativeSparseSelfAttention m(small());
  const auto x = torch::randn({2, 30, 12});
  auto cache = m->make_cache(2, 30, {.dtype = torch::kBFloat16});
  m(x.slice(1, 0, 20), {.cache = cache});
  const auto got = m(x.slice(1, 20), {.cache = cache}).output;
  EXPECT_EQ(got.scalar_type(), torch::kFloat32);
  EXPECT_TRUE(torch::allclose(got, m(x).output.slice(1, 20), 0.1, 0.1));
}

TEST(NativeSparse, PaddingIsNotThere) {
  torch::manual_seed(5);
  auto options = small();
  options.rope = true;
  NativeSparseSelfAttention m(options);
  m->to(torch::kFloat64);
  auto x = torch::randn({3, 30, 12}, torch::kFloat64).requires_grad_();
  auto real = torch::ones({3, 30}, torch::kBool);
  real[1].slice(0, 0, 7) = false;
  real[2].slice(0, 19) = false;
  const auto got = m(x, {.key_padding_mask = real}).output;
  const std::vector<std::pair<int64_t, int64_t>> tokens{{0, 30}, {7, 30}, {0, 19}};
  for (int64_t b = 0; b < 3; ++b) {
    const auto [begin, end] = tokens[static_cast<size_t>(b)];
    const auto alone = m(x.slice(0, b, b + 1).slice(1, begin, end)).output;
    EXPECT_TRUE(torch::allclose(got.slice(0, b, b + 1).slice(1, begin, end), alone, 1e-9, 1e-11));
  }
  EXPECT_TRUE(torch::autograd::grad({got.sum()}, {x})[0].isfinite().all().item<bool>());
}

TEST(NativeSparse, LivesAsAModule) {
  expect_lives_as_a_module(NativeSparseSelfAttention(small()));
  auto empty = torch::randn({2, 0, 12}).requires_grad_();
  auto y = NativeSparseSelfAttention(small())(empty).output;
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 0, 12}));
  y.sum().backward();
}

TEST(NativeSparse, Errors) {
  const auto bad = [](NativeSparseSelfAttentionOptions o, std::vector<std::string> parts) {
    parts.push_back("NativeSparseSelfAttention");
    expect_error([&] { NativeSparseSelfAttention{o}; }, parts);
  };
  auto o = small();
  o.block_size = 0, bad(o, {"block_size", "0"}), o = small();
  o.block_count = 0, bad(o, {"block_count", "0"}), o = small();
  o.window_size = -1, bad(o, {"window_size", "-1"}), o = small();
  o.num_kv_heads = 4, bad(o, {"num_kv_heads", "4"}), o = small();
  o.block_size = int64_t{1} << 50, bad(o, {"block_size"}), o = small();
  o.causal = false, bad(o, {"causal"}), o = small();
  o.compression = static_cast<BlockCompression>(7), bad(o, {"compression", "7"});
  NativeSparseSelfAttention m(small());
  const auto x = torch::randn({1, 6, 12});
  const auto refuses = [&](const AttentionInputs& in, std::vector<std::string> parts) {
    parts.push_back("NativeSparseSelfAttention");
    expect_error([&] { m(x, in); }, parts);
  };
  refuses({.causal = false}, {"causal"});
  refuses({.mask = torch::ones({6, 6})}, {"mask"});
  refuses({.pattern = causal()}, {"pattern"});
  refuses({.context = x}, {"context"});
  refuses({.documents = {.offsets = torch::tensor({0, 6})}}, {"documents"});
  const torch::NoGradGuard no_grad;
  const auto cache = m->make_cache(1, 8);
  refuses({.key_padding_mask = torch::ones({1, 6}, torch::kBool), .cache = cache},
          {"key_padding_mask", "cache"});
  const auto q = torch::randn({1, 4, 5, 8}), k = torch::randn({1, 2, 5, 8});
  const auto wrong = [&](const NativeSparseOptions& of, std::vector<std::string> parts) {
    parts.push_back("native_sparse_attention");
    expect_error([&] { native_sparse_attention(q, k, k, of); }, parts);
  };
  wrong({.block_size = 0}, {"block_size"});
  wrong({.block_count = 0}, {"block_count"});
  wrong({.window_size = -1}, {"window_size"});
  wrong({.gate_selected = torch::ones({1, 4, 6})}, {"gate_selected", "[1, 4, 6]"});
  wrong({.window_size = 0, .gate_window = torch::ones({1, 4, 5})}, {"gate_window"});
  wrong({.block_size = 2, .block_keys = k}, {"block_keys", "[1, 2, 2, 8]"});
}

}  // namespace
}  // namespace attzoo::testing::native_sparse_test
