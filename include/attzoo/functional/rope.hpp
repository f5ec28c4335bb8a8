#pragma once
/// \file
/// Rotary position embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021, arXiv:2104.09864), and the ways in which models stretch it to longer contexts.

#include <attzoo/core/layers/rotate.hpp>

#include <torch/types.h>

#include <concepts>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>

namespace attzoo {

/// Which features of a row turn together; P is half the number of those that turn.
enum class RopePairs {
  kInterleaved,  ///< (2i, 2i + 1), as in the paper
  kHalves,       ///< (i, i + P), as Hugging Face stores Llama, Qwen, Gemma and most others
};

/// Position interpolation: all frequencies divided by `factor` (Chen et al., 2023,
/// arXiv:2306.15595).
struct LinearRopeScaling {
  double factor = 1.0;  ///< new over old context length; within 1 ... 1e9
  bool operator==(const LinearRopeScaling&) const = default;
};

/// NTK-aware scaling: the base becomes base * factor^(D / (D - 2)), so that the slowest pair is
/// divided by `factor` and the fastest is not changed (bloc97, "NTK-Aware Scaled RoPE allows LLaMA
/// models to have extended (8k+) context size", 2023; section 3.1 of arXiv:2309.00071).
struct NtkRopeScaling {
  double factor = 1.0;  ///< new over old context length; within 1 ... 1e9
  bool operator==(const NtkRopeScaling&) const = default;
};

/// YaRN: pairs that turn more than beta_fast times within the old context keep their frequency,
/// those that turn less than beta_slow times are divided by `factor`, and the pairs between go over
/// linearly by their index, as in the authors' code and in Hugging Face's; cos and sin are
/// multiplied by attention_factor (Peng et al., 2023, arXiv:2309.00071).
struct YarnRopeScaling {
  double factor = 1.0;                ///< new over old context length; within 1 ... 1e9
  int64_t original_max_position = 0;  ///< old context length; > 0
  double beta_fast = 32.0;            ///< > beta_slow
  double beta_slow = 1.0;             ///< > 0
  /// Within 1e-9 ... 1e9; default 0.1 ln(factor) + 1.
  std::optional<double> attention_factor = std::nullopt;
  bool truncate = true;  ///< borders between the pairs are whole numbers; GPT-OSS: false
  bool operator==(const YarnRopeScaling&) const = default;
};

/// Llama 3.1: pairs with a wavelength of more than original_max_position / low_freq_factor tokens
/// are divided by `factor`, those below original_max_position / high_freq_factor are kept, and
/// between them the two are mixed linearly in the number of turns (Dubey et al., 2024,
/// arXiv:2407.21783; apply_scaling in github.com/meta-llama/llama-models).
struct Llama3RopeScaling {
  double factor = 8.0;                   ///< within 1 ... 1e9
  double low_freq_factor = 1.0;          ///< > 0
  double high_freq_factor = 4.0;         ///< > low_freq_factor
  int64_t original_max_position = 8192;  ///< old context length; > 0
  bool operator==(const Llama3RopeScaling&) const = default;
};

/// None, or one of the methods: `.scaling = LinearRopeScaling{.factor = 4}`.
using RopeScaling = std::variant<std::monostate, LinearRopeScaling, NtkRopeScaling, YarnRopeScaling,
                                 Llama3RopeScaling>;

/// Options of `apply_rope`, and of modules by their option `rope`.
struct RopeOptions {
  /// The slowest pair turns base^-(1 - 2/D) radians a token; within 1e-100 ... 1e100, > 1 for YaRN.
  double base = 10000.0;
  int64_t position_offset = 0;  ///< position of the first row; within +-2^52
  /// Positions of the rows before the offset is added, integers that broadcast to x's [..., L];
  /// default 0, 1, 2, ...
  torch::Tensor positions = {};
  RopePairs pairs = RopePairs::kInterleaved;
  /// How many features turn, the first ones, even and > 0; the others pass. It is the D of all
  /// formulas. Default all.
  std::optional<int64_t> dimensions = std::nullopt;
  RopeScaling scaling = {};
};

/// How the pairs of a RopeOptions turn.
struct RopeFrequencies {
  torch::Tensor radians;          ///< float64 [dimensions / 2] on the CPU: a token's turn
  double attention_factor = 1.0;  ///< multiplies cos and sin
};

/// The frequencies for rows of `head_dim` features: base^(-2i/D), changed by the scaling. Throws
/// c10::ValueError for options out of range, and a head_dim that has not as many features.
ATTZOO_API RopeFrequencies rope_frequencies(const RopeOptions& options, int64_t head_dim);

/// What YaRN multiplies queries and keys with: 0.1 mscale ln(factor) + 1, and 1 for a factor <= 1.
/// DeepSeek's config.json has two for a model: attention_factor is yarn_magnitude(factor, mscale) /
/// yarn_magnitude(factor, mscale_all_dim), and the scores are multiplied by the latter's square, so
/// a module's `temperature` is 1 / that.
ATTZOO_API double yarn_magnitude(double factor, double mscale = 1.0);

/// Turns pair i of row p by the angle (p + position_offset) * rope_frequencies().radians[i].
///
/// x [..., L, D], D even -> [..., L, D]. Angles are computed in float64 and applied in at least
/// float32, whatever x's dtype, so far positions stay exact in half types too.
/// Throws c10::Error for an odd D without `dimensions`, a rank below 2, options out of range, and
/// positions that do not broadcast.
ATTZOO_API torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options = {});

/// `{base=10000, pairs=interleaved}`, and dimensions and scaling where they are given.
ATTZOO_API std::ostream& operator<<(std::ostream& stream, const RopeOptions& options);

/// Whether a module turns its queries and keys by their positions, and how: `.rope = true` for the
/// defaults of RopeOptions, or `.rope = RopeOptions{.base = 5e5, .pairs = RopePairs::kHalves}`,
/// whose position_offset and positions stay as they are: positions come with each call.
class Rope {
 public:
  /// No rotation.
  Rope() = default;
  /// On with the defaults, or off. A bool alone, and nothing that converts to one.
  template <std::same_as<bool> Bool>
  Rope(Bool on) {  // NOLINT: true and false are options
    if (on) options_.emplace();
  }
  /// On.
  Rope(RopeOptions options) : options_(std::move(options)) {}  // NOLINT: so are these

  /// Whether it is on.
  explicit operator bool() const { return options_.has_value(); }
  /// How; null if it is off.
  const RopeOptions* options() const { return options_ ? &*options_ : nullptr; }

  /// Whether both turn by the same angles.
  ATTZOO_API friend bool operator==(const Rope& a, const Rope& b);

 private:
  std::optional<RopeOptions> options_;
};

/// `true` for the defaults, `false`, or the options.
ATTZOO_API std::ostream& operator<<(std::ostream& stream, const Rope& rope);

namespace core {

/// rope_frequencies(), with errors that begin with `who`.
ATTZOO_API RopeFrequencies rope_frequencies(const RopeOptions& options, int64_t head_dim,
                                            std::string_view who);

/// Throws c10::ValueError unless the offset is within +-2^52.
ATTZOO_API void check_position_offset(int64_t offset, std::string_view who);

/// The rotation of L rows at offset, offset + 1, ..., or at positions [..., L] + offset, for
/// tensors like `like`.
ATTZOO_API Rotation rotation(const RopeFrequencies& frequencies, RopePairs pairs, int64_t L,
                             int64_t offset, const torch::Tensor& positions,
                             const torch::Tensor& like);

/// What a module with RoPE knows of it from the beginning.
struct RopePlan {
  RopeFrequencies frequencies;
  RopePairs pairs;
};

/// Throws c10::ValueError for options out of range and for positions among them, naming `who`.
ATTZOO_API std::optional<RopePlan> plan_rope(const Rope& rope, int64_t head_dim,
                                             std::string_view who);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL
#include <attzoo/functional/rope.ipp>
#endif
