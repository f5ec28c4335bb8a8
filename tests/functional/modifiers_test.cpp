#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/modifiers.hpp>

#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::modifiers_test {
namespace {

/// The mask as a bool tensor [B, H, L, S].
template <class Mask>
torch::Tensor table(const Mask& mask, int64_t L, int64_t S, int64_t B = 1, int64_t H = 1) {
  return mask.evaluate(core::Grid({B, H, L, S}, 0, L, torch::kCPU)).expand({B, H, L, S});
}

torch::Tensor rows(std::vector<std::vector<int64_t>> values) {
  std::vector<torch::Tensor> parts;
  for (const auto& row : values) parts.push_back(torch::tensor(row, torch::kInt64));
  return torch::stack(parts).to(torch::kBool).unsqueeze(0).unsqueeze(0);
}

TEST(Modifiers, CausalAlignments) {
  EXPECT_TRUE(torch::equal(table(causal(), 2, 5), rows({{1, 1, 1, 1, 0}, {1, 1, 1, 1, 1}})));
  EXPECT_TRUE(torch::equal(table(causal(CausalAlignment::kTopLeft), 2, 5),
                           rows({{1, 0, 0, 0, 0}, {1, 1, 0, 0, 0}})));
  EXPECT_TRUE(torch::equal(table(causal(), 5, 2), rows({{0, 0}, {0, 0}, {0, 0}, {1, 0}, {1, 1}})));
  EXPECT_TRUE(torch::equal(table(causal(CausalAlignment::kTopLeft), 5, 2),
                           rows({{1, 0}, {1, 1}, {1, 1}, {1, 1}, {1, 1}})));
  EXPECT_TRUE(torch::equal(table(causal(), 6, 6)[0][0], create_causal_mask(6)));
}

TEST(Modifiers, NamedMasksEqualTheirTensors) {
  EXPECT_TRUE(torch::equal(table(window(3, 3), 9, 9)[0][0], create_local_mask(9, 6)));
  EXPECT_TRUE(torch::equal(table(window(kUnbounded, 0), 9, 9)[0][0], create_causal_mask(9)));
  EXPECT_TRUE(torch::equal(table(window(1, 0), 2, 4), rows({{0, 1, 1, 0}, {0, 0, 1, 1}})));
  EXPECT_TRUE(torch::equal(table(dilated(3), 10, 10)[0][0], create_dilated_mask(10, 3)));
  EXPECT_TRUE(torch::equal(table(blocks(4), 10, 10)[0][0], create_block_mask(10, 4)));
  EXPECT_TRUE(torch::equal(table(prefix(2), 2, 3), rows({{1, 1, 0}, {1, 1, 0}})));
  EXPECT_TRUE(
      torch::equal(table(neighborhood({5}, {3}), 4, 5),
                   rows({{1, 1, 1, 0, 0}, {0, 1, 1, 1, 0}, {0, 0, 1, 1, 1}, {0, 0, 1, 1, 1}})));
  EXPECT_TRUE(torch::equal(table(neighborhood({2, 3}, {1, 3}, {1}, {false, true}), 6, 6),
                           rows({{1, 0, 0, 0, 0, 0},
                                 {1, 1, 0, 0, 0, 0},
                                 {1, 1, 1, 0, 0, 0},
                                 {0, 0, 0, 1, 0, 0},
                                 {0, 0, 0, 1, 1, 0},
                                 {0, 0, 0, 1, 1, 1}})));
  EXPECT_TRUE(torch::equal(
      table(documents(torch::tensor({0, 2, 2, 5})), 5, 5),
      rows({{1, 1, 0, 0, 0}, {1, 1, 0, 0, 0}, {0, 0, 1, 1, 1}, {0, 0, 1, 1, 1}, {0, 0, 1, 1, 1}})));
  EXPECT_TRUE(torch::equal(table(global_tokens(torch::tensor({0, 1, 0})), 3, 3),
                           rows({{0, 1, 0}, {1, 1, 1}, {0, 1, 0}})));
  const auto t = torch::rand({4, 6}) < 0.5;
  EXPECT_TRUE(torch::equal(table(mask_tensor(t), 4, 6)[0][0], t));
  EXPECT_TRUE(table(full(), 3, 4).all().item<bool>());
}

TEST(Modifiers, ChosenBlocks) {
  // Blocks of 2 queries and 3 keys, the last ones shorter; repeats and -1 add nothing.
  const auto want = rows({{1, 1, 1, 0, 0, 0, 0},
                          {1, 1, 1, 0, 0, 0, 0},
                          {0, 0, 0, 1, 1, 1, 1},
                          {0, 0, 0, 1, 1, 1, 1},
                          {0, 0, 0, 0, 0, 0, 0},
                          {0, 0, 0, 0, 0, 0, 0},
                          {1, 1, 1, 0, 0, 0, 1}});
  const auto numbers = torch::tensor({{0, -1, 0}, {2, 1, 2}, {-1, -1, -1}, {0, 2, -1}});
  const auto flags = torch::tensor({{1, 0, 0}, {0, 1, 1}, {0, 0, 0}, {1, 0, 1}}).to(torch::kBool);
  EXPECT_TRUE(torch::equal(table(chosen_blocks(numbers, 2, 3), 7, 7), want));
  EXPECT_TRUE(torch::equal(table(chosen_blocks(flags, 2, 3), 7, 7), want));
  EXPECT_TRUE(torch::equal(table(chosen_blocks(numbers.to(torch::kInt32), 2, 3), 7, 7), want));
  // The last 4 queries, with the rows of all places, or of theirs alone.
  const auto last = want.slice(2, 3);
  EXPECT_TRUE(torch::equal(table(chosen_blocks(flags, 2, 3), 4, 7), last));
  EXPECT_TRUE(torch::equal(table(chosen_blocks(flags.slice(0, 1), 2, 3), 4, 7), last));
  // Each query for itself; two heads share a table.
  const auto own = torch::randint(-1, 70, {2, 2, 70, 5});
  auto each = torch::zeros({2, 2, 70, 71}, torch::kBool).scatter_(3, own + 1, true).slice(3, 1);
  each = each.repeat_interleave(2, 1);
  EXPECT_TRUE(torch::equal(table(chosen_blocks(own, 1, 1), 70, 70, 2, 4), each));
  EXPECT_TRUE(torch::equal(table(chosen_blocks(each, 1), 70, 70, 2, 4), each));
}

TEST(Modifiers, ChosenBlocksVisitWhatIsChosen) {
  const int64_t n = 1024, size = 64;
  const auto numbers = torch::tensor({0, 5, 9}).expand({n / size, 3});
  const auto mask = AnyMask(chosen_blocks(numbers, size)).reach({1, 1, n, n});
  kernel::Segments segments;
  kernel::reach(mask, {0, 0, 128, 192, n}, segments);
  ASSERT_EQ(segments.size(), 3u);
  for (const size_t i : {0, 1, 2}) {
    EXPECT_EQ(segments[i].begin, numbers[0][static_cast<int64_t>(i)].item<int64_t>() * size);
    EXPECT_EQ(segments[i].end, segments[i].begin + size);
    EXPECT_EQ(segments[i].cover, kernel::Cover::kFull);
  }
}

TEST(Modifiers, MasksCompose) {
  const auto a = create_causal_mask(8), b = create_dilated_mask(8, 3), c = create_block_mask(8, 4);
  EXPECT_TRUE(
      torch::equal(table((causal() && dilated(3)) || !blocks(4), 8, 8)[0][0], (a & b) | ~c));
  EXPECT_TRUE(torch::equal(table(full() && causal(), 8, 8)[0][0], a));
}

TEST(Modifiers, CreateMaskIsWhatAttentionSees) {
  const auto ids = torch::tensor({0, 0, 0, 1, 1, 2, 2}), q = torch::randn({2, 3, 5, 4}),
             k = torch::randn({2, 3, 7, 4});
  const auto global = torch::tensor({{1, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 1, 0, 0, 0}});
  const auto heads =
      mask_mod([](auto b, auto h, auto q, auto kv) { return (q + kv) % 3 >= h + b; });
  const std::vector<AnyMask> masks{full(),
                                   AnyMask(),
                                   causal(),
                                   window(1, 2) && !dilated(2),
                                   documents({.ids = ids}) || global_tokens(global),
                                   heads,
                                   block_mask(heads, 5, 7, 2, 3),
                                   chosen_blocks(torch::rand({2, 3, 3, 4}) < 0.6, 3, 2),
                                   mask_tensor(torch::rand({2, 1, 5, 7}) < 0.5)};
  for (size_t i = 0; i < masks.size(); ++i) {
    const auto mask = create_mask(masks[i], 2, 3, 5, 7);
    EXPECT_EQ(mask.scalar_type(), torch::kBool);
    EXPECT_EQ(mask.sizes(), (std::vector<int64_t>{2, 3, 5, 7}));
    EXPECT_TRUE(mask.is_contiguous());
    EXPECT_TRUE(torch::equal(mask, attention(q, k, k, masks[i]).weights.tensor() > 0)) << i;
  }
  EXPECT_TRUE(torch::equal(create_mask(causal(), 1, 1, 6, 6)[0][0], create_causal_mask(6)));
  EXPECT_EQ(create_mask(causal(), 1, 1, 0, 6).numel(), 0);
}

TEST(Modifiers, CallablesReadLikeScalars) {
  const auto odd = mask_mod([](auto b, auto h, auto q, auto kv) {
    return (q - kv) % 3 == 0 || (h == 1 && kv / 2 < 2 && !(b == 0));
  });
  const auto got = table(odd, 5, 7, 2, 2);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t q = 0; q < 5; ++q) {
        for (int64_t kv = 0; kv < 7; ++kv) {
          const bool want = (q - kv) % 3 == 0 || (h == 1 && kv / 2 < 2 && !(b == 0));
          EXPECT_EQ(got[b][h][q][kv].item<bool>(), want);
        }
      }
    }
  }
}

/// attention() with a modifier against a softmax of scores that are changed by hand.
template <class Score, class Change>
void expect_scores(const Score& score, Change&& change) {
  const auto q = torch::randn({2, 2, 5, 4}, torch::kFloat64),
             k = torch::randn({2, 2, 5, 4}, torch::kFloat64),
             v = torch::randn({2, 2, 5, 3}, torch::kFloat64);
  const auto s = change(torch::matmul(q, k.transpose(-2, -1)) / 2);
  const auto r = attention(q, k, v, score);
  EXPECT_TRUE(torch::allclose(r.output, torch::matmul(torch::softmax(s, -1), v), 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(r.weights, torch::softmax(s, -1), 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(r.lse, torch::logsumexp(s, -1), 1e-10, 1e-12));
}

TEST(Modifiers, ScoresAreChangedLeftToRight) {
  const auto i = torch::arange(5, torch::kFloat64);
  const auto distance = (i.unsqueeze(1) - i.unsqueeze(0)).abs();
  const auto slopes = torch::tensor({0.5, 0.25}, torch::kFloat64);
  const auto bias = torch::randn({5, 5}, torch::kFloat64);
  expect_scores(alibi(slopes), [&](const auto& s) {
    return s - slopes.view({2, 1, 1}) * distance;
  });
  expect_scores(softcap(0.7), [](const auto& s) { return 0.7 * torch::tanh(s / 0.7); });
  expect_scores(bias_tensor(bias), [&](const auto& s) { return s + bias; });
  const auto c = torch::rand({2, 2, 5}, torch::kFloat64).neg().cumsum(2);
  const auto apart = (c.unsqueeze(3) - c.unsqueeze(2)).abs();
  expect_scores(decay(c), [&](const auto& s) { return s - apart; });
  expect_scores(bias_tensor(bias) + softcap(2.0),
                [&](const auto& s) { return 2 * torch::tanh((s + bias) / 2); });
  expect_scores(softcap(2.0) + bias_tensor(bias),
                [&](const auto& s) { return 2 * torch::tanh(s / 2) + bias; });
  expect_scores(score_mod([](auto s, auto b, auto h, auto q, auto kv) {
                  return s * 1.5 + 0.1 * (q - kv) + 0.2 * h - 0.3 * b;
                }),
                [&](const auto& s) {
                  const auto h = torch::arange(2, torch::kFloat64).view({1, 2, 1, 1});
                  const auto b = torch::arange(2, torch::kFloat64).view({2, 1, 1, 1});
                  return s * 1.5 + 0.1 * (i.unsqueeze(1) - i.unsqueeze(0)) + 0.2 * h - 0.3 * b;
                });
}

TEST(Modifiers, GradientsReachCapturedTensors) {
  auto q = torch::randn({1, 2, 5, 4}, torch::kFloat64).requires_grad_();
  auto bias = torch::randn({2, 5, 5}, torch::kFloat64).requires_grad_();
  auto slopes = torch::rand({2}, torch::kFloat64).requires_grad_();
  const auto f = [&] {
    const auto r =
        attention(q, q, q, causal(), alibi(slopes) + bias_tensor(bias.unsqueeze(0)) + softcap(2.0));
    return r.output.square().sum() + r.lse.sum();
  };
  gradcheck(f, {q, bias, slopes}, "captured tensors");
  gradgradcheck(f, {q, bias, slopes}, "captured tensors");
}

TEST(Modifiers, Errors) {
  expect_error([] { window(-1, 2); }, {"window", "left=-1"});
  expect_error([] { dilated(0); }, {"dilated", "rate", "0"});
  expect_error([] { blocks(0); }, {"blocks", "size", "0"});
  expect_error([] { prefix(-1); }, {"prefix", "-1"});
  expect_error([] { documents(torch::tensor({0, 3, 2})); }, {"documents", "decrease"});
  expect_error([] { documents(torch::tensor({1, 3})); }, {"documents", "begin with 0"});
  expect_error([] { documents(torch::tensor({0.0, 3.0})); }, {"documents", "integer"});
  expect_error([] { global_tokens(torch::ones({1, 2, 3})); }, {"global_tokens"});
  const auto blocks_of = [](std::vector<int64_t> sizes) {
    return torch::zeros(sizes, torch::kInt64);
  };
  expect_error([&] { chosen_blocks(torch::ones({2, 2}), 4); }, {"chosen_blocks", "Float"});
  expect_error([&] { chosen_blocks(blocks_of({2}), 4); }, {"chosen_blocks", "rows"});
  expect_error([&] { chosen_blocks(blocks_of({2, 2}), 0); }, {"chosen_blocks", "sizes"});
  expect_error([&] { chosen_blocks(blocks_of({2, 2}) - 2, 4); }, {"chosen_blocks", "-2"});
  const auto x = torch::ones({2, 3, 8, 4});
  const auto attend = [&](const core::AnyMask& m, int64_t L) {
    attention(x.slice(2, 0, L), x.slice(2, 0, 8), x.slice(2, 0, 8), m);
  };
  expect_error([&] { attend(chosen_blocks(blocks_of({3, 1}), 4), 8); }, {"chosen_blocks", "3"});
  expect_error([&] { attend(chosen_blocks(blocks_of({0, 1}), 4), 1); }, {"chosen_blocks", "0"});
  expect_error([&] { attend(chosen_blocks(blocks_of({2, 1}) + 2, 4), 8); }, {"chosen_blocks", "3"});
  expect_error(
      [&] {
        attend(chosen_blocks(blocks_of({3, 2, 1}), 4), 8);
      },
      {"chosen_blocks", "B=2"});
  expect_error(
      [&] {
        attend(chosen_blocks(blocks_of({1, 2, 2, 1}), 4), 8);
      },
      {"chosen_blocks", "H=3"});
  expect_error(
      [&] {
        attend(chosen_blocks(blocks_of({2, 3}).to(torch::kBool), 4), 8);
      },
      {"chosen_blocks", "3"});
  expect_error(
      [&] {
        attention(x, x.slice(2, 0, 4), x.slice(2, 0, 4), chosen_blocks(blocks_of({1, 1}), 4));
      },
      {"chosen_blocks", "L=8"});
  expect_error(
      [] {
        mask_tensor(torch::ones({4, 4}));
      },
      {"mask_tensor", "bool", "Float", "bias_tensor"});
  expect_error([] { mask_tensor(torch::ones({4}, torch::kBool)); }, {"mask_tensor", "[L, S]"});
  expect_error([] { alibi(torch::ones({2, 2})); }, {"alibi", "[H]", "[2, 2]"});
  expect_error([] { softcap(0); }, {"softcap", "0"});
  expect_error([] { bias_tensor(torch::ones({4, 4}, torch::kInt64)); }, {"bias_tensor", "Long"});
  expect_error([] { bias_tensor(torch::ones({4})); }, {"bias_tensor", "[4]"});
}

}  // namespace
}  // namespace attzoo::testing::modifiers_test
