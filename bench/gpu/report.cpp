#include "gpu/report.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <utility>

namespace bench {
namespace {

std::string quoted(const std::string& text) {
  std::string all = "\"";
  for (const char c : text) {
    char code[8];
    if (c == '"' || c == '\\') {
      all += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(code, sizeof code, "\\u%04x", c);
      all += code;
    } else {
      all += c;
    }
  }
  return all + "\"";
}

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

/// Keeps what LibTorch and attzoo warn of.
struct Warnings final : c10::WarningHandler {
  void process(const c10::Warning& warning) override {
    if (text.size() < 2000) text += (text.empty() ? "" : "\n") + warning.msg();
  }
  std::string text;
};

}  // namespace

void Entry::number(const std::string& name, double value) {
  shown_ += "  " + name + " " + shown(value);
  char text[32] = "null";  // JSON has no infinity
  if (std::isfinite(value)) std::snprintf(text, sizeof text, "%.9g", value);
  fields_ += ", " + quoted(name) + ": " + text;
}
void Entry::text(const std::string& name, const std::string& value) {
  if (value.find('\n') == std::string::npos) shown_ += "  " + name + " " + value;
  fields_ += ", " + quoted(name) + ": " + quoted(value);
}
void Entry::end(const char* status, const std::string& why) {
  status_ = status;
  why_ += (why_.empty() ? "" : "; ") + why;
}
std::string Entry::json(const std::string& part, int64_t index) const {
  return "{\"part\": " + quoted(part) + ", \"case\": " + std::to_string(index) +
         ", \"name\": " + quoted(name_) + ", \"status\": " + quoted(status_) +
         (why_.empty() ? "" : ", \"why\": " + quoted(why_)) + fields_ + "}";
}
std::string Entry::line() const {
  return status_ + "  " + name_ + shown_ + (why_.empty() ? "" : "\n    " + why_);
}

void Report::run(const std::string& name, const std::function<void(Entry&)>& f) {
  const int64_t index = next_++;
  if (index < order_.first || index % order_.workers != order_.worker) return;
  Entry entry(name);
  if (seconds() > order_.seconds) {
    entry.skip("out of time");
  } else {
    write("{\"part\": \"" + order_.part + "\", \"case\": " + std::to_string(index) +
          ", \"name\": " + quoted(name) + ", \"status\": \"begun\"}");
    Warnings warnings;
    const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
    attzoo::set_cuda_jit(order_.on_cuda());  // a failed launch turns it off
    try {
      f(entry);
    } catch (const c10::OutOfMemoryError&) {
      entry.skip("out of memory");
    } catch (const c10::Error& e) {
      entry.fail(e.what_without_backtrace());
    } catch (const std::exception& e) {
      entry.fail(e.what());
    }
    if (!warnings.text.empty()) entry.text("warnings", warnings.text + "\n");
  }
  write(entry.json(order_.part, index));
  std::printf("%s: %s\n", order_.part.c_str(), entry.line().c_str());
  std::fflush(stdout);
  if (entry.failed() && !device_answers()) std::_Exit(3);
}

void Report::write(const std::string& line) const {
  if (!order_.records.empty()) std::ofstream(order_.records, std::ios::app) << line << std::endl;
}

bool Report::device_answers() const {
  try {
    return torch::ones({2}, order_.device).sum().item<double>() == 2;
  } catch (const std::exception&) {
    return false;
  }
}

std::string way_of(const std::string& explained) {
  const auto end = explained.rfind(": taken");
  const auto begin = explained.rfind('\n', end) + 1;
  return explained.substr(begin, end - begin);
}

}  // namespace bench
