#pragma once

#include <attzoo/io/json.hpp>

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace attzoo::core {

ATTZOO_API size_t find_not_utf8(std::string_view text) {
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

/// A byte as two hex digits.
ATTZOO_API std::string hex(unsigned char byte) {
  constexpr const char* kDigits = "0123456789abcdef";
  return {kDigits[byte >> 4], kDigits[byte & 15]};
}

ATTZOO_API std::string printable(std::string_view text, size_t most) {
  const bool utf8 = find_not_utf8(text) == std::string_view::npos;
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    // A cut must not fall inside a character.
    if (out.size() >= most && (byte & 0xC0) != 0x80) return out + "...";
    if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !utf8)) {
      out += "\\x" + hex(byte);
    } else {
      out += c;
    }
  }
  return out;
}

ATTZOO_API void write_json_string(std::string& out, const std::string& s) {
  TORCH_CHECK_VALUE(find_not_utf8(s) == std::string::npos, "JSON: the string \"", printable(s),
                    "\" is not UTF-8");
  out += '"';
  for (const char c : s) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00" + hex(byte);
    } else {
      out += c;
    }
  }
  out += '"';
}

/// The shortest text that reads back as the same number; JSON has no inf and no NaN.
ATTZOO_API std::string json_number(double d) {
  if (!std::isfinite(d)) return "null";
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, d).ptr};
}

ATTZOO_API void Json::write(std::string& out, int indent, int depth) const {
  const auto list = [&](const char* brackets, const auto& elements, auto&& write_one) {
    const auto line = [&](int d) {
      if (indent >= 0) out += '\n' + std::string(static_cast<size_t>(indent * d), ' ');
    };
    out += brackets[0];
    const char* separator = "";
    for (const auto& element : elements) {
      out += std::exchange(separator, ",");
      line(depth + 1);
      write_one(element);
    }
    if (!elements.empty()) line(depth);
    out += brackets[1];
  };
  if (is_null()) {
    out += "null";
  } else if (const auto* b = std::get_if<bool>(&value_)) {
    out += *b ? "true" : "false";
  } else if (const auto* i = std::get_if<int64_t>(&value_)) {
    out += std::to_string(*i);
  } else if (const auto* d = std::get_if<double>(&value_)) {
    out += json_number(*d);
  } else if (const auto* s = std::get_if<std::string>(&value_)) {
    write_json_string(out, *s);
  } else if (const auto* a = std::get_if<Array>(&value_)) {
    list("[]", *a, [&](const Json& element) { element.write(out, indent, depth + 1); });
  } else {
    list("{}", std::get<Object>(value_), [&](const auto& entry) {
      write_json_string(out, entry.first);
      out += indent < 0 ? ":" : ": ";
      entry.second.write(out, indent, depth + 1);
    });
  }
}

ATTZOO_API std::string Json::dump(int indent) const {
  std::string out;
  write(out, indent, 0);
  return out;
}

ATTZOO_API std::string Json::excerpt() const {
  return is<Array>()    ? c10::str("an array of ", array().size())
         : is<Object>() ? c10::str("an object of ", object().size())
                        : printable(dump());
}

ATTZOO_API void Json::throw_not(const char* expected) const {
  C10_THROW_ERROR(ValueError, c10::str("JSON: expected ", expected, ", got ", excerpt()));
}

ATTZOO_API const Json& Json::operator[](const std::string& key) const {
  const auto it = object().find(key);
  TORCH_CHECK_VALUE(it != object().end(), "JSON: no key \"", printable(key), "\" in ", excerpt());
  return it->second;
}

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
  Json word(std::string_view w, Json value) {
    check(text_.substr(at_, w.size()) == w, "a value");
    at_ += w.size();
    return value;
  }

  Json parse_value(int depth) {
    check(depth < kMaxDepth, "less nesting");
    skip_space();
    const char c = peek();
    if (c == '{') return parse_object(depth);
    if (c == '[') return parse_array(depth);
    if (c == '"') return parse_string();
    if (c == 't') return word("true", true);
    if (c == 'f') return word("false", false);
    if (c == 'n') return word("null", nullptr);
    return parse_number();
  }

  /// From its first bracket to `last`; `element` reads one.
  template <class F>
  void parse_list(char last, const char* expected, const F& element) {
    ++at_;
    skip_space();
    if (accept(last)) return;
    do {
      skip_space();
      element();
      skip_space();
    } while (accept(','));
    check(accept(last), expected);
  }

  Json parse_object(int depth) {
    Json::Object object;
    parse_list('}', "',' or '}'", [&] {
      check(peek() == '"', "a key");
      std::string key = parse_string();
      skip_space();
      check(accept(':'), "':'");
      TORCH_CHECK_VALUE(object.count(key) == 0, "JSON: expected a key only once at byte ", at_,
                        ", got \"", printable(key), "\" again");
      object.emplace(std::move(key), parse_value(depth + 1));
    });
    return object;
  }

  Json parse_array(int depth) {
    Json::Array array;
    parse_list(']', "',' or ']'", [&] { array.push_back(parse_value(depth + 1)); });
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
    constexpr uint32_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};  // by the number of bytes that follow
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    out += static_cast<char>(kFirst[more] | code >> 6 * more);
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
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

ATTZOO_API Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

}  // namespace attzoo::core
