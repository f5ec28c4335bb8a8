#pragma once
/// \file Splits the text of a PTX module into variables, functions and their statements.

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace attzoo::ptx {

/// What is wrong with a module or with what a kernel does; the text names the PTX line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A variable of a module or a function, or a parameter.
struct Variable {
  std::string space;  ///< "shared", "local", "param", "global", "const" or "reg"
  std::string type;   ///< "b8", "f32", "pred", ...
  std::string name;
  size_t align = 1;
  size_t bytes = 0;
  bool external = false;
  int range = -1;                  ///< for registers %r<range>
  std::vector<std::byte> initial;  ///< empty if the variable has no initialiser
};

/// A statement of a function's body.
struct Statement {
  enum class Kind { kOpen, kClose, kLabel, kText };
  Kind kind;
  std::string text;
  int line;
};

/// A kernel or a device function.
struct Function {
  std::string name;
  bool entry = false;
  std::vector<Variable> results, parameters;
  std::vector<Statement> body;
};

/// What a module's text declares.
struct Text {
  std::vector<Variable> variables;
  std::vector<Function> functions;
};

/// The bytes of one element of a type, for a predicate 0.
inline size_t type_bytes(const std::string& type) {
  if (type == "pred") return 0;
  const auto digit = type.find_first_of("0123456789");
  if (digit == std::string::npos) throw Error("ptx: unknown type ." + type);
  const size_t bits = std::strtoul(type.c_str() + digit, nullptr, 10);
  const auto times = type.find('x', digit);
  return bits / 8 * (times == std::string::npos ? 1 : std::strtoul(&type[times + 1], nullptr, 10));
}

/// Whether the text begins with the prefix at the position.
inline bool starts(const std::string& text, size_t at, const char* prefix) {
  return text.compare(at, std::char_traits<char>::length(prefix), prefix) == 0;
}

inline std::string trim(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// Parts of the text between separators that stand outside of all brackets, without blanks around.
inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  int depth = 0;
  std::string part;
  for (const char c : text) {
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c == separator && depth == 0) {
      parts.push_back(trim(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trim(part).empty()) parts.push_back(trim(part));
  return parts;
}

/// The bits of a literal as an operand of that many bytes.
inline uint64_t literal(const std::string& text, bool floating, size_t bytes) {
  const bool hex = text.size() > 2 && text[0] == '0';
  if (hex && (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D')) {
    return std::stoull(text.substr(2), nullptr, 16);
  }
  if (floating && bytes == 4) return __builtin_bit_cast(uint32_t, std::stof(text));
  if (floating && bytes == 8) return __builtin_bit_cast(uint64_t, std::stod(text));
  return text[0] == '-' ? static_cast<uint64_t>(std::stoll(text, nullptr, 0))
                        : std::stoull(text, nullptr, 0);
}

/// Reads a module's text.
class Reader {
 public:
  explicit Reader(const std::string& text) : text_(without_comments(text)) {}

  Text read() {
    Text all;
    for (skip_blanks(); at_ < text_.size(); skip_blanks()) {
      if (starts(text_, at_, ".version") || starts(text_, at_, ".target") ||
          starts(text_, at_, ".address_size") || starts(text_, at_, ".file")) {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else {
        item(all);
      }
    }
    return all;
  }

  /// The variable that words such as ".shared .align 4 .b8 tile[64]" declare.
  static Variable variable(const std::string& declaration) {
    Variable v;
    const auto equals = declaration.find('=');
    std::vector<std::string> words = split(spaced(declaration.substr(0, equals)), ' ');
    size_t vector = 1;
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      const std::string word = words[i].empty() ? "" : words[i].substr(1);
      if (word == "extern") v.external = true;
      if (word == "align" && v.type.empty()) v.align = std::stoul(words[i + 1]);
      if (word == "v2" || word == "v4") vector = static_cast<size_t>(word[1] - '0');
      if (is_space(word) && v.space.empty()) v.space = word;
      if (word.find_first_of("0123456789") != std::string::npos || word == "pred") {
        if (words[i][0] == '.' && word[0] != 'v' && v.type.empty()) v.type = word;
      }
    }
    v.name = words.empty() ? "" : words.back();
    if (v.type.empty()) throw Error("ptx: cannot read the declaration " + declaration);
    v.bytes = type_bytes(v.type) * vector;
    v.align = std::max(v.align, std::max<size_t>(v.bytes, 1));
    if (words.size() > 1 && equals == std::string::npos && v.name.back() == '>') {
      v.range = std::stoi(v.name.substr(v.name.find('<') + 1));
      v.name = v.name.substr(0, v.name.find('<'));
    }
    extents(v);
    if (equals != std::string::npos) initialise(v, declaration.substr(equals + 1));
    return v;
  }

 private:
  static bool is_space(const std::string& word) {
    return word == "shared" || word == "local" || word == "param" || word == "global" ||
           word == "const" || word == "reg";
  }

  /// Blanks of any kind become single spaces; none is left before an extent.
  static std::string spaced(const std::string& text) {
    std::string out;
    for (const char c : text) {
      const char blank = std::isspace(static_cast<unsigned char>(c)) ? ' ' : c;
      if (blank == ' ' && (out.empty() || out.back() == ' ')) continue;
      if (blank == '[' && !out.empty() && out.back() == ' ') out.pop_back();
      out += blank;
    }
    return trim(out);
  }

  static void extents(Variable& v) {
    auto bracket = v.name.find('[');
    const std::string name = v.name.substr(0, bracket);
    for (; bracket != std::string::npos; bracket = v.name.find('[', bracket + 1)) {
      v.bytes *= std::strtoul(&v.name[bracket + 1], nullptr, 10);  // 0 for name[]
    }
    v.name = name;
  }

  static void initialise(Variable& v, std::string values) {
    v.initial.assign(v.bytes, std::byte{0});
    const size_t size = type_bytes(v.type);
    for (char& c : values) c = c == '{' || c == '}' ? ' ' : c;
    size_t at = 0;
    for (const auto& value : split(values, ',')) {
      const uint64_t bits = literal(value, v.type[0] == 'f', size);
      for (size_t i = 0; i < size && at < v.bytes; ++i) {
        v.initial[at++] = static_cast<std::byte>(bits >> (8 * i));
      }
    }
  }

  static std::string without_comments(const std::string& text) {
    std::string out = text;
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] == '\0') out[i] = ' ';
      if (starts(out, i, "//")) {
        for (; i < out.size() && out[i] != '\n'; ++i) out[i] = ' ';
      } else if (starts(out, i, "/*")) {
        const size_t end = std::min(out.find("*/", i), out.size() - 2) + 2;
        for (; i < end; ++i) out[i] = out[i] == '\n' ? '\n' : ' ';
      }
    }
    return out;
  }

  void skip_blanks() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) next();
  }

  char next() {
    line_ += text_[at_] == '\n';
    return text_[at_++];
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  /// The text up to one of the characters outside of brackets of the kinds ( and [.
  std::string until(const char* ends) {
    std::string out;
    while (at_ < text_.size() && std::string(ends).find(peek()) == std::string::npos) out += next();
    if (at_ == text_.size()) throw Error("ptx: the module ends inside of: " + trim(out));
    return trim(out);
  }

  void item(Text& all) {
    std::string header = until(";{=");
    const bool function =
        header.find(".entry") != std::string::npos || header.find(".func") != std::string::npos;
    if (!function && peek() == '{') {  // a section of debugging information
      while (peek() != '}') next();
      next();
    } else if (!function) {
      header += until(";");
      next();
      if (header.find(".pragma") == std::string::npos && !header.empty()) {
        all.variables.push_back(variable(header));
      }
    } else if (next() == '{') {
      all.functions.push_back(declared(header));
      body(all.functions.back());
    }
  }

  static std::vector<Variable> parameters(const std::string& list) {
    std::vector<Variable> out;
    for (const auto& one : split(list, ',')) out.push_back(variable(one));
    return out;
  }

  static Function declared(const std::string& header) {
    Function f;
    f.entry = header.find(".entry") != std::string::npos;
    size_t at = header.find(f.entry ? ".entry" : ".func") + (f.entry ? 6 : 5);
    const auto list = [&] {
      const size_t close = header.find(')', at);
      const std::string inside = header.substr(at + 1, close - at - 1);
      at = close + 1;
      return parameters(inside);
    };
    at = header.find_first_not_of(" \t\r\n", at);
    if (header[at] == '(') f.results = list();
    at = header.find_first_not_of(" \t\r\n", at);
    const size_t end = std::min(header.find_first_of(" \t\r\n(", at), header.size());
    f.name = header.substr(at, end - at);
    at = header.find_first_not_of(" \t\r\n", end);
    if (at != std::string::npos && header[at] == '(') f.parameters = list();
    return f;
  }

  void body(Function& f) {
    int depth = 1;
    for (skip_blanks(); depth > 0; skip_blanks()) {
      const int line = line_;
      if (starts(text_, at_, ".loc") && !starts(text_, at_, ".local")) {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (peek() == '{' || peek() == '}') {
        const bool open = next() == '{';
        depth += open ? 1 : -1;
        f.body.push_back({open ? Statement::Kind::kOpen : Statement::Kind::kClose, "", line});
      } else {
        statement(f, line);
      }
    }
    f.body.pop_back();  // the function's own closing brace
  }

  void statement(Function& f, int line) {
    std::string text = until(";:");
    while (peek() == ':' && text_[at_ + 1] == ':') {  // as in .shared::cta
      text += next();
      text += next();
      text += until(";:");
    }
    const bool label = next() == ':';
    f.body.push_back({label ? Statement::Kind::kLabel : Statement::Kind::kText, text, line});
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace attzoo::ptx
