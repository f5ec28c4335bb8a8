// The interpreter of PTX on instructions written by hand.

#include <gtest/gtest.h>

#include <string>

#include "cuda/ptx_launch.hpp"

namespace attzoo::ptx {
namespace {

/// A kernel f(out, in) of hand-written instructions; the pointers are in %rd0 and %rd1.
std::string written(const std::string& body) {
  return ".version 8.6\n.target sm_100\n.address_size 64\n"
         ".visible .entry f(.param .u64 f_0, .param .u64 f_1)\n{\n.reg .pred %p<9>;\n"
         ".reg .b16 %h<9>;\n.reg .b32 %r<99>;\n.reg .f32 %f<99>;\n.reg .b64 %rd<9>;\n"
         "ld.param.u64 %rd0, [f_0];\nld.param.u64 %rd1, [f_1];\n" +
         body + "\nret;\n}\n";
}

/// What the instructions leave in the register, of one lane without input.
uint64_t result(const std::string& body, const std::string& type, const std::string& name) {
  Module module(written(body + "\nst.global." + type + " [%rd0], " + name + ";"));
  uint64_t out = 0;
  launch(module, "f", {}, {1}, 0, static_cast<void*>(&out), static_cast<void*>(nullptr));
  return out;
}

TEST(Ptx, RoundsAsTold) {
  EXPECT_EQ(result("add.rz.f32 %f1, 0f3F800000, 0f33FFFFFF;", "f32", "%f1"), 0x3f800000u);
  EXPECT_EQ(result("add.rp.f32 %f1, 0f3F800000, 0f00000001;", "f32", "%f1"), 0x3f800001u);
  EXPECT_EQ(result("add.sat.f32 %f1, 0f3F800000, 0f3F800000;", "f32", "%f1"), 0x3f800000u);
  EXPECT_EQ(result("mul.ftz.f32 %f1, 0f00800000, 0f3F000000;", "f32", "%f1"), 0u);
  EXPECT_EQ(result("mul.f32 %f1, 0f00800000, 0f3F000000;", "f32", "%f1"), 0x00400000u);
  EXPECT_EQ(result("cvt.rzi.s32.f32 %r1, 0fC0200000;", "u32", "%r1"), 0xfffffffeu);
  EXPECT_EQ(result("cvt.rni.s32.f32 %r1, 0f40200000;", "u32", "%r1"), 2u);
  EXPECT_EQ(result("cvt.rmi.f32.f32 %f1, 0fC0200000;", "f32", "%f1"), 0xc0400000u);
  EXPECT_EQ(result("cvt.rzi.u32.f32 %r1, 0fC0200000;", "u32", "%r1"), 0u);
  EXPECT_EQ(result("cvt.rn.f16x2.f32 %r1, 0f3F800000, 0f477FF000;", "u32", "%r1"), 0x3c007c00u);
  EXPECT_EQ(result("cvt.rz.bf16x2.f32 %r1, 0f3F80FFFF, 0fBF80FFFF;", "u32", "%r1"), 0x3f80bf80u);
  EXPECT_EQ(result("cvt.rna.tf32.f32 %r1, 0f3F801000;", "u32", "%r1"), 0x3f802000u);
}

TEST(Ptx, HandlesBits) {
  EXPECT_EQ(result("prmt.b32 %r1, 0x33221100, 0x77665584, 0xc507;", "u32", "%r1"), 0xff550077u);
  EXPECT_EQ(result("bfe.s32 %r1, 0x00000f80, 7, 5;", "u32", "%r1"), 0xffffffffu);
  EXPECT_EQ(result("bfi.b32 %r1, 0xff, 0, 4, 6;", "u32", "%r1"), 0x3f0u);
  EXPECT_EQ(result("shf.l.wrap.b32 %r1, 0x80000001, 0x1, 33;", "u32", "%r1"), 3u);
  EXPECT_EQ(result("lop3.b32 %r1, 12, 10, 9, 0x96;", "u32", "%r1"), 15u);
  EXPECT_EQ(result("shl.b32 %r1, 1, 32;", "u32", "%r1"), 0u);
  EXPECT_EQ(result("add.cc.u32 %r1, -1, 2; addc.u32 %r2, 0, 0;", "u32", "%r2"), 1u);
  EXPECT_EQ(result("sub.cc.u32 %r1, 1, 2; subc.u32 %r2, 5, 0;", "u32", "%r2"), 4u);
  EXPECT_EQ(result("max.f32 %f1, 0f3F800000, 0f40000000, 0fC0400000;", "f32", "%f1"), 0x40000000u);
  EXPECT_EQ(result("min.NaN.f32 %f1, 0f3F800000, 0f7FC00000;", "f32", "%f1"), 0x7fc00000u);
  EXPECT_EQ(
      result("mov.b64 %rd2, 0x3f80000040000000; add.rn.f32x2 %rd3, %rd2, %rd2;", "u64", "%rd3"),
      0x4000000040800000u);
  EXPECT_EQ(result("setp.ne.s32 %p0, 1, 1; setp.lt.or.f32 %p1|%p2, 0f00000000, 0f3F800000, %p0;"
                   "selp.b32 %r1, 1, 2, !%p1; @!%p2 add.s32 %r1, %r1, 8;",
                   "u32", "%r1"),
            10u);
  EXPECT_EQ(
      result("mov.b32 %r1, 3; tab: .branchtargets a, b; brx.idx %r2, tab; a: b:", "u32", "%r1"),
      3u);
}

TEST(Ptx, WrongUseThrows) {
  uint64_t out[2] = {};
  const auto thrown = [&](const std::string& body, Size3 block = {32}) {
    Module module(written(".shared .align 4 .b8 s[64];\n" + body));
    module.options.most_instructions = 100000;
    module.allow(out, 8);
    return failure(module, "f", block, 0, &out[0], &out[1]);
  };
  expect_part(thrown("mov.u32 %r1, s; st.shared.u32 [%r1+57], 0;"), "misaligned");
  expect_part(thrown("ld.shared.u32 %r1, [s+64];"), "out of range");
  expect_part(thrown("ld.global.u32 %r1, [%rd1];"), "line 14: ld.global.u32 %r1, [%rd1]");
  expect_part(thrown("st.global.u64 [%rd0+4], %rd0;"), "misaligned");
  expect_part(thrown("l: bra l;"), "too many instructions");
  expect_part(thrown("mov.u32 %r1, %tid.x; shr.u32 %r1, %r1, 5; barrier.sync %r1, 64;", {64}),
              "deadlock");
  EXPECT_THROW(Module(written("frobnicate.b32 %r1, %r2;")), Error);
  EXPECT_THROW(Module(written("add.s32 %r1, %rd1, 4;")), Error);
}

}  // namespace
}  // namespace attzoo::ptx
