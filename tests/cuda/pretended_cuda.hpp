#pragma once
/// \file
/// A process that pretends to have CUDA: the device (pretended_device.hpp), its driver and NVRTC.

#include "cuda/pretended_device.hpp"
#include "cuda/pretended_driver.hpp"
#include "cuda/pretended_nvrtc.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace attzoo::testing {

/// Whether a kernel of this name has run since attzoo_reset().
inline bool launched(const std::string& kernel) {
  for (int i = 0; i < attzoo_launches(); ++i) {
    if (attzoo_launch(i).kernel == kernel) return true;
  }
  return false;
}

/// With the environment variable ATTZOO_FIBRES=1 kernels run as fibres, for a debugger; else as
/// PTX.
class PretendedCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* fibres = std::getenv("ATTZOO_FIBRES");
    const bool on_fibres = fibres && std::strcmp(fibres, "1") == 0;
    if (!on_fibres && !attzoo_has_real_nvrtc()) {
      GTEST_SKIP() << "there is no NVRTC: `pip download --no-deps nvidia-cuda-nvrtc`, and let "
                      "ATTZOO_REAL_NVRTC name the libnvrtc.so.13 in it";
    }
    attzoo_compile_for_cpu(on_fibres);
    attzoo_compile_quickly(false);
    setenv("ATTZOO_NVRTC", ATTZOO_PRETENDED_NVRTC, 1);
    attzoo_reset();
  }
};

}  // namespace attzoo::testing
