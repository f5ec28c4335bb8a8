// The pretended driver fails where the real one does.
#include "cuda/pretended_driver.hpp"
#include <gtest/gtest.h>
#include <cstring>
#include <thread>
#include <vector>
extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int*);
int cuDeviceGet(int*, int);
int cuDeviceGetCount(int*);
int cuDeviceGetAttribute(int*, int, int);
int cuCtxGetCurrent(void**);
int cuCtxSetCurrent(void*);
int cuDevicePrimaryCtxRetain(void**, int);
int cuModuleLoadData(void**, const void*);
int cuModuleLoadDataEx(void**, const void*, unsigned, int*, void**);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuGetErrorString(int, const char**);
int cuGetErrorName(int, const char**);
int cuStreamIsCapturing(void*, int*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   void*, void* const*, void**);
}
const char* kPtx = R"(
.version 8.0
.target sm_80
.address_size 64
.visible .entry five(.param .u64 to) {
  .reg .b64 %rd<3>; .reg .b32 %r<4>;
  ld.param.u64 %rd1, [to];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd1, %rd1, %rd2;
  mov.u32 %r2, 5;
  st.global.u32 [%rd1], %r2;
  ret;
}
)";
struct Drv : testing::Test {
  void* context[2];
  void* module = nullptr;
  void* f = nullptr;
  void SetUp() override {
    attzoo_reset();
    attzoo_capability(80);
    ASSERT_EQ(cuInit(0), 0);
    for (int i : {0, 1}) ASSERT_EQ(cuDevicePrimaryCtxRetain(&context[i], i), 0);
    ASSERT_EQ(cuCtxSetCurrent(context[0]), 0);
    ASSERT_EQ(cuModuleLoadData(&module, kPtx), 0) << attzoo_error();
    ASSERT_EQ(cuModuleGetFunction(&f, module, "five"), 0);
  }
  void TearDown() override {
    attzoo_reset();
    EXPECT_EQ(cuModuleUnload(module), 0);
  }
  int launch(unsigned threads = 4, unsigned shared = 0, unsigned blocks = 1) {
    void* p = out.data();
    void* ps[] = {&p};
    return cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, shared, reinterpret_cast<void*>(7), ps,
                          nullptr);
  }
  std::vector<int> out = std::vector<int>(2048, 0);
};
TEST_F(Drv, Runs) {
  ASSERT_EQ(launch(), 0) << attzoo_error();
  EXPECT_EQ(out[3], 5);
  EXPECT_EQ(out[4], 0);
  ASSERT_EQ(attzoo_launches(), 1);
  const auto l = attzoo_launch(0);
  EXPECT_STREQ(l.kernel, "five");
  EXPECT_EQ(l.threads, 4u);
  EXPECT_EQ(l.stream, reinterpret_cast<void*>(7));
  EXPECT_EQ(l.device, 0);
  EXPECT_GT(l.instructions, 0u);
}
TEST_F(Drv, ThreadWithoutContext) {
  int code = 0, load = 0;
  void* now = &code;
  std::thread([&] {
    cuCtxGetCurrent(&now);
    code = launch();
    void* m;
    load = cuModuleLoadData(&m, kPtx);
  }).join();
  EXPECT_EQ(now, nullptr);
  EXPECT_EQ(code, 201);
  EXPECT_EQ(load, 201);
}
TEST_F(Drv, WrongDevice) {
  cuCtxSetCurrent(context[1]);
  EXPECT_EQ(launch(), 201);
  cuCtxSetCurrent(nullptr);
  EXPECT_EQ(launch(), 201);
  EXPECT_EQ(attzoo_launches(), 0);
  int x;
  EXPECT_EQ(cuCtxSetCurrent(&x), 201);
}
TEST_F(Drv, Shared) {
  EXPECT_EQ(launch(4, 49152), 0);
  EXPECT_EQ(launch(4, 49153), 1);
  EXPECT_EQ(cuFuncSetAttribute(f, 8, 60000), 0);
  EXPECT_EQ(launch(4, 60000), 0);
  EXPECT_EQ(launch(4, 60001), 1);
  int most;
  cuDeviceGetAttribute(&most, 97, 0);
  EXPECT_EQ(cuFuncSetAttribute(f, 8, most), 0);
  EXPECT_EQ(cuFuncSetAttribute(f, 8, most + 1), 1);
}
TEST_F(Drv, Limits) {
  EXPECT_EQ(launch(1024), 0);
  EXPECT_EQ(launch(1025), 1);
  EXPECT_EQ(launch(0), 1);
  EXPECT_EQ(launch(4, 0, 0), 1);
  void* p = out.data();
  void* ps[] = {&p};
  EXPECT_EQ(cuLaunchKernel(f, 1, 65536, 1, 1, 1, 1, 0, nullptr, ps, nullptr), 1);
  EXPECT_EQ(cuLaunchKernel(nullptr, 1, 1, 1, 1, 1, 1, 0, nullptr, ps, nullptr), 400);
  EXPECT_EQ(cuLaunchKernel(f, 1, 1, 1, 4, 2, 1, 0, nullptr, ps, nullptr), 0);
  EXPECT_EQ(attzoo_launch(1).threads, 8u);
}
TEST_F(Drv, Images) {
  void* m;
  EXPECT_EQ(cuModuleLoadData(&m, "garbage"), 200);
  EXPECT_EQ(cuModuleLoadData(
                &m, ".version 8.0\n.target sm_80\n.address_size 64\n.entry f() { nonsense; }"),
            218);
  EXPECT_STRNE(attzoo_error(), "");
  const char elf[] =
      "\x7f"
      "ELF\0\0";
  ASSERT_EQ(cuModuleLoadDataEx(&m, elf, 0, nullptr, nullptr), 0);
  void* g;
  ASSERT_EQ(cuModuleGetFunction(&g, m, "anything"), 0);
  EXPECT_EQ(cuLaunchKernel(g, 2, 3, 4, 32, 1, 1, 0, nullptr, nullptr, nullptr), 0);
  EXPECT_STREQ(attzoo_launch(0).kernel, "anything");
  EXPECT_EQ(attzoo_launch(0).blocks[2], 4u);
  EXPECT_EQ(cuModuleGetFunction(&g, module, "nope"), 500);
  EXPECT_EQ(cuModuleUnload(m), 0);
}
TEST_F(Drv, Injects) {
  void* now;
  attzoo_fail("cuCtxSetCurrent", 3);
  EXPECT_EQ(cuCtxSetCurrent(context[1]), 3);
  cuCtxGetCurrent(&now);
  EXPECT_EQ(now, context[0]);
  attzoo_fail("cuLaunchKernel", 719);
  EXPECT_EQ(launch(), 719);
  EXPECT_EQ(launch(), 0);
  void* m;
  attzoo_fail("cuModuleLoadDataEx", 2);
  EXPECT_EQ(cuModuleLoadDataEx(&m, kPtx, 0, nullptr, nullptr), 2);
  int v;
  for (auto [n, c] : std::vector<std::pair<const char*, int (*)(int*)>>{
           {"cuDriverGetVersion", cuDriverGetVersion}, {"cuDeviceGetCount", cuDeviceGetCount}}) {
    attzoo_fail(n, 9);
    EXPECT_EQ(c(&v), 9);
    EXPECT_EQ(c(&v), 0);
  }
}
TEST_F(Drv, Devices) {
  int v;
  EXPECT_EQ(cuDeviceGetCount(&v), 0);
  EXPECT_EQ(v, 2);
  EXPECT_EQ(cuDeviceGet(&v, 2), 101);
  EXPECT_EQ(cuDeviceGet(&v, 1), 0);
  void* c;
  EXPECT_EQ(cuDevicePrimaryCtxRetain(&c, 2), 101);
  EXPECT_EQ(cuDevicePrimaryCtxRetain(&c, -1), 101);
  EXPECT_EQ(cuDeviceGetAttribute(&v, 75, 9), 101);
  attzoo_capability(90);
  cuDeviceGetAttribute(&v, 75, 0);
  EXPECT_EQ(v, 9);
  EXPECT_EQ(cuStreamIsCapturing(nullptr, &v), 0);
  EXPECT_EQ(v, 0);
  attzoo_capability(80);
  const char* t;
  EXPECT_EQ(cuGetErrorName(201, &t), 0);
  EXPECT_STREQ(t, "CUDA_ERROR_INVALID_CONTEXT");
  EXPECT_EQ(cuGetErrorString(12345, &t), 1);
  EXPECT_EQ(t, nullptr);
}
