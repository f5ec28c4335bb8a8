#pragma once
/// \file
/// Inputs that must be refused. They run in forked children, so that a crash, a hang or an
/// allocation without end is the failure of one input, and the next goes on in another child.

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace attzoo::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

/// A call that must throw a c10::Error whose text names the class or function, the argument and
/// the value; a part may give alternatives: "Gated|MultiHead".
struct BadInput {
  std::string name;
  std::function<void()> call;
  std::vector<std::string> parts;
};
using BadInputs = std::vector<BadInput>;

inline bool has_any_of(const std::string& text, const std::string& alternatives) {
  for (size_t begin = 0; begin <= alternatives.size();) {
    const size_t end = std::min(alternatives.find('|', begin), alternatives.size());
    if (text.find(alternatives.substr(begin, end - begin)) != std::string::npos) return true;
    begin = end + 1;
  }
  return false;
}

/// What is wrong with the way in which the call fails; empty if nothing is.
inline std::string judge(const BadInput& input) {
  std::string text;
  try {
    input.call();
    return "gave a result";
  } catch (const c10::Error& e) {
    text = e.what_without_backtrace();
  } catch (const std::exception& e) {
    return std::string("threw another exception: ") + e.what();
  } catch (...) {
    return "threw something that is no exception";
  }
  for (const auto& part : input.parts) {
    if (!has_any_of(text, part)) return "lacks '" + part + "' in: " + text.substr(0, 300);
  }
  return {};
}

/// Judges some inputs, from `begin` on, in a child with 8 GiB more memory than now and 20 s for
/// each, both more than any refusal needs. A crash ends the child, and is the last verdict.
inline std::vector<std::string> judge_in_child(const BadInputs& inputs, size_t begin) {
  constexpr size_t kMost = 25;  // a fork costs more than a refusal
  int ends[2];
  if (::pipe(ends) != 0) return {"no pipe"};
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return {"no process"};
  if (child == 0) {
    ::close(ends[0]);
    at::set_num_threads(1);  // threads do not survive a fork
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    if (pages > 0 && !kSanitized) {
      const rlimit memory{pages * 4096 + (uint64_t{8} << 30), RLIM_INFINITY};
      ::setrlimit(RLIMIT_AS, &memory);
    }
    for (size_t i = begin; i < std::min(begin + kMost, inputs.size()); ++i) {
      ::alarm(20);
      const std::string verdict = judge(inputs[i]) + '\0';
      at::autocast::set_autocast_enabled(at::kCPU, false);
      if (::write(ends[1], verdict.data(), verdict.size()) < 0) ::_exit(1);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  std::vector<std::string> verdicts;
  std::string verdict;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    for (const char c : std::string_view(buffer, static_cast<size_t>(n))) {
      if (c != '\0') {
        verdict += c;
      } else {
        verdicts.push_back(std::move(verdict));
        verdict.clear();
      }
    }
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    verdicts.push_back(signal == SIGALRM ? "hangs" : "died of signal " + std::to_string(signal));
  } else if (WEXITSTATUS(status) != 0) {
    verdicts.push_back("ended with status " + std::to_string(WEXITSTATUS(status)));
  }
  return verdicts;
}

/// Every one of at least so many inputs must be refused.
inline void expect_all_refused(const BadInputs& inputs, size_t at_least) {
  EXPECT_GE(inputs.size(), at_least);
  size_t judged = 0, failed = 0;
  while (judged < inputs.size()) {
    for (const auto& verdict : judge_in_child(inputs, judged)) {
      const auto& input = inputs[judged++];
      if (verdict.empty()) continue;
      ++failed;
      ADD_FAILURE() << input.name << ": " << verdict;
    }
  }
  std::printf("%zu bad inputs, %zu not refused as they should be\n", inputs.size(), failed);
}

// ---- values -------------------------------------------------------------------------------------

/// A tensor for an argument, and what the error must say of it.
struct BadTensor {
  std::string name;
  torch::Tensor tensor;
  std::string part;
};
using BadTensors = std::vector<BadTensor>;

inline BadTensor of_sizes(std::string name, const torch::Tensor& t) {
  // Without the bracket: sizes of 1 may be shown that were put before these.
  return {name + c10::str(" ", t.sizes()), t, c10::str(t.sizes()).substr(1)};
}

/// `good` in every form whose numbers cannot be read as they are.
inline BadTensors unreadable(const torch::Tensor& good) {
  BadTensors all{{"sparse", good.to_sparse(), "Sparse"},
                 {"meta", good.to(torch::kMeta), "meta"},
                 {"nested", at::_nested_tensor_from_tensor_list({good, good}), "nested|Nested"}};
  if (good.dim() >= 2) {
    all.push_back({"CSR", good.to_sparse_csr(), "SparseCsr"});
    all.push_back({"CSC", good.to_sparse_csc(), "SparseCsc"});
  }
  if (good.scalar_type() == torch::kFloat32) {
    all.push_back({"oneDNN", good.to_mkldnn(), "Mkldnn"});
  }
  return all;
}

/// `good` in dtypes that no argument with numbers takes.
inline BadTensors of_strange_dtypes(const torch::Tensor& good) {
  const auto as = [&](torch::ScalarType type) {
    return BadTensor{c10::str(type), good.to(type), c10::str(type)};
  };
  return {as(torch::kComplexFloat),
          as(torch::kComplexDouble),
          as(torch::kFloat8_e4m3fn),
          as(torch::kFloat8_e5m2),
          {"quantised", torch::quantize_per_tensor(good.to(torch::kFloat32), 0.1, 0, torch::kQInt8),
           "QInt8"}};
}
inline BadTensors of_integer_dtypes(const torch::Tensor& good) {
  BadTensors all;
  for (const auto type :
       {torch::kInt64, torch::kInt32, torch::kInt16, torch::kUInt8, torch::kInt8}) {
    all.push_back({c10::str(type), good.to(type), c10::str(type)});
  }
  return all;
}
inline BadTensors of_float_dtypes(const torch::Tensor& good) {
  BadTensors all;
  for (const auto type : {torch::kFloat64, torch::kHalf, torch::kBFloat16, torch::kFloat32}) {
    if (type != good.scalar_type()) all.push_back({c10::str(type), good.to(type), c10::str(type)});
  }
  return all;
}

/// Everything that is wrong for a floating argument, sizes apart.
inline BadTensors not_floating(const torch::Tensor& good) {
  BadTensors all = unreadable(good);
  const auto add = [&](const BadTensors& more) { all.insert(all.end(), more.begin(), more.end()); };
  add({{"undefined", torch::Tensor(), "undefined"}, {"Bool", good.to(torch::kBool), "Bool"}});
  add(of_strange_dtypes(good));
  add(of_integer_dtypes(good));
  return all;
}

/// Another rank than good's, and other sizes in each dimension of `dims`.
inline BadTensors of_wrong_sizes(const torch::Tensor& good, const std::vector<int64_t>& dims,
                                 bool ranks = true) {
  BadTensors all;
  if (ranks) {
    all.push_back(of_sizes("rank", good.unsqueeze(0)));
    if (good.dim() > 0) all.push_back(of_sizes("rank", good.select(0, 0)));
    if (good.dim() > 1) all.push_back(of_sizes("rank", good.new_ones({})));
  }
  for (const int64_t d : dims) {
    for (const int64_t size : {good.size(d) + 1, 2 * good.size(d), int64_t{0}}) {
      auto sizes = good.sizes().vec();
      sizes[static_cast<size_t>(d)] = size;
      all.push_back(of_sizes("size", torch::ones(sizes, good.options())));
    }
  }
  return all;
}

// Numbers for options.
inline const std::vector<int64_t> kNotPositive{0, -1, -7, INT64_MIN};
inline const std::vector<int64_t> kTooLarge{INT64_MAX, int64_t{1} << 62, int64_t{1} << 40};
inline const double kNaN = std::numeric_limits<double>::quiet_NaN();
inline const double kInf = std::numeric_limits<double>::infinity();
inline const std::vector<double> kNotFinite{kNaN, kInf, -kInf};

}  // namespace attzoo::testing
