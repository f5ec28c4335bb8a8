#pragma once
// What the demo leaves behind: a table, a JSON file and pictures.

#include <attzoo/io/json.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "examples/heat_map.hpp"
#include "train.hpp"

namespace demo {

inline void print_table(const std::vector<Result>& results, double unigram, double bigram) {
  std::printf("\n%-16s %10s %14s %10s %18s\n", "mechanism", "parameters", "bits per byte",
              "tokens/s", "attention memory");
  const auto baseline = [](const char* name, double bits) {
    std::printf("%-16s %10s %14.3f %10s %18s\n", name, "-", bits, "-", "-");
  };
  baseline("(unigram)", unigram);
  baseline("(bigram)", bigram);
  for (const auto& r : results) {
    std::printf("%-16s %10ld %14.3f %10.0f %14.2f MiB\n", r.name.c_str(),
                static_cast<long>(r.parameters), r.bits_per_byte, r.tokens_per_second,
                static_cast<double>(r.attention_bytes) / (1 << 20));
  }
  std::printf(
      "\nbits per byte: on held-out text, lower is better. attention memory: peak of one "
      "forward and\nbackward of one attention module.\n");
}

inline void print_generation(const std::vector<Result>& results, const Options& o) {
  std::printf("\ngeneration after %ld bytes, one sequence\n\n%-16s %10s %14s %12s %12s %12s\n",
              static_cast<long>(o.seq_len), "mechanism", "tokens/s", "without cache", "state",
              "at 1k", "at 64k");
  for (const auto& r : results) {
    const auto& g = r.generation;
    const auto kib = [](int64_t bytes) { return static_cast<double>(bytes) / 1024; };
    std::printf("%-16s %10.0f %14.0f %8.0f KiB %8.0f KiB %8.0f KiB\n", r.name.c_str(),
                g.tokens_per_second, g.without_cache, kib(g.state_bytes), kib(g.bytes_1k),
                kib(g.bytes_64k));
  }
  std::printf(
      "\nwithout cache: tokens/s with the whole context anew for each byte. state: caches of all "
      "blocks.\nat 1k, at 64k: the cache of one block for so many tokens.\n");
}

inline attzoo::core::Json generation_json(const Generation& g) {
  return attzoo::core::Json::Object{{"tokens_per_second", g.tokens_per_second},
                                    {"tokens_per_second_without_cache", g.without_cache},
                                    {"state_bytes", g.state_bytes},
                                    {"block_state_bytes_1k", g.bytes_1k},
                                    {"block_state_bytes_64k", g.bytes_64k}};
}

inline void write_json(const std::filesystem::path& file, const Options& o,
                       const std::vector<Result>& results, double unigram, double bigram) {
  using attzoo::core::Json;
  Json::Array list;
  for (const auto& r : results) {
    list.push_back(
        Json::Object{{"mechanism", r.name},
                     {"parameters", r.parameters},
                     {"valid_bits_per_byte", r.bits_per_byte},
                     {"tokens_per_second", r.tokens_per_second},
                     {"attention_peak_bytes", r.attention_bytes},
                     {"generation", generation_json(r.generation)},
                     {"train_loss_nats", Json::Array(r.losses.begin(), r.losses.end())}});
  }
  const Json json = Json::Object{
      {"options", Json::Object{{"steps", o.steps},
                               {"seq_len", o.seq_len},
                               {"width", o.width},
                               {"heads", o.heads},
                               {"layers", o.layers},
                               {"batch", o.batch},
                               {"lr", o.lr},
                               {"seed", o.seed},
                               {"device", o.device},
                               {"text", Json::Array(o.text.begin(), o.text.end())}}},
      {"baselines_bits_per_byte", Json::Object{{"unigram", unigram}, {"bigram", bigram}}},
      {"results", list}};
  std::ofstream(file) << json.dump(2) << '\n';
}

inline void write_patterns(const std::filesystem::path& folder, const std::vector<Result>& results,
                           const Text& text, const Options& o, torch::Device device) {
  torch::NoGradGuard no_grad;
  const auto snippet = text.valid.slice(0, 0, std::min<int64_t>(64, o.seq_len)).unsqueeze(0);
  for (const auto& r : results) {
    attzoo::LazyWeights weights;
    r.model->eval();
    r.model->forward(snippet.to(device), &weights);
    example::write_heat_map(folder / ("pattern_" + r.name + ".svg"),
                            r.name + ": mean over heads, last layer, query by key",
                            weights.head_mean()[0]);
  }
}

}  // namespace demo
