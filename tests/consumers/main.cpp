// Runs attention.cpp in one of its two ways, or in both and compares.

#include <cstdio>
#include <vector>

std::vector<float> header_only();
std::vector<float> compiled();

int main() {
  std::vector<std::vector<float>> results;
#ifdef HEADER_ONLY
  results.push_back(header_only());
#endif
#ifdef COMPILED
  results.push_back(compiled());
#endif
  const bool right = !results.front().empty() && results.front() == results.back();
  std::printf("attention is %s\n", right ? "right" : "WRONG");
  return right ? 0 : 1;
}
