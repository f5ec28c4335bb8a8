#pragma once
/// \file
/// LSH self-attention: tokens are hashed so that similar ones share a bucket, and attend within it.
///
/// Kitaev et al., "Reformer: The Efficient Transformer", 2020, arXiv:2001.04451. In each of
/// num_hashes rounds with a random projection P:
///
///     bucket(i) = argmax(q_i P)        keys share the bucket of their token
///     y_i       = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j of the same bucket, nearby
///
/// Tokens are sorted by bucket, and within one by position; "nearby" are the bucket_size neighbours
/// on either side in this order, if causal the 2 bucket_size before. Rounds are weighted by the
/// softmax of their lse. There are L / bucket_size buckets, in a packed batch as many for each
/// document as for the document alone, with the projections of the document alone (while training,
/// drawn for each number of buckets).
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L bucket_size num_hashes d_model + L log L) time, O(L num_hashes d_model) memory;
/// hashing itself costs O(L sqrt(L / bucket_size) num_hashes d_model), a few percent.
/// Departs from the paper: queries and keys have projections of their own, and a window on the
/// sorted tokens takes the place of fixed chunks, whose borders later tokens would move: the causal
/// form depends on earlier tokens alone. Departs from the Python library: buckets are bounded,
/// rounds weighted, hashing fixed in eval mode; `exact_buckets` gives its form.

#include <attzoo/core/buckets.hpp>
#include <attzoo/core/reference.hpp>
#include <attzoo/module/self_attention.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <set>
#include <utility>
#include <vector>

namespace attzoo {

struct LSHSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  int64_t bucket_size = 64;                         ///< aimed at, and the reach of a query; > 0
  int64_t num_hashes = 1;                           ///< rounds; > 0, at most 2^16
  double dropout = 0.1;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  bool rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
  bool exact_buckets = false;                       ///< whole buckets, rounds averaged
  uint64_t seed = 0;                                ///< of the projections in eval mode
};

class LSHSelfAttentionImpl : public SelfAttention<LSHSelfAttentionImpl, LSHSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "LSHSelfAttention";

  LSHSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : LSHSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  explicit LSHSelfAttentionImpl(const LSHSelfAttentionOptions& o)
      : SelfAttention(o, {"num_heads", o.num_heads}) {
    check_positive("bucket_size", options.bucket_size);
    check_positive("num_hashes", options.num_hashes);
    TORCH_CHECK_VALUE(options.num_hashes <= 1 << 16, kName,
                      ": num_hashes must be at most 2^16, got ", options.num_hashes);
    reset();
  }

  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    if (heads.q.numel() == 0 || heads.k.numel() == 0) return finish(attend(heads, inputs));
    std::vector<AttentionResult> rounds;
    for (int64_t r = 0; r < options.num_hashes; ++r) {
      rounds.push_back(attend_round(heads, inputs, r));
    }
    return finish(join_rounds(rounds));
  }

  /// Uses these from now on, one for each round: [num_heads, d_head, columns], where columns are
  /// the buckets with exact_buckets, else two digits of a bucket's number, half of the columns
  /// each; floating, on the CPU or the module's device. An empty list goes back to random ones.
  /// Throws c10::Error on another number, shape, dtype or device.
  void set_projections(std::vector<torch::Tensor> projections) {
    TORCH_CHECK_VALUE(
        projections.empty() || static_cast<int64_t>(projections.size()) == options.num_hashes,
        kName, ": set_projections expects num_hashes=", options.num_hashes, " projections, got ",
        projections.size());
    for (const auto& p : projections) {
      core::check_floating(p, kName, "a projection");
      TORCH_CHECK_VALUE(p.device().is_cpu() || p.device() == w_q->weight.device(), kName,
                        ": a projection must be on the CPU or on ", w_q->weight.device(), ", got ",
                        p.device());
      TORCH_CHECK_VALUE(p.dim() == 3 && p.size(0) == options.num_heads && p.size(1) == d_head() &&
                            p.size(2) >= factors() && p.size(2) % factors() == 0,
                        kName, ": a projection must have shape [num_heads=", options.num_heads,
                        ", d_head=", d_head(), ", columns], got ", p.sizes());
    }
    projections_ = std::move(projections);
  }

  /// While training, projections are drawn from here; default: torch's own CPU generator. Throws
  /// c10::ValueError on another device's generator.
  void set_generator(const at::Generator& generator) {
    TORCH_CHECK_VALUE(generator.defined() && generator.device().is_cpu(), kName,
                      ": set_generator expects a CPU generator, got ",
                      generator.defined() ? c10::str(generator.device()) : "an undefined one");
    generator_ = generator;
  }

  void extra_repr(std::ostream& stream) const {
    stream << ", num_heads=" << options.num_heads << ", bucket_size=" << options.bucket_size
           << ", num_hashes=" << options.num_hashes << std::boolalpha
           << ", exact_buckets=" << options.exact_buckets;
  }

 private:
  /// Digits of a bucket's number that are hashed apart.
  int64_t factors() const { return options.exact_buckets ? 1 : 2; }

  /// Columns of a round's projection for a sequence of n keys.
  int64_t columns(int64_t round, int64_t n) const {
    if (!projections_.empty()) return projections_[static_cast<size_t>(round)].size(2);
    const int64_t buckets = 1 + (n - 1) / options.bucket_size;
    if (options.exact_buckets) return buckets;
    return 2 * static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(buckets))));
  }

  torch::Tensor projection(int64_t round, int64_t columns) {
    if (!projections_.empty()) return projections_[static_cast<size_t>(round)];
    const auto draw = [&](const std::optional<at::Generator>& generator) {
      return torch::randn({options.num_heads, d_head(), columns}, generator, torch::kFloat32);
    };
    if (is_training()) return draw(generator_);
    const auto seed = options.seed + static_cast<uint64_t>(round);
    return draw(at::make_generator<at::CPUGeneratorImpl>(seed));
  }

  /// The buckets of queries and keys, [B, H, L] and [B, H, S].
  std::pair<torch::Tensor, torch::Tensor> hash(const Heads& heads, bool cross, int64_t round) {
    const auto& packing = heads.packing;
    if (packing.defined()) {
      const auto id = hash_documents(heads.q, packing, round);
      return {id, id};
    }
    const auto p = projection(round, columns(round, heads.k.size(2)));
    const auto id = core::bucket_ids(heads.q, p, factors());
    // Without a context, queries and keys are the same tokens.
    return {id, !cross ? id : core::bucket_ids(heads.k, p, factors())};
  }

  /// The same for a packed batch: buckets of their own for every document, as many as it has alone.
  torch::Tensor hash_documents(const torch::Tensor& q, const core::Packing& packing,
                               int64_t round) {
    std::vector<int64_t> widths, first;  // of each document: columns, and its first bucket's number
    int64_t buckets = 0;
    for (const auto length : packing.lengths) {
      widths.push_back(columns(round, length));
      first.push_back(buckets);
      const int64_t base = widths.back() / factors();
      buckets += factors() == 1 ? base : base * base;
    }
    const auto width = packing.spread(widths).unsqueeze(1);  // [R, 1, S]
    auto id = torch::zeros({1, 1, 1}, width.options());
    for (const auto w : std::set<int64_t>(widths.begin(), widths.end())) {
      id = torch::where(width == w, core::bucket_ids(q, projection(round, w), factors()), id);
    }
    return id + packing.spread(first).unsqueeze(1);
  }

  AttentionResult attend_round(const Heads& heads, const AttentionInputs& in, int64_t round) {
    const auto &q = heads.q, &k = heads.k, &v = heads.v;
    auto [id_q, id_k] = hash(heads, in.context.defined(), round);
    if (in.key_padding_mask.defined()) {
      id_k = id_k.masked_fill(in.key_padding_mask.logical_not().unsqueeze(1), -1);
    }
    const int64_t reach = options.exact_buckets ? k.size(2) : options.bucket_size;
    const core::Buckets buckets(id_q, id_k, is_causal(in), reach);

    // A mask of pairs is sorted like everything else; it is as large as all pairs anyway.
    core::MaskAndBias said;
    if (in.mask.defined()) {
      const auto pairs =
          core::mask_rank4(in.mask).expand({q.size(0), q.size(1), q.size(2), k.size(2)});
      const auto rows = buckets.order_q.unsqueeze(-1).expand({-1, -1, -1, k.size(2)});
      const auto columns = buckets.order_k.unsqueeze(2).expand({-1, -1, q.size(2), -1});
      const auto sorted = pairs.gather(2, rows).gather(3, columns);
      said = core::mask_and_bias(sorted);
    }
    auto how = attention_options();
    if (how.dropout > 0) how.seed = core::random_seed();
    const auto sorted =
        attention(core::permute_rows(q, buckets.order_q), core::permute_rows(k, buckets.order_k),
                  core::permute_rows(v, buckets.order_k), buckets.band && said.mask, said.bias, how);
    return {core::permute_rows(sorted.output, buckets.rank_q),
            weights(heads, in.mask, buckets, how), sorted.lse.gather(2, buckets.rank_q)};
  }

  /// The weights of one round in the tokens' own order, O(rows * S).
  static LazyWeights weights(const Heads& heads, const torch::Tensor& mask,
                             const core::Buckets& buckets, const AttentionOptions& how) {
    const auto &q = heads.q, &k = heads.k;
    const core::Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
    return {{n.B, n.H, n.L, n.S},
            [=, unchanged = core::Unchanged({mask})](int64_t begin, int64_t end) {
              unchanged.check("LazyWeights");
              const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
              core::Grid grid(n, begin, end, q.device());
              const auto keys = buckets.rank_k.unsqueeze(2);  // [B, H, 1, S]
              const auto rows = [&](const torch::Tensor& t) {
                return t.slice(2, begin, end).unsqueeze(-1);
              };
              const auto of_query = [&](const torch::Tensor& band) {
                return rows(band.gather(2, buckets.rank_q));
              };
              auto allowed = torch::logical_and(keys >= of_query(buckets.band.begin),
                                                keys < of_query(buckets.band.end));
              const auto dtype = core::compute_dtype(q);
              auto scores =
                  torch::matmul(q.slice(2, begin, end).to(dtype), k.to(dtype).transpose(-2, -1)) *
                  *how.scale;
              if (mask.defined()) {
                const auto part = grid.of(core::mask_rank4(mask));
                if (part.scalar_type() == torch::kBool) {
                  allowed = torch::logical_and(allowed, part);
                } else {
                  scores = scores + part;
                }
              }
              auto weights = core::masked_softmax(scores, allowed).weights;
              if (how.dropout > 0) {  // entries are numbered by their ranks
                grid.q = rows(buckets.rank_q);
                grid.kv = keys;
                weights = weights * core::dropout_factor({how.dropout, *how.seed}, grid, dtype);
              }
              return weights.to(q.scalar_type());
            }};
  }

  /// The mean of the rounds: by the softmax of their lse, with exact_buckets a plain one.
  AttentionResult join_rounds(const std::vector<AttentionResult>& rounds) const {
    if (rounds.size() == 1) return rounds[0];
    std::vector<torch::Tensor> each;
    for (const auto& r : rounds) each.push_back(r.lse);
    const auto lse = torch::stack(each);  // [rounds, B, H, L]
    const auto total = core::logsumexp_of_rounds(lse);
    // A query that found no key in any round has -inf - -inf here: its share is 0.
    auto share = options.exact_buckets
                     ? torch::full_like(lse, 1.0 / static_cast<double>(rounds.size()))
                     : torch::exp(lse - total.masked_fill(total.isinf(), 0.0));
    torch::Tensor output;
    for (size_t r = 0; r < rounds.size(); ++r) {
      const auto part = rounds[r].output * share[static_cast<int64_t>(r)].unsqueeze(-1);
      output = r == 0 ? part : output + part;
    }
    LazyWeights weights(
        rounds[0].weights.sizes().vec(), [rounds, share](int64_t begin, int64_t end) {
          torch::Tensor sum;
          for (size_t r = 0; r < rounds.size(); ++r) {
            const auto rows = share[static_cast<int64_t>(r)].slice(2, begin, end).unsqueeze(-1);
            const auto part = rounds[r].weights.rows(begin, end) * rows;
            sum = r == 0 ? part : sum + part;
          }
          return sum.to(rounds[0].output.scalar_type());
        });
    return {output.to(rounds[0].output.scalar_type()), std::move(weights), total};
  }

  std::vector<torch::Tensor> projections_;
  std::optional<at::Generator> generator_;
};

/// Example: `LSHSelfAttention attn({.d_model = 256, .num_heads = 8, .bucket_size = 64});`
using LSHSelfAttention = Holder<LSHSelfAttentionImpl>;

}  // namespace attzoo
