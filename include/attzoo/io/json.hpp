#pragma once
/// \file
/// A small strict JSON value (RFC 8259). A safetensors file begins with JSON and attzoo depends on
/// LibTorch alone, which brings no parser: hence this one.

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace attzoo::core {

/// Where `text` stops being UTF-8 (RFC 3629: no overlong forms, no surrogates); npos if nowhere.
inline size_t find_not_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const auto first = byte(i);
    const size_t more = first < 0x80                    ? 0
                        : first >= 0xC2 && first < 0xE0 ? 1
                        : first >= 0xE0 && first < 0xF0 ? 2
                        : first >= 0xF0 && first < 0xF5 ? 3
                                                        : text.size();
    if (more >= text.size() - i) return i;
    for (size_t j = 1; j <= more; ++j) {
      if ((byte(i + j) & 0xC0) != 0x80) return i;
    }
    const auto second = more > 0 ? byte(i + 1) : 0;
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second >= 0xA0) ||
        (first == 0xF0 && second < 0x90) || (first == 0xF4 && second >= 0x90)) {
      return i;
    }
    i += more + 1;
  }
  return std::string_view::npos;
}

/// `text` for an error: cut after `most` bytes, and what is not UTF-8 or cannot be seen as \xNN.
inline std::string printable(std::string_view text, size_t most = 100) {
  constexpr const char* kHex = "0123456789abcdef";
  const bool utf8 = find_not_utf8(text) == std::string_view::npos;
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    // A cut must not fall inside a character.
    if (out.size() >= most && (byte & 0xC0) != 0x80) return out + "...";
    if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !utf8)) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out;
}

/// null, bool, int64, double, string, array or object (keys in sorted order).
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

  /// Throws c10::ValueError that gives the byte where the text stops being JSON.
  static Json parse(std::string_view text);

  /// Compact with indent < 0, else one element a line. Throws c10::ValueError for a string that is
  /// not UTF-8.
  std::string dump(int indent = -1) const {
    std::string out;
    write(out, indent, 0);
    return out;
  }

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(value_);
  }
  bool is_null() const { return is<std::nullptr_t>(); }
  bool is_number() const { return is<int64_t>() || is<double>(); }

  /// The value as T; throws c10::ValueError if it is another kind. A number is a double as well.
  template <class T>
  const T& as() const {
    TORCH_CHECK_VALUE(is<T>(), "JSON: expected ", kind_name<T>(), ", got ", excerpt());
    return std::get<T>(value_);
  }
  double number() const {
    return is<int64_t>() ? static_cast<double>(std::get<int64_t>(value_)) : as<double>();
  }
  int64_t integer() const { return as<int64_t>(); }
  bool boolean() const { return as<bool>(); }
  const std::string& string() const { return as<std::string>(); }
  const Array& array() const { return as<Array>(); }
  const Object& object() const { return as<Object>(); }

  bool contains(const std::string& key) const { return object().count(key) > 0; }
  const Json& operator[](const std::string& key) const {
    const auto it = object().find(key);
    TORCH_CHECK_VALUE(it != object().end(), "JSON: no key \"", printable(key), "\" in ", excerpt());
    return it->second;
  }

 private:
  template <class T>
  static const char* kind_name() {
    if constexpr (std::is_same_v<T, bool>) return "a truth value";
    if constexpr (std::is_same_v<T, int64_t>) return "an integer";
    if constexpr (std::is_same_v<T, double>) return "a number";
    if constexpr (std::is_same_v<T, std::string>) return "a string";
    if constexpr (std::is_same_v<T, Array>) return "an array";
    if constexpr (std::is_same_v<T, Object>) return "an object";
    return "null";
  }

  /// The value's beginning, for an error.
  std::string excerpt() const {
    return is<Array>()    ? c10::str("an array of ", array().size())
           : is<Object>() ? c10::str("an object of ", object().size())
                          : printable(dump());
  }

  static void write_string(std::string& out, const std::string& s) {
    constexpr const char* kHex = "0123456789abcdef";
    TORCH_CHECK_VALUE(find_not_utf8(s) == std::string::npos, "JSON: the string \"", printable(s),
                      "\" is not UTF-8");
    out += '"';
    for (const char c : s) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        out += '\\';
        out += c;
      } else if (byte < 0x20) {
        out += "\\u00";
        out += kHex[byte >> 4];
        out += kHex[byte & 15];
      } else {
        out += c;
      }
    }
    out += '"';
  }

  void write(std::string& out, int indent, int depth) const {
    const auto line = [&](int d) {
      if (indent < 0) return;
      out += '\n';
      out.append(static_cast<size_t>(indent) * static_cast<size_t>(d), ' ');
    };
    if (is_null()) {
      out += "null";
    } else if (const auto* b = std::get_if<bool>(&value_)) {
      out += *b ? "true" : "false";
    } else if (const auto* i = std::get_if<int64_t>(&value_)) {
      out += std::to_string(*i);
    } else if (const auto* d = std::get_if<double>(&value_)) {
      char text[32];
      const auto end = std::to_chars(text, text + sizeof text, *d).ptr;
      out += std::isfinite(*d) ? std::string(text, end) : "null";  // JSON has no inf and no NaN
    } else if (const auto* s = std::get_if<std::string>(&value_)) {
      write_string(out, *s);
    } else if (const auto* a = std::get_if<Array>(&value_)) {
      out += '[';
      for (size_t n = 0; n < a->size(); ++n) {
        if (n > 0) out += ',';
        line(depth + 1);
        (*a)[n].write(out, indent, depth + 1);
      }
      if (!a->empty()) line(depth);
      out += ']';
    } else {
      out += '{';
      bool first = true;
      for (const auto& [key, value] : std::get<Object>(value_)) {
        if (!first) out += ',';
        first = false;
        line(depth + 1);
        write_string(out, key);
        out += indent < 0 ? ":" : ": ";
        value.write(out, indent, depth + 1);
      }
      if (!first) line(depth);
      out += '}';
    }
  }

  Value value_ = nullptr;
};

/// Recursive descent over the text.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json document() {
    at_ = std::min(find_not_utf8(text_), text_.size());
    check(at_ == text_.size(), "UTF-8");
    at_ = 0;
    Json value = parse_value(0);
    skip_space();
    check(at_ == text_.size(), "the end");
    return value;
  }

 private:
  static constexpr int kMaxDepth = 256;

  void check(bool ok, const char* expected) const {
    TORCH_CHECK_VALUE(ok, "JSON: expected ", expected, " at byte ", at_,
                      at_ < text_.size() ? "" : " (end of text)");
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool accept(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }
  void word(std::string_view w) {
    check(text_.substr(at_, w.size()) == w, "a value");
    at_ += w.size();
  }

  Json parse_value(int depth) {
    check(depth < kMaxDepth, "less nesting");
    skip_space();
    switch (peek()) {
      case '{':
        return parse_object(depth);
      case '[':
        return parse_array(depth);
      case '"':
        return parse_string();
      case 't':
        word("true");
        return true;
      case 'f':
        word("false");
        return false;
      case 'n':
        word("null");
        return nullptr;
      default:
        return parse_number();
    }
  }

  Json parse_object(int depth) {
    Json::Object object;
    ++at_;
    skip_space();
    if (accept('}')) return object;
    do {
      skip_space();
      check(peek() == '"', "a key");
      std::string key = parse_string();
      skip_space();
      check(accept(':'), "':'");
      TORCH_CHECK_VALUE(object.count(key) == 0, "JSON: expected a key only once at byte ", at_,
                        ", got \"", printable(key), "\" again");
      object.emplace(std::move(key), parse_value(depth + 1));
      skip_space();
    } while (accept(','));
    check(accept('}'), "',' or '}'");
    return object;
  }

  Json parse_array(int depth) {
    Json::Array array;
    ++at_;
    skip_space();
    if (accept(']')) return array;
    do {
      array.push_back(parse_value(depth + 1));
      skip_space();
    } while (accept(','));
    check(accept(']'), "',' or ']'");
    return array;
  }

  Json parse_number() {
    const size_t begin = at_;
    const auto digits = [&] {
      check(peek() >= '0' && peek() <= '9', begin == at_ ? "a value" : "a digit");
      while (peek() >= '0' && peek() <= '9') ++at_;
    };
    bool integral = true;
    accept('-');
    if (!accept('0')) digits();
    if (accept('.')) {
      integral = false;
      digits();
    }
    if (accept('e') || accept('E')) {
      integral = false;
      if (!accept('+')) accept('-');
      digits();
    }
    const char* first = text_.data() + begin;
    const char* last = text_.data() + at_;
    int64_t i = 0;
    if (integral && std::from_chars(first, last, i).ec == std::errc()) return i;
    double d = 0;
    check(std::from_chars(first, last, d).ec == std::errc(), "a number in range");
    return d;
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    check(at_ + 4 <= text_.size(), "four hex digits");
    const auto end = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, code, 16).ptr;
    check(end == text_.data() + at_ + 4, "four hex digits");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xC0 | code >> 6);
      put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      put(0xE0 | code >> 12);
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    }
  }

  void parse_escape(std::string& out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const char c = peek();
    check(at_ < text_.size(), "an escape");
    ++at_;
    if (c != 'u') {
      const size_t n = kFrom.find(c);
      check(n != std::string_view::npos, "a known escape");
      out += kTo[n];
      return;
    }
    uint32_t code = parse_hex4();
    if (code >= 0xD800 && code < 0xDC00) {  // the first half of a surrogate pair
      check(accept('\\') && accept('u'), "the second half of a surrogate pair");
      const uint32_t low = parse_hex4();
      check(low >= 0xDC00 && low < 0xE000, "the second half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    check(code < 0xD800 || code >= 0xE000, "a surrogate pair from its first half");
    append_utf8(out, code);
  }

  std::string parse_string() {
    std::string out;
    ++at_;
    while (!accept('"')) {
      check(at_ < text_.size(), "'\"'");
      check(static_cast<unsigned char>(peek()) >= 0x20, "an escaped control character");
      if (accept('\\')) {
        parse_escape(out);
      } else {
        out += text_[at_++];
      }
    }
    return out;
  }

  std::string_view text_;
  size_t at_ = 0;
};

inline Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

}  // namespace attzoo::core
