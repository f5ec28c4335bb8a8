// attzoo_generate: continues a prompt with a published checkpoint, token by token through caches.

#include <attzoo/io/file.hpp>

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "models.hpp"
#include "options.hpp"
#include "sample.hpp"

namespace generate {
namespace {

torch::ScalarType dtype_of(const std::string& name) {
  if (name == "float64") return torch::kFloat64;
  if (name == "bfloat16") return torch::kBFloat16;
  if (name == "float16") return torch::kFloat16;
  if (name == "int8") return torch::kInt8;
  if (name == "float8_e4m3fn") return torch::kFloat8_e4m3fn;
  return torch::kFloat32;
}

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The prompt's tokens, all of which the model knows.
std::vector<int64_t> prompt_of(const Options& o, int64_t vocab) {
  auto ids = o.ids;
  for (const char byte : o.text) ids.push_back(static_cast<unsigned char>(byte));
  for (const int64_t id : ids) {
    TORCH_CHECK_VALUE(id < vocab, "token ", id, " is none of the ", vocab, " that the model knows");
  }
  TORCH_CHECK_VALUE(!ids.empty(), "the prompt is empty");
  return ids;
}

void print(int64_t id, bool as_byte) {
  if (as_byte && id < 256) {
    std::putchar(static_cast<int>(id));
  } else {
    std::printf("%lld ", static_cast<long long>(id));
  }
  std::fflush(stdout);
}

void run(const Options& o) {
  const c10::InferenceMode inference;
  if (o.threads > 0) at::set_num_threads(static_cast<int>(o.threads));
  const torch::Device device(o.device);
  const Clock loading;
  const auto model = load_model(o.folder, dtype_of(o.dtype), device);
  const auto& config = model->config;
  const auto prompt = prompt_of(o, config.vocab);
  const auto size = static_cast<int64_t>(prompt.size());
  std::fprintf(stderr, "%s, %zu layers, loaded in %.1f s\n", config.family.c_str(),
               config.windows.size(), loading.seconds());
  if (size + o.tokens > config.context) {
    std::fprintf(stderr, "the model was trained for %lld tokens\n",
                 static_cast<long long>(config.context));
  }

  const int64_t capacity = size + std::max<int64_t>(o.tokens, 1);
  attzoo::CacheOptions how;
  if (!o.cache_dtype.empty()) how.dtype = dtype_of(o.cache_dtype);
  auto state = attzoo::core::naming(c10::str("the state of ", capacity, " tokens"),
                                    [&] { return model->make_state(1, capacity, how); });
  Sampler sample({o.temperature, o.top_k, o.top_p}, o.seed);
  const auto next = [&](const torch::Tensor& ids) {
    const auto x = model->forward(ids.to(device), state);
    return sample(model->logits(x.select(1, -1)).select(0, 0));
  };
  if (o.warm_up) {
    auto unused = model->make_state(1, size, how);
    model->forward(torch::tensor(prompt, device).unsqueeze(0), unused);
  }
  const Clock reading;
  int64_t id = next(torch::tensor(prompt).unsqueeze(0));
  const double read = reading.seconds();

  const Clock writing;
  int64_t made = 0;
  for (; made < o.tokens; ++made) {
    if (!o.ignore_stop && std::count(config.stop.begin(), config.stop.end(), id)) break;
    print(id, !o.text.empty());
    if (made + 1 < o.tokens) id = next(torch::full({1, 1}, id, torch::kInt64));
  }
  const double wrote = writing.seconds();
  std::printf("\n");
  std::fflush(stdout);
  std::fprintf(stderr, "prompt: %lld tokens in %.4f s, %.1f tokens/s\n",
               static_cast<long long>(size), read, static_cast<double>(size) / read);
  if (made > 1) {  // the first one came with the prompt
    std::fprintf(stderr, "generation: %lld tokens in %.4f s, %.1f tokens/s\n",
                 static_cast<long long>(made - 1), wrote, static_cast<double>(made - 1) / wrote);
  }
  std::fprintf(stderr, "state: %lld bytes\n", static_cast<long long>(state.cache.bytes()));
}

}  // namespace
}  // namespace generate

int main(int argc, char** argv) {
  generate::Options options;
  try {
    options = generate::parse_options({argv + 1, argv + argc});
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "attzoo_generate: %s\n\n%s", error.what_without_backtrace(),
                 generate::kHelp);
    return 2;
  }
  if (options.help) {
    std::printf("%s", generate::kHelp);
    return 0;
  }
  // LibTorch's: large tensors in large pages, which are read faster. A value that is there stays.
  setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);
  try {
    generate::run(options);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "attzoo_generate: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attzoo_generate: %s\n", error.what());
    return 1;
  }
}
