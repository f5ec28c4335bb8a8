#pragma once
// Command line options of the demo.

#include <cstdint>
#include <string>
#include <vector>

namespace demo {

struct Options {
  std::vector<std::string> mechanisms = {};  // empty: a selection
  bool all = false;                          // of mechanisms
  std::vector<std::string> text = {};        // empty: the project's own files
  int64_t steps = 250, seq_len = 128, width = 128, heads = 4, layers = 2, batch = 16;
  double lr = 3e-3;
  std::string device = "auto";
  int64_t threads = 0, seed = 1;
  std::string out = "attzoo_demo_out";
  bool long_step = false;
};

/// The options that the command line gives. Ends the program after --help (status 0) and where the
/// line is wrong (status 2).
Options parse_options(int argc, char** argv);

}  // namespace demo
