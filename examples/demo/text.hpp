#pragma once
// The text that the demo learns, and how well counting alone predicts it.

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace demo {

/// Bytes as int64 tensors: most for training, every tenth piece for validation.
struct Text {
  torch::Tensor train, valid;
};

inline std::vector<std::string> project_files(const std::filesystem::path& root) {
  std::vector<std::string> files;
  for (const char* folder :
       {"include", "src", "support", "tests", "examples", "bench", "docs", "cmake"}) {
    if (!std::filesystem::is_directory(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const auto type = entry.path().extension();
      if (type == ".hpp" || type == ".cpp" || type == ".inc" || type == ".ipp" || type == ".md" ||
          type == ".cmake") {
        files.push_back(entry.path().string());
      }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

inline Text load_text(const std::vector<std::string>& files) {
  std::string all;
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    TORCH_CHECK_VALUE(in.is_open(), "attzoo_demo: cannot open ", file);
    all.append(std::istreambuf_iterator<char>(in), {});
  }
  constexpr size_t kPiece = 4096;
  TORCH_CHECK_VALUE(all.size() >= 20 * kPiece, "attzoo_demo: needs at least ", 20 * kPiece,
                    " bytes of text, got ", all.size());
  std::string train, valid;
  for (size_t i = 0; i < all.size(); i += kPiece) {
    (i / kPiece % 10 == 9 ? valid : train).append(all, i, kPiece);
  }
  const auto bytes = [](std::string& s) {
    return torch::from_blob(s.data(), {static_cast<int64_t>(s.size())}, torch::kUInt8)
        .to(torch::kInt64);
  };
  return {bytes(train), bytes(valid)};
}

/// Bits per byte of the validation text under byte counts of the training text (order 0), or under
/// the counts of what follows each byte (order 1), each mixed with the order below.
inline std::array<double, 2> count_baselines(const Text& text) {
  const auto pair_counts =
      torch::bincount(text.train.slice(0, 0, -1) * 256 + text.train.slice(0, 1), {}, 256 * 256)
          .to(torch::kFloat64)
          .view({256, 256});
  const auto counts = torch::bincount(text.train, {}, 256).to(torch::kFloat64);
  const auto unigram = (counts + 1) / (counts.sum() + 256);
  const auto bigram = (pair_counts + unigram.unsqueeze(0)) / (pair_counts.sum(1, true) + 1);
  const auto before = text.valid.slice(0, 0, -1), after = text.valid.slice(0, 1);
  const auto bits = [](const torch::Tensor& p) { return -torch::log2(p).mean().item<double>(); };
  return {bits(unigram.index_select(0, after)), bits(bigram.index({before, after}))};
}

}  // namespace demo
