#include <gtest/gtest.h>
#include <attzoo/module/norm.hpp>

#include <cmath>

#include "support/expect_error.hpp"

namespace attzoo::testing::norm_test {
namespace {

TEST(Norm, IsTheModuleThatItHolds) {
  const auto x = torch::randn({2, 3, 8});
  Norm layer(NormKind::kLayerNorm, 8, 0.5), rms(NormKind::kRMSNorm, 8, 0.5);
  EXPECT_TRUE(
      torch::equal(layer(x), torch::layer_norm(x, {8}, torch::ones({8}), torch::zeros({8}), 0.5)));
  EXPECT_TRUE(torch::allclose(rms(x), x / (x.square().mean(-1, true) + 0.5).sqrt()));
  EXPECT_EQ(layer.ptr()->named_parameters().keys(), (std::vector<std::string>{"weight", "bias"}));
  EXPECT_EQ(rms.ptr()->named_parameters().keys(), (std::vector<std::string>{"weight"}));
  EXPECT_TRUE(layer.weight().is_same(layer.layer->weight));
  EXPECT_TRUE(rms.weight().is_same(rms.rms->weight));
  EXPECT_FALSE(layer.is_empty() || rms.is_empty());
}

TEST(Norm, ResetsItsParameters) {
  for (const auto kind : {NormKind::kLayerNorm, NormKind::kRMSNorm}) {
    Norm norm(kind, 8, 1e-5);
    const auto x = torch::randn({2, 8}), want = norm(x).detach();
    const auto weight = norm.weight();
    for (auto& p : norm.ptr()->parameters()) p.detach().fill_(3);
    EXPECT_FALSE(torch::equal(norm(x), want));
    norm.reset_parameters();
    EXPECT_TRUE(torch::equal(norm(x), want));
    EXPECT_TRUE(norm.weight().is_same(weight));
  }
}

TEST(Norm, HoldsNothing) {
  Norm none = nullptr;
  EXPECT_TRUE(none.is_empty());
  EXPECT_THROW(none.weight(), c10::Error);
  EXPECT_THROW(none.reset_parameters(), c10::Error);
  EXPECT_THROW(none(torch::ones({2})), c10::Error);
}

TEST(Norm, Errors) {
  expect_error([] { Norm(NormKind::kLayerNorm, 0, 1e-5); }, {"Norm", "features", "0"});
  expect_error([] { Norm(NormKind::kRMSNorm, 4, NAN); }, {"Norm", "eps", "nan"});
}

}  // namespace
}  // namespace attzoo::testing::norm_test
