#pragma once
/// \file
/// A recurrence that forgets and rewrites, as the kernels see it.

#include <attzoo/kernel/view.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Tokens that are computed together. A fresh one begins from a state of zeros.
struct Chunk {
  int begin = 0, count = 0;
  bool fresh = false;
};
/// The most tokens of one.
inline constexpr int kChunkTokens = 64;

/// Rows of tokens [B, heads, n, features]; `group` value heads share one of its heads.
struct HeadRows {
  View view;
  int group = 1;
  bool defined() const { return view.data != nullptr; }
  /// Where the row of token i begins, for value head h.
  int64_t row(int b, int h, int i) const { return view.head(b, h / group) + i * view.n; }
};

/// In every head, with d_t = 1 where there is no decay:
/// ```
/// R = diag(exp(d_t)) S    u = v_t, or by the delta rule beta_t (v_t - R^T p_t)
/// S = R + k_t u^T + b_t (a_t^T S)    out_t = scale S^T q_t
/// ```
/// Where something is undefined it is left out; p is k, beta 1.
struct RecurrenceProblem {
  HeadRows q, k, p, a, b;  // F features
  HeadRows v, out;         // E
  HeadRows decay;          // natural logs, F or 1
  HeadRows beta;           // 1
  bool delta = false;
  int decays = 0;  // features of decay; 0: there is none
  double scale = 1;
  const void* first = nullptr;  // state before the first token, [B, H, F, E]; null: zeros
  void* last = nullptr;         // behind the last; null: not asked for
  int B = 0, H = 0, n = 0, F = 0, E = 0;
  // Those of batch row b: chunks[row[b]] ... chunks[row[b + 1]].
  const Chunk* chunks = nullptr;
  const int* row = nullptr;

  int count(int sequence) const { return row[sequence + 1] - row[sequence]; }
  bool rewrites() const { return delta || a.defined(); }
  bool only_adds() const { return decays == 0 && !rewrites(); }
};

/// Gradients of its tensors, each of value heads and in the type that is computed in.
struct RecurrenceGradients {
  View d_out;                    // given
  const void* d_last = nullptr;  // given; null: zeros
  View q, k, p, a, b, v, decay, beta;
  void* first = nullptr;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
