#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/masks.hpp>

#include <string>

#include "support/expect_error.hpp"

namespace attzoo::testing::explain_test {
namespace {

torch::Tensor rows(int64_t n) { return torch::randn({1, 2, n, 8}); }
bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Explain, NamesTheWayThatIsTaken) {
  const auto q = rows(512);
  const auto text = explain(q, q, q, causal());
  EXPECT_TRUE(says(text, "[1, 2, 512, 8]")) << text;
  EXPECT_TRUE(says(text, "Float, cpu")) << text;
  EXPECT_TRUE(text.ends_with("the fused CPU kernels: taken\n")) << text;
}

TEST(Explain, SaysHowMuchAMaskReaches) {
  const auto q = rows(4096);
  EXPECT_TRUE(says(explain(q, q, q), "reaches 100 %"));
  const auto of_window = explain(q, q, q, window(64, 64)),
             of_lambda = explain(
                 q, q, q, mask_mod([](auto, auto, auto i, auto j) { return abs(i - j) <= 64; }));
  for (const auto& text : {of_window, of_lambda}) {
    EXPECT_TRUE(says(text, "reaches 5 %")) << text;
  }
}

/// A mask without a form for the kernels.
struct Own {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const core::Grid& g) const { return g.q >= g.kv; }
};

TEST(Explain, SaysWhyNotAnother) {
  const auto few = explain(rows(32), rows(32), rows(32), Own{});
  EXPECT_TRUE(says(few, "the fused CPU kernels: not taken, the mask has no form for it")) << few;
  EXPECT_TRUE(says(few, "chunks of query rows: not taken, one chunk has all rows")) << few;
  EXPECT_TRUE(few.ends_with("the definition, n x n in memory: taken\n")) << few;
  const auto many = explain(rows(8192), rows(8192), rows(8192), Own{});
  EXPECT_TRUE(many.ends_with("chunks of query rows: taken\n")) << many;
  const auto none = explain(rows(0), rows(0), rows(0));
  EXPECT_TRUE(says(none, "there is nothing to compute")) << none;
  const EagerReferenceGuard eager;
  const auto guarded = explain(rows(32), rows(32), rows(32));
  EXPECT_TRUE(says(guarded, "not taken, an EagerReferenceGuard lives")) << guarded;
}

TEST(Explain, ChecksAndDrawsNothing) {
  expect_error([] { explain(rows(4), torch::randn({1, 2, 4, 9}), rows(4)); }, {"attention"});
  torch::manual_seed(1);
  const auto want = torch::rand({1});
  torch::manual_seed(1);
  explain(torch::ones({1, 1, 4, 4}), torch::ones({1, 1, 4, 4}), torch::ones({1, 1, 4, 4}), {}, {},
          {.dropout = 0.5});
  EXPECT_TRUE(torch::equal(torch::rand({1}), want));
}

}  // namespace
}  // namespace attzoo::testing::explain_test
