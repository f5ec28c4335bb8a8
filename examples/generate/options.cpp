// Reads the command line with CLI11.

#include "options.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace generate {

Options parse_options(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Continues a prompt with a GPT-2, Llama, Mistral, Qwen2, Qwen3 or GPT-OSS checkpoint.\n"
      "Tokens go to the standard output as they come, times to the standard error.",
      "attzoo_generate");
  const auto natural = CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max());
  app.add_option("folder", o.folder, "config.json and *.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory)
      ->type_name("FOLDER");
  auto* prompt = app.add_option_group("prompt");
  prompt->require_option(1);
  prompt->add_option("--ids", o.ids, "the prompt: token ids, 1,2,3")
      ->delimiter(',')
      ->check(natural)
      ->type_name("N");
  prompt->add_option("--text", o.text, "the prompt of a model whose tokens are bytes");
  app.add_option("--tokens", o.tokens, "how many to generate at most")
      ->check(natural)
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--temperature", o.temperature, "divides the logits; 0: the likeliest token")
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--top-k", o.top_k, "draw from so many tokens; 0: all")
      ->check(natural)
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--top-p", o.top_p, "draw from the likeliest that have this probability together")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of what is drawn")
      ->check(natural)
      ->type_name("N")
      ->capture_default_str();
  app.add_flag("--ignore-stop", o.ignore_stop, "goes on after the tokens that end a text");
  app.add_flag("--warm-up", o.warm_up, "reads the prompt once before the time counts");
  app.add_option("--dtype", o.dtype, "computes in")
      ->check(CLI::IsMember({"float64", "float32", "bfloat16", "float16"}))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--device", o.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--threads", o.threads, "CPU threads; 0: LibTorch's choice")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}))
      ->type_name("N")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", app.help().c_str());
    std::exit(0);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "attzoo_generate: %s\n\n%s", error.what(), app.help().c_str());
    std::exit(2);
  }
  return o;
}

}  // namespace generate
