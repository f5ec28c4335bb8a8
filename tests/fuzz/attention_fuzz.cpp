// Any call of attention(): its output, lse and all gradients are those of the same call by
// definition, in float64 to 1e-9, in other types as near as plain composition in that type, up to a
// small factor and the rounding that nobody can avoid; and it throws only where that does.

#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "fuzz.hpp"
#include "support/judge.hpp"

namespace attzoo::fuzz {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// A call as some bytes say. Its numbers are rounded to the type that they say, and then are of the
/// type `as`.
class Call {
 public:
  Call(const uint8_t* data, size_t size, std::optional<torch::ScalarType> as) : bytes_(data, size) {
    constexpr torch::ScalarType kTypes[] = {torch::kFloat64, torch::kFloat64,  torch::kFloat64,
                                            torch::kFloat32, torch::kBFloat16, torch::kHalf};
    torch::manual_seed(static_cast<uint64_t>(up_to(255)));
    stored = kTypes[up_to(5)];
    dtype = as.value_or(stored);
    B_ = 1 + up_to(1);
    Hkv_ = 1 + up_to(1);
    H_ = Hkv_ * (1 + up_to(2));
    L_ = up_to(chance() ? 80 : 16);
    S_ = chance() ? L_ : up_to(L_ > 16 ? 160 : 400);
    const int64_t D = 1 + up_to(25), Dv = chance() ? D : up_to(25);
    options.scale = chance() ? std::optional<double>() : pick({0.0, -0.3, 1.0, 2.0});
    options.dropout = pick({0.0, 0.0, 0.2, 0.9, 1.0});
    options.seed = static_cast<uint64_t>(up_to(255));
    options.stick_breaking = up_to(4) == 4;
    q = learn(laid_out(H_, L_, D));
    k = learn(laid_out(Hkv_, S_, D));
    v = learn(laid_out(Hkv_, S_, Dv));
    mask = any_mask(3);
    score = any_score();
    if (chance()) score = score + any_score();
  }

  torch::ScalarType stored, dtype;
  torch::Tensor q, k, v;
  core::AnyMask mask;
  core::AnyScore score;
  AttentionOptions options;
  std::vector<torch::Tensor> learning;  // q, k, v and what learns in the score

 private:
  int64_t up_to(int64_t most) { return bytes_.ConsumeIntegralInRange<int64_t>(0, most); }
  bool chance() { return up_to(1) == 1; }
  double pick(std::vector<double> of) {
    return of[static_cast<size_t>(up_to(static_cast<int64_t>(of.size()) - 1))];
  }
  int64_t or_one(int64_t size) { return chance() ? size : 1; }

  torch::Tensor learn(const torch::Tensor& t) {
    learning.push_back(t.detach().requires_grad_());
    return learning.back();
  }
  /// In float32 where q is of a half type.
  torch::Tensor learn_wide(const torch::Tensor& t) {
    const auto wide = torch::kFloat32;
    return learn(t.to(wide).to(dtype == torch::kFloat64 ? dtype : wide));
  }
  static torch::Tensor normal(const std::vector<int64_t>& sizes) {
    return torch::randn(sizes, torch::kFloat64);
  }

  /// [B or 1, heads, n, features] in a layout that users have.
  torch::Tensor laid_out(int64_t heads, int64_t n, int64_t features) {
    const auto rounded = [&](const std::vector<int64_t>& sizes) {
      return normal(sizes).to(stored).to(dtype);
    };
    switch (up_to(6)) {
      case 0:
        return rounded({B_, n, heads, features}).transpose(1, 2);
      case 1:
        return rounded({B_, n, heads, 3 * features}).transpose(1, 2).narrow(3, features, features);
      case 2:
        return rounded({B_, heads, n, 2 * features}).slice(3, 1, 2 * features, 2);
      case 3:
        return rounded({1, 1, n, features}).expand({B_, heads, n, features});
      case 4:
        return rounded({B_, heads, features, n}).transpose(2, 3);
      case 5:
        return rounded({1, heads, n, features});
      default:
        return rounded({B_, heads, n, features});
    }
  }

  torch::Tensor flags(const std::vector<int64_t>& sizes) {
    return torch::rand(sizes) < pick({0.1, 0.5, 0.9});
  }

  core::AnyMask any_mask(int depth) {
    switch (up_to(depth > 0 ? 20 : 16)) {
      case 0:
        return causal();
      case 1:
        return causal(CausalAlignment::kTopLeft);
      case 2:
        return window(up_to(70), chance() ? kUnbounded : up_to(70));
      case 3:
        return window(kUnbounded, up_to(9));
      case 4:
        return dilated(1 + up_to(9));
      case 5:
        return blocks(1 + up_to(70));
      case 6:
        return prefix(up_to(99));
      case 7: {
        std::vector<int64_t> offsets{0, S_};
        for (int64_t i = up_to(3); i > 0; --i) offsets.push_back(up_to(S_));
        std::sort(offsets.begin(), offsets.end());
        return documents({.offsets = torch::tensor(offsets)});
      }
      case 8: {
        const auto ids = torch::randint(0, 1 + up_to(4), {or_one(B_), S_});
        return documents({.ids = chance() ? ids : std::get<0>(ids.sort(1))});
      }
      case 9:
        return global_tokens(flags({or_one(B_), S_}));
      case 10:
        return mask_tensor(flags({or_one(B_), or_one(H_), or_one(L_), or_one(S_)}));
      case 11:
        return chosen();
      case 12:
        return neighborhood({S_}, {1 + 2 * up_to(20)}, {1 + up_to(4)}, {chance()});
      case 13: {
        const auto far = up_to(40);
        return mask_mod([far](auto, auto h, auto q, auto kv) { return abs(q - kv) <= far + h; });
      }
      case 14: {
        const auto step = 1 + up_to(9);
        return mask_mod([step](auto b, auto, auto q, auto kv) { return (q + b - kv) % step != 0; },
                        aligned);
      }
      case 15: {
        const auto id = table(torch::randint(0, 3, {B_, S_}));
        return mask_mod(
            [id](auto b, auto, auto q, auto kv) { return id(b, kv) != 1 || q / 9 == kv / 9; });
      }
      case 16:
        return core::AnyMask();
      case 17:
        return any_mask(depth - 1) && any_mask(depth - 1);
      case 18:
        return any_mask(depth - 1) || any_mask(depth - 1);
      case 19:
        return !any_mask(depth - 1);
      default:
        return block_mask(any_mask(depth - 1), L_, S_, B_, H_);
    }
  }

  core::AnyMask chosen() {
    const int64_t query = 1 + up_to(39), key = 1 + up_to(39);
    const int64_t rows = S_ / query + 1, columns = S_ / key + 1;
    const std::vector<int64_t> sizes{or_one(B_), or_one(H_), rows, columns};
    if (chance()) return chosen_blocks(flags(sizes), query, key);
    return chosen_blocks(torch::randint(-1, columns, {sizes[0], sizes[1], rows, up_to(4)}), query,
                         key);
  }

  core::AnyScore any_score() {
    switch (up_to(9)) {
      case 0:
        return core::AnyScore();
      case 1:
        return softcap(pick({0.5, 3.0, 50.0}));
      case 2:
        return alibi(learn_wide(normal({H_}) * 0.1));
      case 3: {
        auto bias = normal({or_one(B_), or_one(H_), or_one(L_), or_one(S_)});
        if (chance()) bias = bias.masked_fill(flags(bias.sizes().vec()), -kInf);
        return bias_tensor(learn_wide(bias));
      }
      case 4:
        return relative_bias(learn_wide(normal({4 + up_to(12), H_})),
                             {.bidirectional = chance(), .max_distance = 9 + up_to(90)});
      case 5:
        return decay(learn_wide(torch::log_sigmoid(normal({or_one(B_), H_, S_}) + 1).cumsum(-1)));
      case 6:
        return sink(learn_wide(normal({H_})));
      case 7:
        return score_mod([](auto s, auto b, auto h, auto q, auto kv) {
          return 2.0 * tanh(s / 2.0) - 0.01 * (h + b + 1) * abs(q - kv);
        });
      case 8: {
        const auto bias = table(learn_wide(normal({H_, 2 * std::max(L_, S_) + 1})));
        const auto middle = std::max(L_, S_);
        return score_mod([bias, middle](auto s, auto, auto h, auto q, auto kv) {
          return s + bias(h, q - kv + middle);
        });
      }
      default:
        return score_mod(
            [](auto s, auto, auto, auto q, auto kv) { return where(q < kv, s * 0.5, sin(s)); },
            aligned);
    }
  }

  FuzzedDataProvider bytes_;
  int64_t B_, Hkv_, H_, L_, S_;
};

/// Output, lse and the gradients of all that learns; nothing if the call throws.
std::vector<torch::Tensor> results(const uint8_t* data, size_t size,
                                   std::optional<torch::ScalarType> dtype, bool by_definition) {
  std::vector<torch::Tensor> all;
  works([&] {
    Call call(data, size, dtype);
    std::optional<EagerReferenceGuard> guard;
    if (by_definition) guard.emplace();
    if (kPlanted && call.q.size(2) > 9) call.options.scale = by_definition ? 0.25 : 0.2500001;
    const auto r = attention(call.q, call.k, call.v, call.mask, call.score, call.options);
    torch::manual_seed(7);
    const auto numbers = [](const torch::Tensor& like, torch::ScalarType stored) {
      return torch::randn(like.sizes(), torch::kFloat64).to(stored).to(like.scalar_type());
    };
    std::vector<torch::Tensor> outputs{r.output, r.lse},
        from{numbers(r.output, call.stored),
             numbers(r.lse, torch::kFloat32).masked_fill(r.lse == -kInf, 0.0)};
    if (!r.lse.requires_grad()) outputs.pop_back(), from.pop_back();
    auto grads = torch::autograd::grad(outputs, call.learning, from, std::nullopt, false,
                                       /*allow_unused=*/true);
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!grads[i].defined()) grads[i] = torch::zeros_like(call.learning[i]);
    }
    all = {r.output.detach(), r.lse.detach()};
    all.insert(all.end(), grads.begin(), grads.end());
  });
  return all;
}

/// The largest finite number, and 1.
double largest(const torch::Tensor& t) {
  const auto finite = t.detach().abs().to(torch::kFloat64).nan_to_num(0, 0, 0);
  return t.numel() == 0 ? 1 : std::max(1.0, finite.max().item<double>());
}

void check(const uint8_t* data, size_t size) {
  const auto got = results(data, size, std::nullopt, false);
  const auto gold = results(data, size, torch::kFloat64, true);
  require(got.empty() == gold.empty(), got.empty() ? "throws" : "does not throw");
  if (got.empty()) return;
  const Call call(data, size, std::nullopt);
  const auto plain = call.dtype == torch::kFloat64 ? gold : results(data, size, std::nullopt, true);
  // Where terms cancel, an error is that of the terms.
  const double terms = largest(call.q) * largest(call.k) * largest(call.v) *
                       (1 + std::abs(call.options.scale.value_or(0))) /
                       (call.options.dropout < 1 ? 1 - call.options.dropout : 1);
  const bool wide = call.dtype == torch::kFloat64;
  const double length = static_cast<double>(call.q.size(2) + call.k.size(2) + call.q.size(3)),
               floor = testing::epsilon(call.dtype) +
                       4 * testing::epsilon(torch::kFloat32) * std::sqrt(length);
  // Of a score of -inf some modifiers make NaN, as sin() does; gradients mean nothing then.
  const bool has_nan = gold[1].isnan().any().item<bool>();
  for (size_t i = 0; i < (has_nan ? 2 : got.size()); ++i) {
    const auto name = i == 0   ? std::string("output")
                      : i == 1 ? std::string("lse")
                               : c10::str("gradient ", i - 2);
    const auto what = c10::str(name, ", q ", call.q.sizes(), ", k ", call.k.sizes(), ", v ",
                               call.v.sizes(), ", ", call.dtype, ": ");
    const auto infinite = gold[i].isinf(), nan = gold[i].isnan();
    require(got[i].sizes() == gold[i].sizes() && torch::equal(got[i].isinf(), infinite),
            what + "other numbers are infinite");
    require(i > 1 || torch::equal(got[i].isnan(), nan), what + "other numbers are NaN");
    const auto hidden = i > 1 ? infinite : torch::logical_or(infinite, nan);
    const auto differs = [&](const torch::Tensor& t) {
      return (t.to(torch::kFloat64) - gold[i]).masked_fill(hidden, 0.0).abs();
    };
    const auto most = [](const torch::Tensor& t) {
      return t.numel() == 0 ? 0.0 : t.max().item<double>();
    };
    const double of_pairs = i < 5 ? 1 : length;  // what scores learn is a sum, of distances too
    const double error = most(differs(got[i])), size = largest(gold[i]),
                 allowed =
                     wide ? 1e-9 * size + 1e-11 * terms
                          : 3 * most(differs(plain[i])) + floor * (size + of_pairs * terms / 8);
    require(error <= allowed, what + c10::str("differs by ", error, ", allowed ", allowed));
  }
}

}  // namespace
}  // namespace attzoo::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attzoo::fuzz::check(data, size);
  return 0;
}
