#pragma once
// Command line options of the demo.

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace demo {

struct Options {
  std::vector<std::string> mechanisms;  // empty: all
  std::vector<std::string> text;        // empty: the project's own files
  int64_t steps = 250, seq_len = 128, width = 128, heads = 4, layers = 2, batch = 16;
  double lr = 3e-3;
  std::string device = "auto";
  int64_t threads = 0, seed = 1;
  std::string out = "attzoo_demo_out";
  bool long_step = false;
};

/// One option: its name, what it takes, what it does, and how a value is stored.
struct Flag {
  std::string name, help;
  std::function<bool(const std::string&)> set;
  bool many = false;   // takes all values up to the next option
  bool alone = false;  // takes none
};

inline std::function<bool(const std::string&)> positive(int64_t& field, int64_t least = 1) {
  return [&field, least](const std::string& s) {
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), field);
    return error == std::errc() && end == s.data() + s.size() && field >= least;
  };
}

inline std::vector<Flag> flags(Options& o) {
  const auto append = [](std::vector<std::string>& list) {
    return [&list](const std::string& s) {
      list.push_back(s);
      return !s.empty();
    };
  };
  return {
      {"mechanisms", "NAME...  which mechanisms to train; default all", append(o.mechanisms), true},
      {"text", "FILE...  text to learn; default attzoo's own files", append(o.text), true},
      {"steps", "N  training steps, default 250", positive(o.steps)},
      {"seq-len", "N  bytes in a sequence, default 128", positive(o.seq_len, 8)},
      {"width", "N  features of the model, default 128", positive(o.width)},
      {"heads", "N  attention heads, default 4", positive(o.heads)},
      {"layers", "N  transformer blocks, default 2", positive(o.layers)},
      {"batch", "N  sequences in a step, default 16", positive(o.batch)},
      {"lr", "X  highest learning rate, default 0.003",
       [&o](const std::string& s) {
         char* end = nullptr;
         o.lr = std::strtod(s.c_str(), &end);
         return !s.empty() && *end == '\0' && o.lr > 0;
       }},
      {"device", "cpu|cuda|auto  default auto: cuda where there is one",
       [&o](const std::string& s) {
         o.device = s;
         return s == "cpu" || s == "cuda" || s == "auto";
       }},
      {"threads", "N  CPU threads, default LibTorch's choice", positive(o.threads)},
      {"seed", "N  default 1", positive(o.seed, 0)},
      {"long", "instead: one training step at 16384 tokens with each sub-quadratic mechanism",
       [&o](const std::string&) { return o.long_step = true; }, false, true},
      {"out", "DIR  where results go, default attzoo_demo_out",
       [&o](const std::string& s) {
         o.out = s;
         return !s.empty();
       }},
  };
}

[[noreturn]] inline void usage(const std::vector<Flag>& flags, const std::string& error) {
  FILE* to = error.empty() ? stdout : stderr;
  if (!error.empty()) std::fprintf(to, "attzoo_demo: %s\n\n", error.c_str());
  std::fprintf(to,
               "Trains a small byte-level language model with each attention mechanism.\n\n"
               "usage: attzoo_demo [OPTION...]\n");
  for (const auto& f : flags) std::fprintf(to, "  --%-11s %s\n", f.name.c_str(), f.help.c_str());
  std::exit(error.empty() ? 0 : 2);
}

inline Options parse_options(int argc, char** argv) {
  Options options;
  const auto known = flags(options);
  const std::vector<std::string> args(argv + 1, argv + argc);
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--help" || args[i] == "-h") usage(known, "");
    std::string name = args[i], value;
    const size_t equals = name.find('=');
    const bool inline_value = equals != std::string::npos;
    if (inline_value) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    const Flag* flag = nullptr;
    for (const auto& f : known) {
      if (name == "--" + f.name) flag = &f;
    }
    if (!flag) usage(known, "unknown option " + args[i]);
    size_t values = 0;
    const auto take = [&](const std::string& v) {
      if (!flag->set(v)) usage(known, "bad value '" + v + "' for " + name);
      ++values;
    };
    if (inline_value || flag->alone) take(value);
    while (!inline_value && !flag->alone && i + 1 < args.size() && !args[i + 1].starts_with("--") &&
           (values == 0 || flag->many)) {
      take(args[++i]);
    }
    if (values == 0) usage(known, name + " needs a value");
  }
  return options;
}

}  // namespace demo
