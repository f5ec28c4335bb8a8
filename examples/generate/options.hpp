#pragma once
// Command line options of the program.

#include <cstdint>
#include <string>
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
  int64_t threads = 0;  // 0: LibTorch's choice
};

/// The options that the command line gives. Ends the program after --help (status 0) and where the
/// line is wrong (status 2).
Options parse_options(int argc, char** argv);

}  // namespace generate
