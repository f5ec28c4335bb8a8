#pragma once
// Training, validation and sampling.

#include <c10/core/InferenceMode.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "model.hpp"
#include "support/peak_memory.hpp"
#include "text.hpp"

namespace demo {

/// Generation with a context of seq_len bytes, one sequence.
struct Generation {
  double tokens_per_second = 0;  // through caches
  double without_cache = 0;      // tokens/s with the whole context anew for each byte
  int64_t state_bytes = 0;       // of all blocks
  int64_t bytes_1k = 0;          // of one block's cache for 1024 tokens
  int64_t bytes_64k = 0;         // and for 65536
};

struct Result {
  std::string name;
  int64_t parameters = 0;
  double bits_per_byte = 0;      // on the validation text
  double tokens_per_second = 0;  // of training
  int64_t attention_bytes = 0;   // peak of one forward and backward of the attention module
  Generation generation;
  std::vector<double> losses;  // nats, one a step
  std::shared_ptr<LanguageModel> model;
};

/// A progress line that redraws itself on a terminal, and is a plain line now and then elsewhere.
class Progress {
 public:
  Progress(std::string name, int64_t steps)
      : name_(std::move(name)), steps_(steps), terminal_(isatty(STDOUT_FILENO) != 0) {}

  void show(int64_t step, double loss, double tokens_per_second) const {
    const bool last = step == steps_;
    const bool due = terminal_ ? step % 5 == 0 : step * 4 / steps_ != (step - 1) * 4 / steps_;
    if (!due && !last) return;
    constexpr int64_t kWidth = 24;
    const auto done = static_cast<size_t>(step * kWidth / steps_);
    const std::string bar = std::string(done, '#') + std::string(kWidth - done, '.');
    std::printf("%s%-16s [%s] %5ld/%ld  loss %.3f  %6.0f tokens/s%s", terminal_ ? "\r" : "",
                name_.c_str(), bar.c_str(), static_cast<long>(step), static_cast<long>(steps_),
                loss, tokens_per_second, terminal_ && !last ? "" : "\n");
    std::fflush(stdout);
  }

 private:
  std::string name_;
  int64_t steps_;
  bool terminal_;
};

/// Linear warm-up over the first tenth, then a cosine down to a tenth of the highest rate.
inline double learning_rate(const Options& o, int64_t step) {
  const double warm = std::max<double>(1.0, static_cast<double>(o.steps) / 10);
  if (static_cast<double>(step) < warm) return o.lr * (static_cast<double>(step) + 1) / warm;
  const double t = (static_cast<double>(step) - warm) / (static_cast<double>(o.steps) - warm);
  return o.lr * (0.1 + 0.45 * (1 + std::cos(M_PI * t)));
}

inline torch::Tensor loss_of(LanguageModel& model, const torch::Tensor& windows) {
  const auto logits = model.forward(windows.slice(1, 0, -1));
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), windows.slice(1, 1).flatten());
}

/// Windows of seq_len + 1 bytes from random places.
inline torch::Tensor random_windows(const torch::Tensor& text, const Options& o) {
  TORCH_CHECK_VALUE(text.size(0) > o.seq_len, "attzoo_demo: sequences of ", o.seq_len,
                    " bytes need a longer text than ", text.size(0), " bytes");
  const auto starts = torch::randint(text.size(0) - o.seq_len, {o.batch, 1});
  return text.index({starts + torch::arange(o.seq_len + 1)});
}

inline double validate(LanguageModel& model, const Text& text, const Options& o,
                       torch::Device device) {
  torch::NoGradGuard no_grad;
  model.eval();
  const auto windows = text.valid.unfold(0, o.seq_len + 1, o.seq_len);
  double sum = 0;
  for (int64_t i = 0; i < windows.size(0); i += o.batch) {
    const auto batch = windows.slice(0, i, i + o.batch).to(device);
    sum += loss_of(model, batch).item<double>() * static_cast<double>(batch.size(0));
  }
  model.train();
  return sum / static_cast<double>(windows.size(0)) / std::log(2.0);
}

/// Peak bytes of one forward and backward of the attention module alone, inputs not counted.
inline int64_t attention_memory(const Mechanism& mechanism, const Options& o,
                                torch::Device device) {
  auto attention = mechanism.attention(o, 0);
  attention->to(device);
  auto x = torch::randn({o.batch, o.seq_len, o.width}, device).requires_grad_();
  attzoo::testing::PeakMemory memory;
  attention(x).output.sum().backward();
  return memory.peak();
}

/// A byte [1, 1] on the CPU after those whose logits [1, L, 256] are given, drawn from
/// softmax(logits / 0.7): the largest logit after Gumbel noise is added to each.
inline torch::Tensor draw(const torch::Tensor& logits) {
  const auto last = logits.select(1, -1).cpu();
  const auto noise = torch::empty_like(last).exponential_().log_();  // Gumbel's, negative
  return (last / 0.7 - noise).argmax(-1, /*keepdim=*/true);
}

/// Calls of f in a second, the first not counted: of so many calls, or of those of half a second.
template <class F>
double rate(int64_t most, F f) {
  f();
  const auto start = std::chrono::steady_clock::now();
  std::chrono::duration<double> spent{};
  int64_t calls = 0;
  do {
    f();
    spent = std::chrono::steady_clock::now() - start;
  } while (++calls < most && spent.count() < 0.5);
  return static_cast<double>(calls) / spent.count();
}

inline Generation measure_generation(const Mechanism& mechanism, LanguageModel& model,
                                     const Text& text, const Options& o, torch::Device device) {
  const c10::InferenceMode inference;
  model.eval();
  const auto context = text.valid.slice(0, 0, o.seq_len).unsqueeze(0).to(device);
  const int64_t count = std::min<int64_t>(64, o.seq_len / 2);
  auto state = model.make_state(1);
  auto next = draw(model.forward(context.slice(1, 0, o.seq_len - count - 1), state));
  auto attention = mechanism.attention(o, 0);
  attention->eval();
  const auto bytes = [&](int64_t capacity) {
    const auto cache = attention.make_cache(1, capacity);
    attention(torch::randn({1, 128, o.width}), {.cache = cache});  // a state is kept from then on
    return cache.bytes();
  };
  return {
      .tokens_per_second = rate(count, [&] { next = draw(model.forward(next.to(device), state)); }),
      .without_cache = rate(4, [&] { draw(model.forward(context)); }),
      .state_bytes = state.cache.bytes(),
      .bytes_1k = bytes(1024),
      .bytes_64k = bytes(65536)};
}

inline Result train(const Mechanism& mechanism, const Text& text, const Options& o,
                    torch::Device device) {
  torch::manual_seed(static_cast<uint64_t>(o.seed));
  Result result;
  result.name = mechanism.name;
  result.attention_bytes = attention_memory(mechanism, o, device);
  result.model = std::make_shared<LanguageModel>(mechanism, o);
  auto& model = *result.model;
  model.to(device);
  result.parameters = model.parameter_count();
  torch::optim::AdamW optimizer(model.parameters(),
                                torch::optim::AdamWOptions(o.lr).weight_decay(0.01));
  const Progress progress(mechanism.name, o.steps);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < o.steps; ++step) {
    for (auto& group : optimizer.param_groups()) group.options().set_lr(learning_rate(o, step));
    auto loss = loss_of(model, random_windows(text.train, o).to(device));
    optimizer.zero_grad();
    loss.backward();
    torch::nn::utils::clip_grad_norm_(model.parameters(), 1.0);
    optimizer.step();
    result.losses.push_back(loss.item<double>());
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    result.tokens_per_second =
        static_cast<double>((step + 1) * o.batch * o.seq_len) / spent.count();
    progress.show(step + 1, result.losses.back(), result.tokens_per_second);
  }
  result.bits_per_byte = validate(model, text, o, device);
  result.generation = measure_generation(mechanism, model, text, o, device);
  return result;
}

/// One step of training at `seq_len` tokens.
struct LongStep {
  double seconds;
  int64_t bytes;  // peak, beyond the model and its optimizer
};
inline LongStep long_step(const Mechanism& mechanism, const Text& text, const Options& o,
                          torch::Device device) {
  LanguageModel model(mechanism, o);
  model.to(device);
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(o.lr));
  const auto windows = random_windows(text.train, o).to(device);
  attzoo::testing::PeakMemory memory;
  const auto start = std::chrono::steady_clock::now();
  auto loss = loss_of(model, windows);
  loss.backward();
  optimizer.step();
  const double value = loss.item<double>();  // waits for the device
  TORCH_CHECK(std::isfinite(value), mechanism.name, ": the loss is ", value);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  return {spent.count(), memory.peak()};
}

/// Continues `start` [n], at most seq_len bytes, by `count` bytes. The model knows seq_len
/// positions: where they are used up, it starts again with the later half of them.
inline std::string sample(LanguageModel& model, const torch::Tensor& start, int64_t count,
                          const Options& o, torch::Device device) {
  const c10::InferenceMode inference;
  torch::manual_seed(static_cast<uint64_t>(o.seed));
  model.eval();
  auto state = model.make_state(1);
  auto tokens = start.unsqueeze(0), next = tokens;
  for (int64_t i = 0; i < count; ++i) {
    if (state.cache.length() == o.seq_len) {
      state = model.make_state(1);
      next = tokens.slice(1, -o.seq_len / 2);
    }
    next = draw(model.forward(next.to(device), state));
    tokens = torch::cat({tokens, next}, 1);
  }
  std::string out;
  for (int64_t i = start.size(0); i < tokens.size(1); ++i) {
    out += static_cast<char>(tokens[0][i].item<int64_t>());
  }
  return out;
}

}  // namespace demo
