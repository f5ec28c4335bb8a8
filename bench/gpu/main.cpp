// gpu_check_program: one part of bench/gpu_check, which says what it is for.
//
//   gpu_check_program --part attention --device cpu --quick
//
//   --part      facts, attention, mechanisms, compile, repeats, memory, speed
//   --device    cuda (default) or cpu
//   --quick     the smallest sizes
//   --records   a file that lines of JSON are appended to
//   --seconds   cases that would begin later are skipped
//   --first     the number of the first case to run
//   --worker    I/N: of every N cases the I-th, from 0

#include <torch/types.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "gpu/report.hpp"
#include "support/devices.hpp"

namespace {

const std::map<std::string, void (*)(bench::Report&)> kParts{
    {"facts", bench::check_facts},           {"attention", bench::check_attention},
    {"mechanisms", bench::check_mechanisms}, {"compile", bench::compile_speed},
    {"repeats", bench::check_repeats},       {"memory", bench::check_memory},
    {"speed", bench::measure_speed},
};

bool read(bench::Order& order, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--quick") {
      order.quick = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* const value = argv[++i];
    if (name == "--part") {
      order.part = value;
    } else if (name == "--device") {
      order.device = torch::Device(value);
    } else if (name == "--records") {
      order.records = value;
    } else if (name == "--seconds") {
      order.seconds = std::atof(value);
    } else if (name == "--first") {
      order.first = std::atoll(value);
    } else if (name == "--worker") {
      char* rest = nullptr;
      order.worker = std::strtoll(value, &rest, 10);
      order.workers = *rest == '/' ? std::atoll(rest + 1) : 0;
      if (order.worker < 0 || order.worker >= order.workers) return false;
    } else {
      return false;
    }
  }
  return kParts.count(order.part) > 0;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Order order;
  if (!read(order, argc, argv)) {
    std::fprintf(stderr, "gpu_check_program: wrong arguments; bench/gpu/main.cpp lists them\n");
    return 2;
  }
  if (order.on_cuda()) {
    if (!torch::cuda::is_available() && !attzoo::testing::has_cuda()) {
      std::fprintf(stderr, "gpu_check_program: this LibTorch sees no CUDA device\n");
      return 2;
    }
    order.device = torch::Device(torch::kCUDA, 0);
  }
  c10::WarningUtils::set_warnAlways(true);
  bench::Report report(order);
  kParts.at(order.part)(report);
}
