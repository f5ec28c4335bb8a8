// Reads the command line with CLI11. Without it the demo takes none, and says so.

#include "options.hpp"

#include <cstdio>
#include <cstdlib>

#ifdef ATTZOO_DEMO_HAS_CLI11

#include <CLI/CLI.hpp>

namespace demo {

namespace {

/// What an option's value must be, in words, and the test of it.
template <class T>
CLI::Validator must(std::string be, bool (*is_right)(T)) {
  return CLI::Validator(
      [=](const std::string& text) {
        T value{};
        const bool right = CLI::detail::lexical_cast(text, value) && is_right(value);
        return right ? std::string() : "must be " + be + ", got '" + text + "'";
      },
      "");
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options o;
  CLI::App app("Trains a small byte-level language model with each attention mechanism.",
               "attzoo_demo");
  const auto count = [&](const char* name, int64_t& field, const char* help,
                         const CLI::Validator& check) {
    app.add_option(name, field, help)->check(check)->type_name("N")->capture_default_str();
  };
  const auto positive = must<int64_t>("a whole number > 0", [](int64_t n) { return n > 0; });
  const auto natural = must<int64_t>("a whole number >= 0", [](int64_t n) { return n >= 0; });
  const auto eight = must<int64_t>("a whole number >= 8", [](int64_t n) { return n >= 8; });
  const auto rate = must<double>("a number > 0", [](double x) { return x > 0 && x < 1e30; });
  const auto device = must<std::string>("cpu, cuda or auto", [](std::string name) {
    return name == "cpu" || name == "cuda" || name == "auto";
  });
  app.add_option("--mechanisms", o.mechanisms, "which mechanisms to train; default a selection")
      ->type_name("NAME");
  app.add_flag("--all", o.all, "train every mechanism, in 100 steps unless --steps says more");
  app.add_option("--text", o.text, "text to learn; default attzoo's own files")->type_name("FILE");
  count("--steps", o.steps, "training steps", positive);
  const auto* steps = app.get_option("--steps");
  count("--seq-len", o.seq_len, "bytes in a sequence", eight);
  count("--width", o.width, "features of the model", positive);
  count("--heads", o.heads, "attention heads", positive);
  count("--layers", o.layers, "transformer blocks", positive);
  count("--batch", o.batch, "sequences in a step", positive);
  app.add_option("--lr", o.lr, "highest learning rate")
      ->check(rate)
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--device", o.device, "cpu, cuda or auto: cuda where there is one")
      ->check(device)
      ->type_name("NAME")
      ->capture_default_str();
  count("--threads", o.threads, "CPU threads; 0: LibTorch's choice", natural);
  count("--seed", o.seed, "of all that is random", natural);
  app.add_flag("--long", o.long_step,
               "instead: one training step at 16384 tokens with each sub-quadratic mechanism");
  app.add_option("--out", o.out, "where results go")->type_name("DIR")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", app.help().c_str());
    std::exit(0);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "attzoo_demo: %s\n\n%s", error.what(), app.help().c_str());
    std::exit(2);
  }
  if (o.all && steps->empty()) o.steps = 100;
  return o;
}

}  // namespace demo

#else

namespace demo {

Options parse_options(int argc, char** argv) {
  if (argc > 1) {
    std::fprintf(stderr,
                 "attzoo_demo: %s: this build takes no options; install CLI11 (Debian: "
                 "libcli11-dev) and configure again\n",
                 argv[1]);
    std::exit(2);
  }
  std::printf("built without CLI11, so with the default options\n");
  return {};
}

}  // namespace demo

#endif
