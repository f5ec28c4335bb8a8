#include <gtest/gtest.h>

#include <attzoo/kernel/isa/isa.hpp>

#include <cstdlib>
#include <string>

namespace attzoo::kernel {
namespace {

// Fails for whoever runs these tests with ATTZOO_ISA=nonsense: kernels themselves cannot.
TEST(Isa, TheEnvironmentNamesOne) {
  const char* wanted = std::getenv("ATTZOO_ISA");
  std::string names;
  for (const auto name : kIsaNames) names.append(" ").append(name);
  EXPECT_TRUE(is_isa_name(wanted)) << "ATTZOO_ISA=" << wanted << " is none of" << names;
}

TEST(Isa, NamesAreTheSameOnEveryCpu) {
  for (const char* name : {"portable", "avx2", "avx512", "avx512bf16", "amx", "best", ""}) {
    EXPECT_TRUE(is_isa_name(name)) << name;
  }
  EXPECT_TRUE(is_isa_name(nullptr));
  for (const char* name : {"nonsense", "AVX2", "avx", "avx5122", " avx2", "0"}) {
    EXPECT_FALSE(is_isa_name(name)) << name;
  }
}

TEST(Isa, WhatTheCpuLacksFallsBack) {
  const auto best = choose_isa(nullptr);
  EXPECT_EQ(choose_isa("best"), best);
  EXPECT_EQ(choose_isa("portable"), Isa::kPortable);
#if defined(__x86_64__)
  EXPECT_EQ(choose_isa("avx2"), has_avx2() ? Isa::kAvx2 : Isa::kPortable);
  if (!has_amx()) {
    EXPECT_LT(choose_isa("amx"), Isa::kAmx);
  }
#else
  EXPECT_EQ(choose_isa("avx2"), best);
#endif
}

}  // namespace
}  // namespace attzoo::kernel
