#include <gtest/gtest.h>
#include <attzoo/functional/mask_tensors.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::mask_tensors_test {
namespace {

torch::Tensor rows(std::vector<std::vector<int64_t>> values) {
  std::vector<torch::Tensor> parts;
  for (const auto& row : values) parts.push_back(torch::tensor(row, torch::kInt64));
  return torch::stack(parts).to(torch::kBool);
}

TEST(Masks, Causal) {
  EXPECT_TRUE(torch::equal(create_causal_mask(3), rows({{1, 0, 0}, {1, 1, 0}, {1, 1, 1}})));
  EXPECT_EQ(create_causal_mask(0).sizes(), (std::vector<int64_t>{0, 0}));
  expect_error([] { create_causal_mask(-1); }, {"create_causal_mask", "seq_len", "-1"});
}

TEST(Masks, Padding) {
  const auto want = rows({{1, 1, 0}, {0, 0, 0}, {1, 1, 1}});
  EXPECT_TRUE(torch::equal(create_padding_mask(std::vector<int64_t>{2, 0, 3}), want));
  EXPECT_TRUE(torch::equal(create_padding_mask(torch::tensor({2, 0, 3}, torch::kInt32)), want));
  EXPECT_EQ(create_padding_mask(std::vector<int64_t>{2, 9}, 4).sizes(),
            (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(create_padding_mask(std::vector<int64_t>{}, 4).sizes(), (std::vector<int64_t>{0, 4}));
  expect_error([] { create_padding_mask(std::vector<int64_t>{}); }, {"max_len"});
  expect_error([] { create_padding_mask(std::vector<int64_t>{2, -3}); }, {"seq_lengths", "-3"});
  expect_error([] { create_padding_mask(torch::ones({2})); }, {"seq_lengths", "Float"});
  expect_error([] { create_padding_mask(torch::ones({2, 2}, torch::kInt64)); }, {"[2, 2]"});
  expect_error([] { create_padding_mask(std::vector<int64_t>{1}, -2); }, {"max_len", "-2"});
}

/// Four ways for a tensor to have no numbers to read.
std::vector<std::pair<torch::Tensor, std::string>> unreadable(torch::ScalarType dtype) {
  const auto t = torch::ones({2, 2}, dtype);
  return {{torch::Tensor(), "undefined"},
          {t.to_sparse(), "Sparse"},
          {t.to_sparse_csr(), "SparseCsr"},
          {t.to(torch::kMeta), "meta"}};
}

TEST(Masks, PaddingOfCutSequences) {
  EXPECT_TRUE(torch::equal(create_padding_mask(std::vector<int64_t>{1, INT64_MAX}, 2),
                           rows({{1, 0}, {1, 1}})));
}

TEST(Masks, RefusesWhatHasNoNumbers) {
  for (const auto& [t, name] : unreadable(torch::kInt64)) {
    expect_error([&, &t = t] { create_padding_mask(t, 4); },
                 {"create_padding_mask", "seq_lengths", name});
    expect_error(
        [&t = t] {
          combine_masks(torch::ones({2, 2}, torch::kInt64), t);
        },
        {"combine_masks", name});
    if (!t.defined()) continue;  // stays undefined
    expect_error([&, &t = t] { expand_mask_for_heads(t, 1, 1, 2); },
                 {"expand_mask_for_heads", "mask", name});
  }
  const auto quantised = torch::quantize_per_tensor(torch::ones({2, 2}), 0.1, 0, torch::kQUInt8);
  expect_error([&] { combine_masks(quantised); }, {"combine_masks", "QUInt8"});
}

TEST(Masks, RefusesWhatNobodyCanAddress) {
  for (const int64_t n : {INT64_MAX, int64_t{1} << 32, int64_t{1} << 31, int64_t{1} << 24}) {
    const auto text = std::to_string(n);
    expect_error([&] { create_causal_mask(n); }, {"create_causal_mask", "seq_len", text});
    expect_error([&] { create_local_mask(n, 2); }, {"create_local_mask", "seq_len", text});
    expect_error([&] { create_dilated_mask(n, 2); }, {"create_dilated_mask", "seq_len", text});
    expect_error([&] { create_block_mask(n, 2); }, {"create_block_mask", "seq_len", text});
  }
  for (const int64_t n : {INT64_MAX, int64_t{1} << 50}) {
    const auto text = std::to_string(n);
    expect_error([&] { create_padding_mask(std::vector<int64_t>{n}); },
                 {"create_padding_mask", "seq_lengths", text});
    expect_error([&] { create_padding_mask(std::vector<int64_t>{1}, n); },
                 {"create_padding_mask", "max_len", text});
  }
  const auto one = torch::ones({1, 1});
  expect_error([&] { expand_mask_for_heads(one, int64_t{1} << 40, int64_t{1} << 40, 1); },
               {"expand_mask_for_heads", "batch_size=1099511627776", "num_heads=1099511627776"});
  expect_error([&] { expand_mask_for_heads(one, -1, 1, 1); }, {"batch_size", "-1"});
  expect_error([&] { expand_mask_for_heads(one, 1, INT64_MIN, 1); },
               {"num_heads", std::to_string(INT64_MIN)});
  expect_error([&] { expand_mask_for_heads({}, 1, 1, -2); }, {"seq_len", "-2"});
}

TEST(Masks, ExactAtTheLimitsOfIntegers) {
  const auto all = torch::ones({4, 4}, torch::kBool), eye = torch::eye(4, torch::kBool);
  EXPECT_TRUE(torch::equal(create_local_mask(4, INT64_MAX), all));
  EXPECT_TRUE(torch::equal(create_dilated_mask(4, INT64_MAX), eye));
  EXPECT_TRUE(torch::equal(create_block_mask(4, INT64_MAX), all));
}

TEST(Masks, Local) {
  const auto want = rows({{1, 1, 0, 0}, {1, 1, 1, 0}, {0, 1, 1, 1}, {0, 0, 1, 1}});
  EXPECT_TRUE(torch::equal(create_local_mask(4, 2), want));
  EXPECT_TRUE(torch::equal(create_local_mask(4, 3), want));
  EXPECT_TRUE(torch::equal(create_local_mask(4, 0), torch::eye(4, torch::kBool)));
  EXPECT_TRUE(torch::equal(create_local_mask(4, 1), torch::eye(4, torch::kBool)));
  expect_error([] { create_local_mask(4, -1); }, {"create_local_mask", "window_size", "-1"});
}

TEST(Masks, Dilated) {
  EXPECT_TRUE(torch::equal(create_dilated_mask(3, 2), rows({{1, 0, 1}, {0, 1, 0}, {1, 0, 1}})));
  EXPECT_TRUE(create_dilated_mask(5, 1).all().item<bool>());
  EXPECT_TRUE(torch::equal(create_dilated_mask(4, 9), torch::eye(4, torch::kBool)));
  expect_error([] { create_dilated_mask(4, 0); }, {"create_dilated_mask", "dilation_rate", "0"});
}

TEST(Masks, Block) {
  EXPECT_TRUE(torch::equal(create_block_mask(3, 2), rows({{1, 1, 0}, {1, 1, 0}, {0, 0, 1}})));
  expect_error([] { create_block_mask(4, 0); }, {"create_block_mask", "block_size", "0"});
  expect_error([] { create_block_mask(4, -2); }, {"create_block_mask", "block_size", "-2"});
}

TEST(Masks, Combine) {
  const auto a = create_causal_mask(4), b = create_local_mask(4, 2);
  EXPECT_TRUE(torch::equal(combine_masks(a, b), a & b));
  EXPECT_TRUE(torch::equal(combine_masks(a), a));
  // 2 & 1 = 0 as bits, but both are nonzero.
  EXPECT_TRUE(combine_masks(torch::tensor({2}), torch::tensor({1})).all().item<bool>());
  expect_error([] { combine_masks(std::vector<torch::Tensor>{}); }, {"combine_masks", "none"});
  expect_error([&] { combine_masks(a, create_causal_mask(3)); }, {"[4, 4]", "[3, 3]"});
  expect_error([&] { combine_masks(a, torch::ones({4, 4})); }, {"combine_masks", "Float"});
  expect_error([&] { combine_masks(a, torch::Tensor()); }, {"combine_masks", "undefined"});
}

TEST(Masks, ExpandForHeads) {
  const auto square = torch::randn({5, 5});
  const auto expanded = expand_mask_for_heads(square, 2, 3, 5);
  EXPECT_EQ(expanded.sizes(), (std::vector<int64_t>{2, 3, 5, 5}));
  EXPECT_EQ(expanded.data_ptr(), square.data_ptr());  // a view
  const auto batch = torch::randn({2, 5, 5});
  EXPECT_TRUE(torch::equal(expand_mask_for_heads(batch, 2, 3, 5)[1][2], batch[1]));
  const auto all = torch::randn({2, 3, 5, 5});
  EXPECT_TRUE(torch::equal(expand_mask_for_heads(all, 2, 3, 5), all));
  EXPECT_FALSE(expand_mask_for_heads({}, 2, 3, 5).defined());
  expect_error([&] { expand_mask_for_heads(square, 2, 3, 4); },
               {"expand_mask_for_heads", "[5, 5]"});
  expect_error([&] { expand_mask_for_heads(batch, 3, 3, 5); }, {"[2, 5, 5]"});
}

}  // namespace
}  // namespace attzoo::testing::mask_tensors_test
