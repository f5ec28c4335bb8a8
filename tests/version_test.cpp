#include <gtest/gtest.h>
#include <attzoo/version.hpp>

#include <string>

namespace {

#if ATTZOO_VERSION < 200
#error the version must be readable by the preprocessor
#endif

TEST(Version, NumberAndTextAreThatOfTheParts) {
  EXPECT_EQ(ATTZOO_VERSION,
            ATTZOO_VERSION_MAJOR * 10000 + ATTZOO_VERSION_MINOR * 100 + ATTZOO_VERSION_PATCH);
  EXPECT_EQ(std::string(ATTZOO_VERSION_STRING), std::to_string(ATTZOO_VERSION_MAJOR) + "." +
                                                    std::to_string(ATTZOO_VERSION_MINOR) + "." +
                                                    std::to_string(ATTZOO_VERSION_PATCH));
}

}  // namespace
