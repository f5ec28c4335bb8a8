#include <gtest/gtest.h>
#include <attzoo/core/json.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

using core::Json;

TEST(Json, ReadsEveryKind) {
  const auto j =
      Json::parse(R"( {"a": [1, -2.5, 1e3, true, false, null], "b": {"c": "x\n\u00e9"}} )");
  const auto& a = j["a"].array();
  EXPECT_EQ(a[0].integer(), 1);
  EXPECT_EQ(a[1].number(), -2.5);
  EXPECT_EQ(a[2].number(), 1000);
  EXPECT_TRUE(a[3].boolean());
  EXPECT_FALSE(a[4].boolean());
  EXPECT_TRUE(a[5].is_null());
  EXPECT_EQ(j["b"]["c"].string(), "x\n\xc3\xa9");
  EXPECT_EQ(Json::parse(R"("\ud83d\ude00\"\\\/\b\f\r\t")").string(),
            "\xf0\x9f\x98\x80\"\\/\b\f\r\t");
  EXPECT_EQ(Json::parse("9223372036854775807").integer(), INT64_MAX);
  EXPECT_EQ(Json::parse("9223372036854775808").number(), 9223372036854775808.0);
}

TEST(Json, WritesWhatItReads) {
  for (const char* text : {"null", "true", "-7", "0.1", "[]", "{}", "[1,[2,\"\\u0001\\\"\"]]",
                           "{\"a\":{\"b\":[]},\"c\":1e+300}"}) {
    EXPECT_EQ(Json::parse(text).dump(), text);
    EXPECT_EQ(Json::parse(Json::parse(text).dump(2)).dump(), text);
  }
  EXPECT_EQ(Json(INFINITY).dump(), "null");
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "[1 2]",
                           "{\"a\" 1}",
                           "{a: 1}",
                           "{\"a\":1,}",
                           "{\"a\":1,\"a\":2}",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "1e",
                           "-",
                           "tru",
                           "nul",
                           "\"",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\n\"",
                           "1 2",
                           "[1]]",
                           "NaN",
                           "Infinity",
                           "'a'",
                           "1e999"}) {
    expect_error([&] { Json::parse(text); }, {"JSON", "byte"});
  }
  expect_error([] { Json::parse(std::string(100000, '[')); }, {"nesting"});
}

TEST(Json, NamesTheWrongKind) {
  const auto j = Json::parse("{\"a\": 1}");
  expect_error([&] { j["a"].string(); }, {"a string", "1"});
  expect_error([&] { j["b"]; }, {"no key", "b"});
  expect_error([&] { j["a"]["b"]; }, {"an object"});
}

}  // namespace
}  // namespace attzoo::testing
