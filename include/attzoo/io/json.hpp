#pragma once
/// \file
/// A small strict JSON value (RFC 8259). A safetensors file begins with JSON and attzoo depends on
/// LibTorch alone, which brings no parser: hence this one.

#include <attzoo/config.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace attzoo::core {

/// Where `text` stops being UTF-8 (RFC 3629: no overlong forms, no surrogates); npos if nowhere.
ATTZOO_API size_t find_not_utf8(std::string_view text);

/// `text` for an error: cut after `most` bytes, and what is not UTF-8 or cannot be seen as \xNN.
ATTZOO_API std::string printable(std::string_view text, size_t most = 100);

/// null, bool, int64, double, string, array or object (keys in sorted order).
/// Example: `Json::parse(R"({"shape": [2, 3]})")["shape"].array()[1].integer()`
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json>;
  using Value = std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object>;

  Json() = default;
  Json(std::nullptr_t) {}                          // NOLINT: values are written as they are
  Json(bool v) : value_(v) {}                      // NOLINT
  Json(int v) : value_(int64_t{v}) {}              // NOLINT
  Json(int64_t v) : value_(v) {}                   // NOLINT
  Json(double v) : value_(v) {}                    // NOLINT
  Json(const char* v) : value_(std::string(v)) {}  // NOLINT
  Json(std::string v) : value_(std::move(v)) {}    // NOLINT
  Json(Array v) : value_(std::move(v)) {}          // NOLINT
  Json(Object v) : value_(std::move(v)) {}         // NOLINT

  /// Throws c10::ValueError that gives the byte where the text stops being JSON, for a key given
  /// twice, and for more than 256 values within each other.
  ATTZOO_API static Json parse(std::string_view text);

  /// Compact with indent < 0, else one element a line. inf and NaN, which JSON lacks, become null.
  /// Throws c10::ValueError for a string that is not UTF-8.
  ATTZOO_API std::string dump(int indent = -1) const;

  /// Whether the value is of this kind, T one of Value's.
  template <class T>
  bool is() const {
    return std::holds_alternative<T>(value_);
  }
  bool is_null() const { return is<std::nullptr_t>(); }
  bool is_number() const { return is<int64_t>() || is<double>(); }

  /// The value as T; throws c10::ValueError if it is another kind.
  template <class T>
  const T& as() const {
    if (!is<T>()) throw_not(kKinds[Value(std::in_place_type<T>).index()]);
    return std::get<T>(value_);
  }
  /// An integer is a number as well.
  double number() const {
    return is<int64_t>() ? static_cast<double>(std::get<int64_t>(value_)) : as<double>();
  }
  int64_t integer() const { return as<int64_t>(); }
  bool boolean() const { return as<bool>(); }
  const std::string& string() const { return as<std::string>(); }
  const Array& array() const { return as<Array>(); }
  const Object& object() const { return as<Object>(); }

  bool contains(const std::string& key) const { return object().count(key) > 0; }
  /// Throws c10::ValueError if there is no such key.
  ATTZOO_API const Json& operator[](const std::string& key) const;

 private:
  /// What errors call the alternatives of Value, in their order.
  static constexpr const char* kKinds[] = {"null",     "a truth value", "an integer", "a number",
                                           "a string", "an array",      "an object"};

  /// Throws that `expected` was expected.
  [[noreturn]] ATTZOO_API void throw_not(const char* expected) const;
  /// The value's beginning, for an error.
  ATTZOO_API std::string excerpt() const;
  ATTZOO_API void write(std::string& out, int indent, int depth) const;

  Value value_ = nullptr;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_IO
#include <attzoo/io/json.ipp>
#endif
