// The judge of the bad inputs sees what it should: support/bad_inputs.hpp.

#include "support/bad_inputs.hpp"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

namespace attzoo::testing::bad_inputs_harness_test {
namespace {

void refuse() { TORCH_CHECK_VALUE(false, "f: n must be > 0, got -1"); }

TEST(BadInputsHarness, SeesEveryWayToFail) {
  const BadInputs inputs{{"refused", refuse, {"f", "n", "-1"}},
                         {"refused by one of two", refuse, {"g|f", "-1"}},
                         {"lacks the value", refuse, {"f", "-2"}},
                         {"a result", [] {}, {"f"}},
                         {"another exception", [] { throw std::runtime_error("f"); }, {"f"}},
                         {"a crash", [] { ::raise(SIGABRT); }, {"f"}},
                         {"refused in the next child", refuse, {"f"}},
                         {"no memory", [] { throw std::bad_alloc(); }, {"f"}},
                         {"the end of the process", [] { ::_exit(3); }, {"f"}},
                         {"refused at last", refuse, {"f"}}};
  std::vector<std::string> verdicts;
  int children = 0;
  for (; verdicts.size() < inputs.size(); ++children) {
    for (auto& verdict : judge_in_child(inputs, verdicts.size())) verdicts.push_back(verdict);
  }
  ASSERT_EQ(verdicts.size(), inputs.size());
  EXPECT_EQ(children, 3);
  const auto expect = [&](size_t i, const std::string& part) {
    EXPECT_NE(verdicts[i].find(part), std::string::npos) << inputs[i].name << ": " << verdicts[i];
  };
  for (const size_t i : {0, 1, 6, 9}) EXPECT_EQ(verdicts[i], "") << inputs[i].name;
  expect(2, "lacks '-2'");
  expect(3, "a result");
  expect(4, "another exception");
  expect(5, "signal 6");
  expect(7, "another exception");
  expect(8, "status 3");
}

}  // namespace
}  // namespace attzoo::testing::bad_inputs_harness_test
