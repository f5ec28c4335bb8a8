#pragma once
// Attention weights as a picture.

#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

namespace example {

/// A heat map of attention weights [queries, keys] as SVG, a square of `cell` pixels each: rows are
/// queries, columns keys, and each row is shaded relative to its own largest weight, orange where
/// weights are below 0. Throws c10::Error where the file cannot be written.
inline void write_heat_map(const std::filesystem::path& file, const std::string& title,
                           const torch::Tensor& weights, int64_t cell = 6) {
  constexpr int64_t kTop = 24;
  const int64_t rows = weights.size(0), columns = weights.size(1);
  const auto shade =
      (weights / weights.abs().amax(1, true).clamp_min(1e-20)).to(torch::kFloat32).cpu();
  const auto at = shade.accessor<float, 2>();
  std::ofstream out(file);
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << columns * cell << "\" height=\""
      << rows * cell + kTop << "\" shape-rendering=\"crispEdges\">\n"
      << "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
      << "<text x=\"4\" y=\"16\" font-family=\"sans-serif\" font-size=\"13\">" << title
      << "</text>\n<rect y=\"" << kTop << "\" width=\"" << columns * cell << "\" height=\""
      << rows * cell << "\" fill=\"#f2f2f2\"/>\n";
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      if (at[i][j] == 0) continue;
      const int light = 230 - static_cast<int>(200 * std::sqrt(std::abs(at[i][j])));
      const bool below = at[i][j] < 0;
      out << "<rect x=\"" << j * cell << "\" y=\"" << kTop + i * cell << "\" width=\"" << cell
          << "\" height=\"" << cell << "\" fill=\"rgb(" << (below ? 235 : light) << "," << light
          << "," << (below ? light : 235) << ")\"/>\n";
    }
  }
  out << "</svg>\n";
  TORCH_CHECK(out.flush(), "cannot write ", file.string());
}

}  // namespace example
