#include <gtest/gtest.h>
#include <attzoo/module/recurrent_call.hpp>

#include <limits>

namespace attzoo::testing::recurrent_call_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

torch::Tensor tokens(int64_t n) { return torch::arange(1, n + 1, torch::kFloat64).view({1, n, 1}); }

core::CallPlaces places(const AttentionInputs& inputs) {
  core::CallPlaces p;
  if (inputs.documents.defined()) p.packing = core::pack(inputs.documents, "test");
  return p;
}

TEST(RecurrentCall, ShiftsWithinDocumentsAndRealTokens) {
  const auto x = tokens(6);
  core::RecurrentCall plain(x, {}, {});
  EXPECT_TRUE(torch::equal(plain.shift(x).flatten(),
                           torch::tensor({0., 1., 2., 3., 4., 5.}, torch::kFloat64)));
  const AttentionInputs packed{.documents = {.offsets = torch::tensor({0, 2, 6})}};
  core::RecurrentCall documents(x, packed, places(packed));
  EXPECT_TRUE(torch::equal(documents.shift(x).flatten(),
                           torch::tensor({0., 1., 0., 3., 4., 5.}, torch::kFloat64)));
  auto padded = x.clone();
  padded[0][1] = kNaN;
  core::RecurrentCall real(
      padded, {.key_padding_mask = torch::tensor({{0, 0, 1, 1, 1, 1}}).to(torch::kBool)}, {});
  EXPECT_TRUE(torch::equal(real.shift(padded).flatten(),
                           torch::tensor({0., 0., 0., 3., 4., 5.}, torch::kFloat64)));
}

/// What is not real leaves the state as it is, whatever it holds.
TEST(RecurrentCall, LeavesOutWhatIsNotReal) {
  torch::manual_seed(4);
  const auto draw = [](std::vector<int64_t> sizes) { return torch::rand(sizes, torch::kFloat64); };
  const auto q = draw({1, 2, 7, 3}), k = draw({1, 2, 7, 3}), v = draw({1, 2, 7, 4}),
             decay = -draw({1, 2, 7}), beta = draw({1, 2, 7});
  const auto real = torch::tensor({{1, 1, 0, 1, 0, 1, 1}}).to(torch::kBool);
  const auto kept = real[0].nonzero().squeeze(1), gone = real[0].logical_not().nonzero().squeeze(1);
  const auto spoil = [&](const torch::Tensor& t) { return t.index_fill(2, gone, kNaN); };
  core::RecurrentCall call(draw({1, 7, 5}), {.key_padding_mask = real}, {});
  const auto got =
      call.recur(spoil(q), spoil(k), spoil(v), {.decay = spoil(decay), .beta = spoil(beta)});
  const auto of = [&](const torch::Tensor& t) { return t.index_select(2, kept); };
  const auto want = recurrence(of(q), of(k), of(v), {.decay = of(decay), .beta = of(beta)}).output;
  EXPECT_TRUE(torch::allclose(of(got), want, 1e-12, 1e-14));
}

}  // namespace
}  // namespace attzoo::testing::recurrent_call_test
