#pragma once
// Command line options of the program.

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

namespace generate {

struct Options {
  std::string folder;
  std::vector<int64_t> ids = {};  // the prompt, or
  std::string text = {};          // its bytes
  int64_t tokens = 64;            // to generate at most
  double temperature = 0;         // 0: always the likeliest
  int64_t top_k = 0;              // 0: all
  double top_p = 1;
  int64_t seed = 1;
  bool ignore_stop = false;
  bool warm_up = false;  // reads the prompt once before the time counts
  std::string dtype = "float32", device = "cpu";
  std::string cache_dtype = {};  // empty: dtype
  int64_t threads = 0;           // 0: LibTorch's choice
  bool help = false;
};

inline constexpr int64_t kMostTokens = 1'000'000'000;

inline constexpr const char* kHelp =
    R"(attzoo_generate FOLDER --ids 1,2,3 | --text TEXT [OPTION...]

Continues a prompt with a GPT-2, Llama, Mistral, Qwen2, Qwen3 or GPT-OSS checkpoint.
Tokens go to the standard output as they come, times to the standard error.

  FOLDER            config.json and *.safetensors
  --ids N,N,...     the prompt: token ids
  --text TEXT       the prompt of a model whose tokens are bytes
  --tokens N        how many to generate at most [64]
  --temperature X   divides the logits; 0: the likeliest token [0]
  --top-k N         draw from so many tokens; 0: all [0]
  --top-p X         draw from the likeliest that have this probability together [1]
  --seed N          of what is drawn [1]
  --ignore-stop     goes on after the tokens that end a text
  --warm-up         reads the prompt once before the time counts
  --dtype NAME      computes in float64, float32, bfloat16 or float16 [float32]
  --cache-dtype NAME
                    keeps keys and values in one of these, in int8 or in float8_e4m3fn, with
                    a scale for each head and token [that of --dtype]
  --device NAME     cpu or cuda [cpu]
  --threads N       CPU threads; 0: LibTorch's choice [0]
  --help            prints this
)";

/// The number that `text` is, all of it. Throws c10::ValueError that names `option`.
template <class T>
T parse_number(const std::string& option, std::string_view text, T least, T most) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  TORCH_CHECK_VALUE(error == std::errc() && stopped == end && least <= value && value <= most,
                    option, " must be a ", std::is_integral_v<T> ? "whole " : "", "number within ",
                    least, " ... ", most, ", got \"", text, "\"");
  return value;
}

inline std::vector<int64_t> parse_ids(const std::string& option, std::string_view text) {
  std::vector<int64_t> ids;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    ids.push_back(parse_number<int64_t>(option, text.substr(at, end - at), 0,
                                        std::numeric_limits<int64_t>::max()));
    at = end + 1;
  }
  return ids;
}

inline std::string one_of(const std::string& option, const std::string& text,
                          const std::vector<std::string>& names) {
  const bool known = std::find(names.begin(), names.end(), text) != names.end();
  TORCH_CHECK_VALUE(known, option, " must be one of ", c10::Join(", ", names), ", got \"", text,
                    "\"");
  return text;
}

/// The options that the words of a command line give. Throws c10::ValueError for a wrong line.
inline Options parse_options(const std::vector<std::string>& words) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  Options o;
  const auto integer = [](int64_t& field, int64_t most) {
    return [&field, most](const std::string& name, const std::string& value) {
      field = parse_number<int64_t>(name, value, 0, most);
    };
  };
  const auto number = [](double& field, double most) {
    return [&field, most](const std::string& name, const std::string& value) {
      field = parse_number<double>(name, value, 0, most);
    };
  };
  const auto word = [](std::string& field, const std::vector<std::string>& known) {
    return [&field, known](const std::string& name, const std::string& value) {
      field = one_of(name, value, known);
    };
  };
  std::vector<std::string> dtypes{"float64", "float32", "bfloat16", "float16"};
  auto of_caches = dtypes;
  of_caches.insert(of_caches.end(), {"int8", "float8_e4m3fn"});
  using Read = std::function<void(const std::string& name, const std::string& value)>;
  const std::map<std::string, Read> options{
      {"--ids", [&](auto& name, auto& value) { o.ids = parse_ids(name, value); }},
      {"--text", [&](auto&, auto& value) { o.text = value; }},
      {"--tokens", integer(o.tokens, kMostTokens)},
      {"--temperature", number(o.temperature, 1e9)},
      {"--top-k", integer(o.top_k, kMost)},
      {"--top-p", number(o.top_p, 1)},
      {"--seed", integer(o.seed, kMost)},
      {"--dtype", word(o.dtype, dtypes)},
      {"--cache-dtype", word(o.cache_dtype, of_caches)},
      {"--device", word(o.device, {"cpu", "cuda"})},
      {"--threads", integer(o.threads, 4096)}};
  const std::map<std::string, bool*> flags{{"--ignore-stop", &o.ignore_stop},
                                           {"--warm-up", &o.warm_up},
                                           {"--help", &o.help},
                                           {"-h", &o.help}};
  std::multiset<std::string> given;
  for (size_t i = 0; i < words.size(); ++i) {
    const auto equals = words[i].find('=');  // --name=value, or two words
    const auto name = words[i].substr(0, equals);
    if (const auto flag = flags.find(words[i]); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto option = options.find(name); option != options.end()) {
      given.insert(name);
      const bool two_words = equals == std::string::npos;
      TORCH_CHECK_VALUE(!two_words || i + 1 < words.size(), name, " needs a value");
      option->second(name, two_words ? words[++i] : words[i].substr(equals + 1));
    } else {
      TORCH_CHECK_VALUE(words[i].empty() || words[i][0] != '-', "unknown option ", words[i]);
      TORCH_CHECK_VALUE(o.folder.empty(), "one FOLDER is expected, got ", o.folder, " and ",
                        words[i]);
      o.folder = words[i];
    }
  }
  if (o.help) return o;
  std::error_code ignored;
  TORCH_CHECK_VALUE(std::filesystem::is_directory(o.folder, ignored), "there is no FOLDER \"",
                    o.folder, "\"");
  TORCH_CHECK_VALUE(given.count("--ids") + given.count("--text") == 1,
                    "the prompt is either --ids or --text, given once");
  return o;
}

}  // namespace generate
