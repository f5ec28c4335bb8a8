#pragma once
/// \file
/// LSH self-attention: tokens are hashed so that similar ones share a bucket, and attend within it.
///
/// Kitaev et al., "Reformer: The Efficient Transformer", 2020, arXiv:2001.04451. In each of
/// num_hashes rounds with a random projection P:
/// ```
/// bucket(i) = argmax(q_i P)        keys share the bucket of their token
/// y_i       = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j of the same bucket, nearby
/// ```
/// Tokens are sorted by bucket, and within one by position; "nearby" are the bucket_size neighbours
/// on either side in this order, if causal the 2 bucket_size before. Rounds are weighted by the
/// softmax of their lse. There are L / bucket_size buckets or num_buckets, in a packed batch as
/// many for each document as for the document alone, with the projections of the document alone
/// (while training, drawn for each number of buckets).
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L bucket_size num_hashes d_model + L log L) time, O(L num_hashes d_model) memory;
/// hashing itself costs O(L sqrt(L / bucket_size) num_hashes d_model), a few percent.
/// Departs from the paper: queries and keys have projections of their own, and a window on the
/// sorted tokens takes the place of fixed chunks, whose borders later tokens would move: the causal
/// form depends on earlier tokens alone. Departs from the Python library: buckets are bounded,
/// rounds weighted, hashing fixed in eval mode; `exact_buckets` gives its form.

#include <attzoo/lsh/bucket_cache.hpp>
#include <attzoo/lsh/buckets.hpp>
#include <attzoo/module/self_attention.hpp>

#include <optional>
#include <utility>
#include <vector>

namespace attzoo {

/// Options of LSHSelfAttention.
struct LSHSelfAttentionOptions {
  int64_t d_model = 0;       ///< features of the output; > 0
  int64_t num_heads = 0;     ///< divides d_model
  int64_t bucket_size = 64;  ///< aimed at, and the reach of a query; > 0
  int64_t num_hashes = 1;    ///< rounds; > 0, at most 2^16
  /// Buckets of a sequence of any length; > 0, default L / bucket_size. Needed where results must
  /// not depend on how long the sequence is or will be, as with a cache.
  std::optional<int64_t> num_buckets = std::nullopt;
  bool exact_buckets = false;                       ///< whole buckets, rounds averaged
  uint64_t seed = 0;                                ///< of the projections in eval mode
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; LSHSelfAttention holds it.
class LSHSelfAttentionImpl : public SelfAttention<LSHSelfAttentionImpl, LSHSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "LSHSelfAttention";

  /// With the default of every other option.
  LSHSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : LSHSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LSHSelfAttentionImpl(const LSHSelfAttentionOptions& o) : SelfAttention(o) { reset(); }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(
        !inputs.cache.defined() || !is_training() || !projections_.empty(), kName,
        ": while training, each call draws projections of its own; with a cache, call eval()");
    TORCH_CHECK_VALUE(!inputs.score.sink().defined(), kName,
                      ": a sink would count in each round, whose results are blended by their lse; "
                      "score must bring none");
    const auto heads = project(x, inputs);
    if (heads.past) return finish(attend_cached(heads, inputs));
    if (heads.q.numel() == 0 || heads.k.numel() == 0) return finish(attend(heads, inputs));
    return finish(attend_rounds(heads, inputs));
  }

  /// A cache of all tokens and their buckets; see MakesCache and Cache. Its steps are those of the
  /// whole pass where num_buckets or projections are set; else there are the buckets of a sequence
  /// of `capacity`.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override;

  /// Uses these from now on, one for each round: [num_heads, d_head, columns], where columns are
  /// the buckets with exact_buckets, else two digits of a bucket's number, half of the columns
  /// each; floating, on the CPU or the module's device. An empty list goes back to random ones.
  /// Throws c10::ValueError on another number, shape or device, c10::TypeError on another dtype or
  /// layout.
  void set_projections(std::vector<torch::Tensor> projections);

  /// While training, projections are drawn from here; default: torch's own CPU generator. Throws
  /// c10::ValueError on an undefined one and on another device's.
  void set_generator(const at::Generator& generator);

 protected:
  void check_own_options() const override {
    check_positive("bucket_size", options.bucket_size);
    check_positive("num_hashes", options.num_hashes);
    TORCH_CHECK_VALUE(options.num_hashes <= 1 << 16, kName,
                      ": num_hashes must be at most 2^16, got ", options.num_hashes);
    if (options.num_buckets) {
      check_positive("num_buckets", *options.num_buckets);
      TORCH_CHECK_VALUE(*options.num_buckets <= int64_t{1} << 24, kName,
                        ": num_buckets must be at most 2^24, got ", *options.num_buckets);
    }
  }

 private:
  /// Digits of a bucket's number that are hashed apart.
  int64_t factors() const { return options.exact_buckets ? 1 : 2; }
  /// Columns of a round's projection for a sequence of n keys.
  int64_t columns(int64_t round, int64_t n) const;
  /// A round's projection, [H, d_head, columns]; `drawn` anew where none is set.
  torch::Tensor projection(int64_t round, int64_t columns, bool drawn) const;
  torch::Tensor projection(int64_t round, int64_t columns) const {
    return projection(round, columns, is_training());
  }
  /// Buckets of a round's projection with so many columns.
  int64_t buckets(int64_t columns) const {
    const int64_t base = columns / factors();
    return factors() == 1 ? base : base * base;
  }
  /// The buckets of queries and keys, [B, H, L] and [B, H, S].
  std::pair<torch::Tensor, torch::Tensor> hash(const Heads& heads, bool crosses,
                                               int64_t round) const;
  /// The same for a packed batch: buckets of their own for every document, as many as it has alone.
  torch::Tensor hash_documents(const torch::Tensor& q, const core::Packing& packing,
                               int64_t round) const;
  /// Attention within the buckets of one round.
  AttentionResult attend_round(const Heads& heads, const AttentionInputs& inputs,
                               int64_t round) const;
  /// Attention of all rounds.
  AttentionResult attend_rounds(const Heads& heads, const AttentionInputs& inputs) const;
  /// The same for the next tokens of a cache.
  AttentionResult attend_cached(const Heads& heads, const AttentionInputs& inputs) const;
  /// One round for the queries of `heads`, which attend to `tokens` int64 [B, H, L, M]; -1: none.
  AttentionResult attend_tokens(const Heads& heads, const core::MaskAndBias& asked,
                                const torch::Tensor& tokens) const;
  /// The mean of the rounds: by the softmax of their lse, with exact_buckets a plain one.
  AttentionResult join_rounds(const std::vector<AttentionResult>& rounds) const;

  std::vector<torch::Tensor> projections_;
  std::optional<at::Generator> generator_;
};

/// Example: `LSHSelfAttention attn({.d_model = 256, .num_heads = 8, .bucket_size = 64});`
using LSHSelfAttention = Holder<LSHSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(LSHSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE
#include <attzoo/lsh.ipp>
#endif
