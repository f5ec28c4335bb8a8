#include <gtest/gtest.h>
#include <attzoo/io/json.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::json_test {
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
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  expect_error([&] { Json::parse(objects); }, {"nesting"});
  for (const char* sign : {"", "-"}) {
    expect_error([&] { Json::parse(sign + std::string(1000, '9')); }, {"a number in range"});
  }
}

TEST(Json, TextIsUtf8) {
  for (const char* text :
       {"", "a\x7f", "\u00e9", "\u20ac", "\ud7ff", "\uffff", "\U00010000", "\U0010ffff"}) {
    EXPECT_EQ(core::find_not_utf8(text), std::string::npos) << text;
    EXPECT_EQ(Json::parse(Json(text).dump()).string(), text);
  }
  // A lone or missing continuation, overlong forms, a surrogate, beyond U+10FFFF.
  for (const char* text :
       {"\x80", "\xc3", "\xc3z", "\xe2\x82", "\xf0\x9f\x98", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf",
        "\xf0\x8f\xbf\xbf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff"}) {
    EXPECT_EQ(core::find_not_utf8(std::string("ab") + text), 2u);
    expect_error([&] { Json::parse("[\"" + std::string(text) + "\"]"); },
                 {"JSON", "UTF-8", "byte 2"});
    expect_error([&] { Json(text).dump(); }, {"JSON", "not UTF-8", "\\x"});
  }
}

TEST(Json, ErrorsAreShortAndPrintable) {
  EXPECT_EQ(core::printable("a\n\xff"), "a\\x0a\\xff");
  EXPECT_EQ(core::printable("\u00e9"), "\u00e9");
  const auto j = Json::parse("{\"a\": \"" + std::string(100000, 'x') + "\", \"b\": [1, 2, 3]}");
  try {
    j["a"].integer();
    FAIL();
  } catch (const c10::Error& e) {
    EXPECT_LT(std::string(e.what_without_backtrace()).size(), 300u);
  }
  expect_error([&] { j["b"].integer(); }, {"an integer", "an array of 3"});
  expect_error([] { Json::parse(R"({"key": 1, "key": 2})"); }, {"only once", "\"key\"", "byte 17"});
}

TEST(Json, NamesTheWrongKind) {
  const auto j = Json::parse("{\"a\": 1}");
  expect_error([&] { j["a"].string(); }, {"a string", "1"});
  expect_error([&] { j["b"]; }, {"no key", "b"});
  expect_error([&] { j["a"]["b"]; }, {"an object"});
}

}  // namespace
}  // namespace attzoo::testing::json_test
