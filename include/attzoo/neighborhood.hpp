#pragma once
/// \file
/// Neighborhood attention: every token of a sequence, an image or a block attends to those nearest
/// to it.
///
/// Hassani et al., "Neighborhood Attention Transformer", 2022, arXiv:2204.07143; Hassani and Shi,
/// "Dilated Neighborhood Attention Transformer", 2022, arXiv:2209.15001. Along a dimension of n
/// places, with the kernel size k and the dilation d:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j in N(i), in every dimension
/// N(i) = the k nearest of the places that are i modulo d
/// ```
/// so windows stop at the borders and are whole there, too: the first token sees k tokens behind
/// it. Along a dimension that is causal, N(i) is i and the k - 1 places before it, as many as there
/// are, as in NATTEN. A window that is wider than its dimension sees all of it, where NATTEN
/// refuses.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]; a grid's tokens are
/// in row-major order: x.flatten(1, -2) of [B, X, Y, input_dim].
/// In a packed batch, and with padding, a sequence's windows stop at the borders of each document's
/// real tokens. Documents and caches have no meaning for a grid of more than one dimension.
/// Cost: O(L (k + 64) d_model) time along a sequence, O(L k_x (k_y + 64) d_model) on a plane;
/// O(L d_model) memory. On the CPU small windows of a grid are listed, without a score and dropout:
/// O(L k_x k_y d_model) time, O(L (k_x k_y + d_model)) memory.

#include <attzoo/core/choose.hpp>
#include <attzoo/functional/neighborhood_keys.hpp>
#include <attzoo/module/self_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace attzoo {

/// Options of NeighborhoodSelfAttention. What is said of a dimension is one value for all of them,
/// or one for each.
struct NeighborhoodSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 8;                            ///< divides d_model
  std::vector<int64_t> kernel_size = {7};           ///< places of a window; odd, > 0
  std::vector<int64_t> dilation = {1};              ///< between the places of a window; > 0
  std::vector<bool> is_causal = {false};            ///< whether windows look back alone
  std::vector<int64_t> grid = {};                   ///< two or three sizes; default a sequence
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< all dimensions are causal
};

/// The module; NeighborhoodSelfAttention holds it.
class NeighborhoodSelfAttentionImpl
    : public SelfAttention<NeighborhoodSelfAttentionImpl, NeighborhoodSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "NeighborhoodSelfAttention";

  /// With the default of every other option.
  explicit NeighborhoodSelfAttentionImpl(int64_t d_model)
      : NeighborhoodSelfAttentionImpl(NeighborhoodSelfAttentionOptions{.d_model = d_model}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit NeighborhoodSelfAttentionImpl(const NeighborhoodSelfAttentionOptions& o)
      : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does; and c10::ValueError with a grid where x or a
  /// context has not its tokens, for documents and for a cache.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    check_options();
    check_grid(x, inputs);
    auto heads = project(x, inputs);
    if (is_listed(heads)) {
      auto how = mode(inputs);
      how.causal = false;  // the list is
      const auto pairs = rule(heads, inputs, how, {}, {});
      if (pairs.bias.is_identity()) return finish(attend_listed(heads, inputs, pairs.mask));
    }
    const auto pattern = neighbors(heads, inputs);
    if (options.grid.empty() && !is_causal(inputs)) heads.packing.run = torch::Tensor();
    return finish(attend(heads, inputs, pattern));
  }

  /// What the next tokens of a sequence need of those before; see MakesCache. Throws
  /// c10::ValueError with a grid.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    check_no_cache(!options.grid.empty());
    return SelfAttention::make_cache(batch, capacity, how);
  }

 protected:
  void check_own_options() const override {
    const auto dimensions = std::max<size_t>(options.grid.size(), 1);
    TORCH_CHECK_VALUE(options.grid.size() <= 3 && options.grid.size() != 1, kName,
                      ": grid must have two or three sizes, or none for a sequence of any length, "
                      "got ",
                      options.grid.size());
    const auto check_count = [&](const char* name, size_t count) {
      TORCH_CHECK_VALUE(count == 1 || count == dimensions, kName, ": ", name,
                        " must have one value, or one for each dimension of the grid, which has ",
                        dimensions, ", got ", count);
    };
    check_count("kernel_size", options.kernel_size.size());
    check_count("dilation", options.dilation.size());
    check_count("is_causal", options.is_causal.size());
    for (const auto n : options.grid) check_positive("grid", n);
    TORCH_CHECK_VALUE(core::product_at_most(options.grid, int64_t{1} << 30), kName,
                      ": grid must have at most 2^30 tokens, got ",
                      torch::IntArrayRef(options.grid));
    for (const auto n : options.dilation) check_positive("dilation", n);
    for (const auto n : options.kernel_size) {
      check_positive("kernel_size", n);
      TORCH_CHECK_VALUE(n % 2 == 1, kName, ": kernel_size must be odd, got ", n);
    }
  }
  Keeps keeps() const override {
    return options.grid.empty() ? Keeps{.reach = spread(options.kernel_size[0] - 1)} : Keeps{};
  }

 private:
  /// How far apart so many places of a sequence are.
  int64_t spread(int64_t places) const {
    const auto d = options.dilation[0];
    return places > kUnbounded / d ? kUnbounded : places * d;
  }
  bool is_causal(const AttentionInputs& in) const {
    return SelfAttention::is_causal(in) || options.is_causal[0];
  }
  static void check_no_cache(bool there_is_one) {
    TORCH_CHECK_VALUE(!there_is_one, kName,
                      ": a cache has no meaning for a grid, whose tokens come in no order of time");
  }

  void check_grid(const torch::Tensor& x, const AttentionInputs& in) const {
    if (options.grid.empty()) return;
    const auto* kept = core::context_cache(in);
    check_no_cache(in.cache.defined() && !kept);
    TORCH_CHECK_VALUE(
        !in.documents.defined(), kName,
        ": documents pack sequences and have no meaning for a grid; grids of one size "
        "are a batch");
    int64_t tokens = 1;
    for (const auto n : options.grid) tokens *= n;
    const auto check = [&](const char* name, int64_t count) {
      TORCH_CHECK_VALUE(count == tokens, kName, ": ", name, " must have the ", tokens,
                        " tokens of the grid ", torch::IntArrayRef(options.grid), ", got ", count);
    };
    // Of another rank they are errors of project().
    if (x.defined() && x.dim() == 3) check("x", x.size(1));
    if (in.context.defined() && in.context.dim() == 3) check("context", in.context.size(1));
    if (kept) check("the cache's context", kept->length());
  }

  /// Of a dimension of the grid.
  template <class Values>
  static auto of_dimension(const Values& values, size_t i) {
    return values[std::min(i, values.size() - 1)];
  }
  /// Whether a list of keys is faster than the mask. The fused kernel computes what the windows of
  /// 64 queries in a row cover; a listed pair costs four of these.
  bool is_listed(const Heads& heads) const {
    if (options.grid.empty() || !heads.q.is_cpu() || dropout() > 0 || core::eager_reference()) {
      return false;
    }
    double own = 1, covered = 1;
    int64_t queries = 64;  // along a dimension
    for (size_t i = options.grid.size(); i-- > 0;) {
      const double n = static_cast<double>(options.grid[i]),
                   k = static_cast<double>(of_dimension(options.kernel_size, i)),
                   d = static_cast<double>(of_dimension(options.dilation, i));
      own *= std::min(k, std::ceil(n / d));
      covered *= std::min(n, (k - 1) * d + static_cast<double>(queries));
      queries = (queries - 1) / options.grid[i] + 1;
    }
    return covered > 4 * own;
  }
  /// Attention to listed keys, where the mask allows.
  AttentionResult attend_listed(const Heads& heads, const AttentionInputs& in,
                                const core::AnyMask& mask) const {
    const auto keys = neighborhood_keys(options.grid, options.kernel_size, options.dilation,
                                        causal_dimensions(in));
    return conclude(heads, core::chosen_attention(heads.q, heads.k, heads.v, keys, mask, {},
                                                  attention_options(), /*private_qk=*/true));
  }

  std::vector<bool> causal_dimensions(const AttentionInputs& in) const {
    return SelfAttention::is_causal(in) ? std::vector<bool>{true} : options.is_causal;
  }
  /// Who attends to whom.
  core::AnyMask neighbors(const Heads& heads, const AttentionInputs& in) const {
    const auto& [kernel_size, dilation] = std::tie(options.kernel_size, options.dilation);
    if (!options.grid.empty()) {
      return neighborhood(options.grid, kernel_size, dilation, causal_dimensions(in));
    }
    if (is_causal(in)) return window(spread(kernel_size[0] - 1), 0) && dilated(dilation[0]);
    const auto real = core::key_padding_of(in);
    const int64_t S = heads.k.size(2);
    if (S == 0) return full();
    if (heads.packing.defined() || real.defined()) return within_documents(heads, real);
    return neighborhood({S}, kernel_size, dilation);
  }

  /// Windows that stop at the first and the last real token of a document. `real`: bool [B, S];
  /// undefined: all are.
  core::AnyMask within_documents(const Heads& heads, const torch::Tensor& real) const {
    const int64_t B = heads.q.size(0), H = heads.q.size(1), L = heads.q.size(2),
                  S = heads.k.size(2);
    const auto token = torch::arange(S, torch::dtype(torch::kInt64).device(heads.q.device()));
    const auto run =
        (heads.packing.defined() ? heads.packing.run : token.new_zeros({1, S})).expand({B, S});
    const auto where_real = [&](const torch::Tensor& t, int64_t otherwise) {
      return (real.defined() ? torch::where(real, t, otherwise) : t).expand({B, S});
    };
    const auto of_queries = [&](const torch::Tensor& of_runs) {
      const auto t = of_runs.gather(1, run);
      return L <= S ? t.slice(1, S - L) : t.slice(1, 0, 1);  // more queries are of one document
    };
    const auto first =
        of_queries(token.new_full({B, S}, S).scatter_reduce(1, run, where_real(token, S), "amin"));
    const auto end = of_queries(
        token.new_zeros({B, S}).scatter_reduce(1, run, where_real(token + 1, 0), "amax"));
    const auto i = torch::arange(S - L, S, token.options()) - first, n = end - first;
    const int64_t half = core::to_int(spread(options.kernel_size[0] / 2)),
                  whole = core::to_int(spread(options.kernel_size[0]));
    const auto begin = first + torch::minimum(i - half, n - whole).clamp_min(0),
               stop = first + torch::minimum(n, (i + half + 1).clamp_min(whole));
    const auto of_heads = [&](const torch::Tensor& t) {
      return t.to(torch::kInt32).unsqueeze(1).expand({B, H, L}).contiguous();
    };
    return core::BandMask{of_heads(begin), of_heads(stop)} && dilated(options.dilation[0]);
  }
};

/// Example: `NeighborhoodSelfAttention attn({.d_model = 64, .kernel_size = {7}, .grid = {56,
/// 56}});` `auto y = attn(image.flatten(1, 2)).output;  // of [B, 56, 56, 64]`
using NeighborhoodSelfAttention = Holder<NeighborhoodSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(NeighborhoodSelfAttentionImpl)
