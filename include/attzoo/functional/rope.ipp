#pragma once
// Definitions of rope.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/rope.hpp>

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace attzoo::core {

/// The methods of RopeScaling: each checks its own fields, and changes the frequencies of D
/// features, which are base^(-2i/D).
struct RopeScaler {
  std::string_view who;
  double base;
  int64_t D;
  std::vector<double>& frequencies;
  double attention_factor = 1.0;

  void check_factor(double factor) const {
    TORCH_CHECK_VALUE(factor >= 1 && factor <= 1e9, who,
                      ": the factor of a scaling must be within 1 ... 1e9, got ", factor);
  }
  void check_length(int64_t length) const {
    TORCH_CHECK_VALUE(length > 0, who, ": original_max_position must be > 0, got ", length);
  }

  void operator()(std::monostate) {}

  void operator()(const LinearRopeScaling& s) {
    check_factor(s.factor);
    for (auto& f : frequencies) f /= s.factor;
  }

  void operator()(const NtkRopeScaling& s) {
    check_factor(s.factor);
    const auto n = static_cast<double>(frequencies.size());
    for (size_t i = 1; i < frequencies.size(); ++i) {  // the first one is 1 for every base
      frequencies[i] *= std::pow(s.factor, -static_cast<double>(i) / (n - 1));
    }
  }

  void operator()(const YarnRopeScaling& s) {
    check_factor(s.factor);
    check_length(s.original_max_position);
    TORCH_CHECK_VALUE(base > 1, who, ": YaRN needs a base > 1, got ", base);
    TORCH_CHECK_VALUE(s.beta_slow > 0 && s.beta_fast > s.beta_slow && std::isfinite(s.beta_fast),
                      who, ": YaRN needs 0 < beta_slow < beta_fast, got ", s.beta_slow, " and ",
                      s.beta_fast);
    const double given = s.attention_factor.value_or(1.0);
    TORCH_CHECK_VALUE(given >= 1e-9 && given <= 1e9, who,
                      ": attention_factor must be > 0, within 1e-9 ... 1e9, got ", given);
    attention_factor = s.attention_factor.value_or(yarn_magnitude(s.factor));
    const auto features = static_cast<double>(D);
    // The pair that turns `turns` times within the old context.
    const auto pair = [&](double turns) {
      const double wavelengths =
          static_cast<double>(s.original_max_position) / (turns * 2 * std::numbers::pi);
      return features * std::log(wavelengths) / (2 * std::log(base));
    };
    double first = pair(s.beta_fast), last = pair(s.beta_slow);
    if (s.truncate) first = std::floor(first), last = std::ceil(last);
    first = std::max(first, 0.0);
    last = std::min(last, features - 1);
    if (first == last) last += 0.001;
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double slow = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
      frequencies[i] *= slow / s.factor + (1 - slow);
    }
  }

  void operator()(const Llama3RopeScaling& s) {
    check_factor(s.factor);
    check_length(s.original_max_position);
    TORCH_CHECK_VALUE(s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor &&
                          std::isfinite(s.high_freq_factor),
                      who, ": Llama 3 needs 0 < low_freq_factor < high_freq_factor, got ",
                      s.low_freq_factor, " and ", s.high_freq_factor);
    for (auto& f : frequencies) {
      const double turns =
          static_cast<double>(s.original_max_position) * f / (2 * std::numbers::pi);
      const double kept = std::clamp(
          (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
      f *= kept + (1 - kept) / s.factor;
    }
  }
};

ATTZOO_API RopeFrequencies rope_frequencies(const RopeOptions& options, int64_t head_dim,
                                            std::string_view who) {
  TORCH_CHECK_VALUE(options.base >= 1e-100 && options.base <= 1e100, who,
                    ": base must be > 0, within 1e-100 ... 1e100, got ", options.base);
  const int64_t D = options.dimensions.value_or(head_dim);
  TORCH_CHECK_VALUE(!options.dimensions || (D > 0 && D <= head_dim && D % 2 == 0), who,
                    ": dimensions must be even, > 0 and at most head_dim=", head_dim, ", got ", D);
  TORCH_CHECK_VALUE(D >= 0 && D % 2 == 0 && D <= int64_t{1} << 30, who,
                    ": head_dim must be even, >= 0 and at most 2^30, got ", D);
  TORCH_CHECK_VALUE(options.pairs == RopePairs::kInterleaved || options.pairs == RopePairs::kHalves,
                    who, ": unknown pairs ", static_cast<int>(options.pairs));
  std::vector<double> frequencies(static_cast<size_t>(D / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(options.base, -2.0 * static_cast<double>(i) / static_cast<double>(D));
  }
  RopeScaler scale{who, options.base, D, frequencies};
  std::visit(scale, options.scaling);
  return {torch::tensor(frequencies, torch::kFloat64), scale.attention_factor};
}

ATTZOO_API void check_position_offset(int64_t offset, std::string_view who) {
  constexpr int64_t kMost = int64_t{1} << 52;  // float64 holds all integers up to here, and L more
  TORCH_CHECK_VALUE(offset >= -kMost && offset <= kMost, who,
                    ": position_offset must be within +-2^52, got ", offset);
}

inline void check_rope(const torch::Tensor& x, const RopeOptions& options) {
  check_floating(x, "apply_rope", "x");
  TORCH_CHECK_VALUE(x.dim() >= 2 && (options.dimensions || x.size(-1) % 2 == 0),
                    "apply_rope: x must have shape [..., L, D] with an even D, got ", x.sizes());
  check_position_offset(options.position_offset, "apply_rope");
  const auto& positions = options.positions;
  if (!positions.defined()) return;
  check_dense(positions, "apply_rope", "positions");
  TORCH_CHECK_TYPE(torch::isIntegralType(positions.scalar_type(), /*includeBool=*/false),
                   "apply_rope: positions must be integers, got ", positions.scalar_type());
  TORCH_CHECK_VALUE(positions.device() == x.device(),
                    "apply_rope: positions must be on x's device ", x.device(), ", got ",
                    positions.device());
  const auto lengths = x.sizes().slice(0, x.sizes().size() - 1);
  TORCH_CHECK_VALUE(at::is_expandable_to(positions.sizes(), lengths),
                    "apply_rope: positions must broadcast to ", lengths, ", got ",
                    positions.sizes());
}

/// What a rotation of rows at offset, offset + 1, ... is made of.
struct Angles {
  std::vector<double> radians;
  double attention_factor = 1;
  bool halves = false;
  int64_t L = 0, offset = 0;
  torch::ScalarType dtype = torch::kFloat64;

  bool operator==(const Angles&) const = default;
};

/// rotation() of few rows on the CPU: there the calls of ATen's operators take longer than they do.
inline Rotation few_rotations(const Angles& of) {
  const auto P = static_cast<int64_t>(of.radians.size());
  const Rotation by{at::detail::empty_cpu({of.L, P}, of.dtype),
                    at::detail::empty_cpu({of.L, P}, of.dtype), of.halves};
  AT_DISPATCH_FLOATING_TYPES(of.dtype, "rotation", [&] {
    auto *cos = by.cos.mutable_data_ptr<scalar_t>(), *sin = by.sin.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < of.L * P; ++i) {
      const double angle =
          static_cast<double>(of.offset + i / P) * of.radians[static_cast<size_t>(i % P)];
      cos[i] = static_cast<scalar_t>(std::cos(angle) * of.attention_factor);
      sin[i] = static_cast<scalar_t>(std::sin(angle) * of.attention_factor);
    }
  });
  return by;
}

/// The same; a thread keeps its last one, for the next layer turns by the same angles.
inline Rotation kept_rotations(Angles of) {
  constexpr size_t kMost = 1024;  // pairs that are kept
  if (of.radians.size() > kMost) return few_rotations(of);
  static thread_local std::pair<Angles, Rotation> last;
  if (!last.second.cos.defined() || of != last.first) {
    last.second = few_rotations(of);
    last.first = std::move(of);
  }
  return last.second;
}

ATTZOO_API Rotation rotation(const RopeFrequencies& frequencies, RopePairs pairs, int64_t L,
                             int64_t offset, const torch::Tensor& positions,
                             const torch::Tensor& like) {
  const bool halves = pairs == RopePairs::kHalves;
  if (like.device().is_cpu() && !positions.defined() && L <= 4) {
    const auto& radians = frequencies.radians;
    const auto* first = radians.const_data_ptr<double>();
    return kept_rotations({{first, first + radians.numel()},
                           frequencies.attention_factor,
                           halves,
                           L,
                           offset,
                           compute_dtype(like)});
  }
  const auto first = static_cast<double>(offset);
  const auto f64 = torch::dtype(torch::kFloat64).device(like.device());
  const auto position = positions.defined()
                            ? positions.detach().to(torch::kFloat64) + first
                            : torch::arange(first, first + static_cast<double>(L), f64);
  const auto angle = position.unsqueeze(-1) * frequencies.radians.to(like.device());
  const auto made = [&](torch::Tensor t) {
    if (frequencies.attention_factor != 1) t.mul_(frequencies.attention_factor);
    return t.to(compute_dtype(like)).contiguous();
  };
  return {made(angle.cos()), made(angle.sin()), halves};
}

ATTZOO_API std::optional<RopePlan> plan_rope(const Rope& rope, int64_t head_dim,
                                             std::string_view who) {
  const auto* o = rope.options();
  if (!o) return std::nullopt;
  const auto argument = std::string(who) + ": rope";
  TORCH_CHECK_VALUE(o->position_offset == 0 && !o->positions.defined(), argument,
                    ": a module's RopeOptions have no position_offset and no positions, which come "
                    "with each call");
  TORCH_CHECK_VALUE(o->dimensions || head_dim % 2 == 0, argument,
                    " needs an even head size d_model / num_heads, got ", head_dim);
  return RopePlan{rope_frequencies(*o, head_dim, argument), o->pairs};
}

/// ", scaling=" and a method with its fields.
struct RopeScalingPrinter {
  std::ostream& stream;
  void operator()(std::monostate) const {}
  void operator()(const LinearRopeScaling& s) const {
    stream << ", scaling=linear(factor=" << s.factor << ")";
  }
  void operator()(const NtkRopeScaling& s) const {
    stream << ", scaling=ntk(factor=" << s.factor << ")";
  }
  void operator()(const YarnRopeScaling& s) const {
    stream << ", scaling=yarn(factor=" << s.factor
           << ", original_max_position=" << s.original_max_position << ", beta_fast=" << s.beta_fast
           << ", beta_slow=" << s.beta_slow;
    if (s.attention_factor) stream << ", attention_factor=" << *s.attention_factor;
    stream << ", truncate=" << (s.truncate ? "true" : "false") << ")";
  }
  void operator()(const Llama3RopeScaling& s) const {
    stream << ", scaling=llama3(factor=" << s.factor << ", low_freq_factor=" << s.low_freq_factor
           << ", high_freq_factor=" << s.high_freq_factor
           << ", original_max_position=" << s.original_max_position << ")";
  }
};

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1;
}

ATTZOO_API RopeFrequencies rope_frequencies(const RopeOptions& options, int64_t head_dim) {
  return core::rope_frequencies(options, head_dim, "rope_frequencies");
}

ATTZOO_API torch::Tensor apply_rope(const torch::Tensor& x, const RopeOptions& options) {
  core::check_rope(x, options);
  const auto frequencies = core::rope_frequencies(options, x.size(-1), "apply_rope");
  return core::rotate(x, core::rotation(frequencies, options.pairs, x.size(-2),
                                        options.position_offset, options.positions, x));
}

ATTZOO_API std::ostream& operator<<(std::ostream& stream, const RopeOptions& options) {
  stream << "{base=" << options.base
         << ", pairs=" << (options.pairs == RopePairs::kHalves ? "halves" : "interleaved");
  if (options.dimensions) stream << ", dimensions=" << *options.dimensions;
  if (options.position_offset != 0) stream << ", position_offset=" << options.position_offset;
  if (options.positions.defined()) stream << ", positions=" << options.positions.sizes();
  std::visit(core::RopeScalingPrinter{stream}, options.scaling);
  return stream << "}";
}

ATTZOO_API std::ostream& operator<<(std::ostream& stream, const Rope& rope) {
  const auto* o = rope.options();
  if (!o) return stream << "false";
  const RopeOptions plain;
  const bool is_plain = o->base == plain.base && o->pairs == plain.pairs && !o->dimensions &&
                        o->scaling.index() == plain.scaling.index();
  return is_plain ? stream << "true" : stream << *o;
}

ATTZOO_API bool operator==(const Rope& a, const Rope& b) {
  const auto *x = a.options(), *y = b.options();
  if (!x || !y) return x == y;
  return x->base == y->base && x->position_offset == y->position_offset &&
         x->positions.is_same(y->positions) && x->pairs == y->pairs &&
         x->dimensions == y->dimensions && x->scaling == y->scaling;
}

}  // namespace attzoo
