#pragma once
// What the program finds out, case by case: a line for people, and one of JSON in a file that is
// whole whenever the program ends.

#include <c10/util/Exception.h>
#include <torch/types.h>
#include <attzoo/functional/cuda_jit.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace bench {

/// Which of the cases to run, where, and what to write.
struct Order {
  std::string part = "attention";
  torch::Device device = torch::kCUDA;
  bool quick = false;               // the smallest sizes
  std::string records;              // the file that lines are appended to; empty: none
  double seconds = 1e9;             // then cases are skipped
  int64_t first = 0;                // the cases before it have run
  int64_t worker = 0, workers = 1;  // of whom each runs its own cases, in turn

  bool on_cuda() const { return device.is_cuda(); }
};

/// What is found out about one case.
class Entry {
 public:
  explicit Entry(std::string name) : name_(std::move(name)) {}

  void number(const std::string& name, double value);
  void text(const std::string& name, const std::string& value);
  /// Further ones are added to what was said before.
  void fail(const std::string& why) { end("failed", why); }
  void skip(const std::string& why) {
    if (status_ == "passed") end("skipped", why);
  }
  bool failed() const { return status_ == "failed"; }
  std::string json(const std::string& part, int64_t index) const;
  std::string line() const;

 private:
  void end(const char* status, const std::string& why);
  std::string name_, status_ = "passed", why_, shown_, fields_;
};

class Report {
 public:
  explicit Report(Order order)
      : order_(std::move(order)), start_(std::chrono::steady_clock::now()) {}
  const Order& order() const { return order_; }

  /// Runs a case, unless it is another worker's, was run before, or time is over. What it throws,
  /// it failed by; the program ends with status 3 if the device answers no more then. Warnings are
  /// part of the entry.
  void run(const std::string& name, const std::function<void(Entry&)>& f);

 private:
  void write(const std::string& line) const;
  bool device_answers() const;
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  Order order_;
  std::chrono::steady_clock::time_point start_;
  int64_t next_ = 0;
};

/// One of the program's parts, each in a file of its own.
void check_facts(Report& report);
void check_attention(Report& report);
void check_mechanisms(Report& report);
void compile_speed(Report& report);  // the kernels that measure_speed() needs
void check_repeats(Report& report);
void check_memory(Report& report);
void measure_speed(Report& report);

/// How attention() runs its problem, by the last line of explain().
std::string way_of(const std::string& explained);

}  // namespace bench
