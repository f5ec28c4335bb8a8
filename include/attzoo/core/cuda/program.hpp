#pragma once
/// \file
/// The CUDA kernels of a problem as text, and how many threads, and how much shared memory, they
/// take.

#include <attzoo/config.hpp>
#include <attzoo/core/cuda/source.hpp>

#include <torch/types.h>

#include <string>

namespace attzoo::core {

/// What kernels are made for. Problems that differ in nothing of this and have the same
/// ModifierSource::text have the same kernels.
struct KernelKind {
  torch::ScalarType scalar;  // of q, k and v: float32, bfloat16 or float16
  bool wide;                 // the output is float32
  int D, E;                  // features of q and k, and of v, up to 256
  bool aligned;              // 16 bytes: all rows, and features as well
  bool dropout;
  bool plain;   // nothing changes the scores, and the scale is positive
  bool shared;  // a block has the queries of all heads that share keys
  bool split;   // a block has a part of the keys
};

/// A kernel's blocks: rows of queries or of keys, 16 for each warp, which meet tiles of so many
/// columns, `stages` of them in shared memory at a time.
struct BlockSizes {
  int rows, columns, stages, bytes;
  int threads() const { return 2 * rows; }
};
ATTZOO_API BlockSizes forward_blocks(const KernelKind& kind);
ATTZOO_API BlockSizes query_blocks(const KernelKind& kind);
ATTZOO_API BlockSizes key_blocks(const KernelKind& kind);
/// Whether the gradients of keys and of values are two kernels, since a thread's registers do not
/// hold both.
ATTZOO_API bool keys_and_values_apart(const KernelKind& kind);

/// The kernels `forward` and, of split keys, `merge_parts`.
ATTZOO_API std::string forward_program(const ModifierSource& source, const KernelKind& kind);
/// The kernel `repair`, a warp for each row, which makes of another forward pass what ours would
/// be.
ATTZOO_API std::string repair_program(const ModifierSource& source, const KernelKind& kind);
constexpr int kRepairRows = 4;  // of a block
/// `backward_queries`, `backward_keys` and, where these are apart, `backward_values`; with a
/// function learn() in the source `backward_tables`.
ATTZOO_API std::string backward_program(const ModifierSource& source, const KernelKind& kind,
                                        bool learns);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cuda/problem.hpp>

#include <algorithm>
#include <initializer_list>
#include <utility>

namespace attzoo::core {

ATTZOO_API int padded_features(int features) {
  for (const int size : {16, 32, 64, 96, 128, 192}) {
    if (features <= size) return size;
  }
  return 256;
}
/// bfloat16 numbers that make one number.
ATTZOO_API int parts_of(const KernelKind& kind) { return kind.scalar == torch::kFloat32 ? 3 : 1; }

/// The first of these sizes that fits. 99 KiB of shared memory are there on all GPUs, and
/// `registers(columns)` numbers of a thread, at most 176, leave place for what else it needs.
template <class Registers>
BlockSizes blocks_that_fit(const KernelKind& kind, int row_features, int column_features,
                           int numbers, Registers registers) {
  constexpr int kMost = 99 * 1024, kMostRegisters = 176;
  for (const auto& [rows, columns] : {std::pair(64, 64), std::pair(64, 32), std::pair(64, 16),
                                      std::pair(32, 32), std::pair(32, 16), std::pair(16, 16)}) {
    const int fixed = 2 * parts_of(kind) * rows * row_features;
    const int stage = columns * (2 * parts_of(kind) * column_features + 4 * numbers);
    // Operands of products take 8 numbers for each part; no tile is narrower than 16 columns.
    const int taken = registers(columns) + 8 * parts_of(kind);
    if (fixed + stage > kMost || (columns > 16 && taken > kMostRegisters)) continue;
    const int stages = fixed + 2 * stage <= kMost ? 2 : 1;
    return {rows, columns, stages, fixed + stages * stage};
  }
  return {16, 16, 1, 0};
}

ATTZOO_API BlockSizes forward_blocks(const KernelKind& kind) {
  const int D = padded_features(kind.D), E = padded_features(kind.E);
  auto sizes = blocks_that_fit(kind, D, D + E, 0, [&](int columns) { return E / 2 + columns; });
  sizes.bytes -= (sizes.stages - 1) * sizes.columns * 2 * parts_of(kind) * (D + E);
  sizes.stages = 1;
  return sizes;
}
ATTZOO_API BlockSizes query_blocks(const KernelKind& kind) {
  const int D = padded_features(kind.D), E = padded_features(kind.E);
  return blocks_that_fit(kind, D + E, D + E, 0, [&](int columns) { return D / 2 + 2 * columns; });
}
ATTZOO_API bool keys_and_values_apart(const KernelKind& kind) {
  return padded_features(kind.D) + padded_features(kind.E) > 256;
}
ATTZOO_API BlockSizes key_blocks(const KernelKind& kind) {
  const int D = padded_features(kind.D), E = padded_features(kind.E);
  const int sums = keys_and_values_apart(kind) ? std::max(D, E) : D + E;
  return blocks_that_fit(kind, D + E, D + E, 4, [&](int columns) { return sums / 2 + columns; });
}

ATTZOO_API std::string cuda_name(torch::ScalarType type) {
  return type == torch::kFloat32 ? "float" : type == torch::kHalf ? "f16" : "bf16";
}

/// All that kernels have in common.
ATTZOO_API std::string program_head(const ModifierSource& source, const KernelKind& kind) {
  static constexpr char kWarp[] =
#include <attzoo/core/cuda/text/warp.inc>
      ;
  static constexpr char kTile[] =
#include <attzoo/core/cuda/text/tile.inc>
      ;
  static constexpr char kPairs[] =
#include <attzoo/core/cuda/text/pairs.inc>
      ;
  static constexpr char kExact[] =
#include <attzoo/core/cuda/text/exact.inc>
      ;
  const auto size = [](size_t n) { return std::to_string(std::max<size_t>(n, 1)); };
  const auto flag = [](const char* name, bool value) {
    return std::string("constexpr bool ") + name + " = " + (value ? "true" : "false") + ";\n";
  };
  return source.text + "\nstruct Modifier {\n  Number number[" + size(source.numbers.size()) +
         "];\n  Table table[" + size(source.tables.size()) + "];\n};\n" +
         struct_lines(cuda::kProblemStructs) + "typedef " + cuda_name(kind.scalar) +
         " Scalar;\ntypedef " + (kind.wide ? "float" : cuda_name(kind.scalar)) +
         " Output;\nconstexpr int kD = " + std::to_string(padded_features(kind.D)) +
         ", kE = " + std::to_string(padded_features(kind.E)) + ";\n" +
         flag("kAligned", kind.aligned) + flag("kDropout", kind.dropout) +
         flag("kPlain", kind.plain) + flag("kShared", kind.shared) + flag("kSplit", kind.split) +
         "constexpr int kRepairRows = " + std::to_string(kRepairRows) + ";\n\n" + kWarp + kTile +
         kPairs + kExact;
}

/// A kernel that calls `body`, an instance for these sizes.
ATTZOO_API std::string kernel_text(const std::string& name, int threads, const std::string& body) {
  return "KERNEL(" + std::to_string(threads) + ") " + name +
         "(const GRID_CONSTANT Problem p, const GRID_CONSTANT Modifier m) {\n  " + body + "\n}\n";
}
ATTZOO_API std::string template_arguments(const BlockSizes& sizes, bool with_stages = true) {
  return std::to_string(sizes.rows) + ", " + std::to_string(sizes.columns) +
         (with_stages ? ", " + std::to_string(sizes.stages) : "");
}

/// What forward kernels call.
ATTZOO_API std::string forward_head(const ModifierSource& source, const KernelKind& kind) {
  static constexpr char kForward[] =
#include <attzoo/core/cuda/text/forward.inc>
      ;
  return program_head(source, kind) + kForward + "\n";
}
ATTZOO_API std::string forward_program(const ModifierSource& source, const KernelKind& kind) {
  const auto sizes = forward_blocks(kind);
  auto text = forward_head(source, kind) +
              kernel_text("forward", sizes.threads(),
                          "attend<" + template_arguments(sizes, false) + ">(p, m);");
  if (kind.split) text += kernel_text("merge_parts", 32, "merge(p, m);");
  return text;
}
ATTZOO_API std::string repair_program(const ModifierSource& source, const KernelKind& kind) {
  return forward_head(source, kind) + kernel_text("repair", 32 * kRepairRows, "repair_rows(p, m);");
}

ATTZOO_API std::string backward_program(const ModifierSource& source, const KernelKind& kind,
                                        bool learns) {
  static constexpr char kBackward[] =
#include <attzoo/core/cuda/text/backward.inc>
      ;
  static constexpr char kLearn[] =
#include <attzoo/core/cuda/text/learn.inc>
      ;
  const auto queries = query_blocks(kind), keys = key_blocks(kind);
  auto text = program_head(source, kind) + kBackward;
  text +=
      learns ? kLearn
             : "FN void learn_of(const Problem&, const Modifier&, float, const Place&, float) {}\n";
  text += kernel_text("backward_queries", queries.threads(),
                      "const int i = p.schedule.count - 1 - block_x();\n"
                      "  differentiate_queries<" +
                          template_arguments(queries) +
                          ", false>(p, m, block_z(), block_y(), "
                          "entry_of(p.schedule, block_z(), block_y(), i));");
  const bool apart = keys_and_values_apart(kind);
  const auto of = [&](const char* name, const char* which) {
    return kernel_text(
        name, keys.threads(),
        "differentiate_keys<" + template_arguments(keys) + ", " + which + ">(p, m);");
  };
  text += of("backward_keys", apart ? "true, false" : "true, true");
  if (apart) text += of("backward_values", "false, true");
  if (learns) {
    text += kernel_text("backward_tables", queries.threads(),
                        "learn_tables<" + template_arguments(queries) + ">(p, m);");
  }
  return text;
}

}  // namespace attzoo::core

#endif
