// Trains a small byte-level language model on real text with each mechanism of the zoo, compares
// them, lets the best one write, and leaves JSON and pictures of the attention patterns.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>

#include "report.hpp"
#include "support/devices.hpp"

namespace demo {
namespace {

torch::Device choose_device(const std::string& wanted) {
  const bool cuda = wanted != "cpu" && attzoo::testing::has_cuda();
  TORCH_CHECK_VALUE(cuda || wanted != "cuda",
                    "attzoo_demo: --device cuda, but this LibTorch sees no CUDA device");
  return cuda ? torch::kCUDA : torch::kCPU;
}

/// What is trained by default, to spare time: one or two of each kind.
constexpr const char* kSelection[] = {"alibi",   "block",           "combined",     "dilated",
                                      "gated",   "gated_delta_net", "grouped",      "linear",
                                      "local",   "longformer",      "lsh",          "mamba2",
                                      "vanilla", "multi_head",      "native_sparse"};
bool is_selected(const std::string& name) {
  return std::find(std::begin(kSelection), std::end(kSelection), name) != std::end(kSelection);
}

std::vector<Mechanism> choose_mechanisms(const Options& options) {
  auto all = all_mechanisms();
  if (options.all) return all;
  if (options.mechanisms.empty()) {
    std::erase_if(all, [](const Mechanism& m) { return !is_selected(m.name); });
    return all;
  }
  std::vector<Mechanism> chosen;
  for (const auto& name : options.mechanisms) {
    const auto it =
        std::find_if(all.begin(), all.end(), [&](const auto& m) { return m.name == name; });
    if (it == all.end()) {
      std::string known;
      for (const auto& m : all) known += " " + m.name;
      TORCH_CHECK_VALUE(false, "attzoo_demo: unknown mechanism ", name, "; known are:", known);
    }
    chosen.push_back(*it);
  }
  return chosen;
}

void print_left_out(const Options& options) {
  if (options.all || !options.mechanisms.empty()) return;
  std::printf("left out:");
  for (const auto& m : all_mechanisms()) {
    if (!is_selected(m.name)) std::printf(" %s", m.name.c_str());
  }
  std::printf("; --all trains them, too, --mechanisms NAME ... the ones that are named\n");
}

void run_long(const std::vector<Mechanism>& mechanisms, const Text& text, Options options,
              torch::Device device) {
  options.seq_len = 16384;
  options.batch = 1;
  std::printf("one training step at %ld tokens, %ld blocks of width %ld\n\n%-16s %10s %14s\n",
              static_cast<long>(options.seq_len), static_cast<long>(options.layers),
              static_cast<long>(options.width), "mechanism", "seconds", "peak memory");
  for (const auto& m : mechanisms) {
    if (m.quadratic) continue;
    const auto step = long_step(m, text, options, device);
    std::printf("%-16s %10.2f %10.1f MiB\n", m.name.c_str(), step.seconds,
                static_cast<double>(step.bytes) / (1 << 20));
  }
}

void run(Options options) {
  const auto mechanisms = choose_mechanisms(options);
  const auto device = choose_device(options.device);
  options.device = device.str();
  if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
  if (options.text.empty()) options.text = project_files(ATTZOO_SOURCE_DIR);
  const auto text = load_text(options.text);
  if (options.long_step) return run_long(mechanisms, text, options, device);
  std::filesystem::create_directories(options.out);
  const std::filesystem::path out = options.out;

  std::printf("%ld bytes of text to learn from, %ld held out; %ld steps of %ld x %ld bytes on %s\n",
              static_cast<long>(text.train.size(0)), static_cast<long>(text.valid.size(0)),
              static_cast<long>(options.steps), static_cast<long>(options.batch),
              static_cast<long>(options.seq_len), options.device.c_str());
  print_left_out(options);
  std::vector<Result> results;
  for (const auto& m : mechanisms) results.push_back(train(m, text, options, device));

  const auto [unigram, bigram] = count_baselines(text);
  print_table(results, unigram, bigram);
  print_generation(results, options);
  print_left_out(options);
  const auto& best = *std::min_element(results.begin(), results.end(), [](auto& a, auto& b) {
    return a.bits_per_byte < b.bits_per_byte;
  });
  const auto start = text.valid.slice(0, 0, std::min<int64_t>(64, options.seq_len));
  std::printf("\n%s writes:\n----\n%s\n----\n", best.name.c_str(),
              sample(*best.model, start, 240, options, device).c_str());
  write_json(out / "results.json", options, results, unigram, bigram);
  write_patterns(out, results, text, options, device);
  std::printf("\nresults.json and a picture of each attention pattern are in %s\n",
              std::filesystem::absolute(out).string().c_str());
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  const auto options = demo::parse_options(argc, argv);
  try {
    demo::run(options);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 2;
  }
}
