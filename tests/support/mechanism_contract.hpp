#pragma once
/// \file
/// What every softmax mechanism of the zoo must do, written once and compiled once. A mechanism's
/// test file gives a traits struct and instantiates the suite:
///
///     struct LocalTraits : PlainTraits {
///       using Module = LocalSelfAttention;
///       static LocalSelfAttentionOptions options();      // d_model 12, dropout 0
///       static torch::Tensor allowed(int64_t n);         // its pattern, bool [n, n] or [H, n, n]
///       static torch::Tensor allowed_causal(int64_t n);  // where causal is not allowed's lower
///       half
///     };
///     INSTANTIATE_TEST_SUITE_P(Local, MechanismContract, mechanism<LocalTraits>());
///
/// It serves mechanisms outside of the zoo as well: link the CMake target attzoo::testing, which
/// adds this folder to the include path and the tests to the program, and GoogleTest; see
/// tests/module/own_mechanism_test.cpp.

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <functional>
#include <limits>
#include <optional>
#include <ostream>
#include <string>

#include "support/documents_contract.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing {

inline constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

/// [B, n, heads * features] -> [B, heads, n, features].
inline torch::Tensor split_heads(const torch::Tensor& t, int64_t heads) {
  return t.view({t.size(0), t.size(1), heads, -1}).transpose(1, 2);
}

/// Options that a test sets; a mechanism that has not one of the later ones goes without.
struct Change {
  std::optional<int64_t> d_model = {}, input_dim = {};
  std::optional<double> dropout = {};
  std::optional<bool> causal = {};
  std::optional<int64_t> num_heads = {};
  std::optional<double> temperature = {};
  std::optional<bool> rope = {};
};

/// Queries, keys and values as a score multiplies them, [B, H, L, features].
struct Projected {
  torch::Tensor q, k, v;
};

/// A module of any mechanism, and the parts of it that its definition is made of.
struct AnyMechanism : AnyAttention {
  template <class Traits>
  AnyMechanism(Traits, typename Traits::Module m)
      : AnyAttention(m),
        w_q(m->w_q),
        w_k(m->w_k),
        w_v(m->w_v),
        w_o(m->w_o),
        w_g(m->w_g),
        norm_q(m->norm_q),
        norm_k(m->norm_k),
        sinks(m->sinks),
        d_head(m->d_head()),
        score_bias([m](int64_t L, int64_t S) mutable { return Traits::score_bias(m, L, S); }),
        another([m] { return AnyMechanism(Traits(), typename Traits::Module(m->get_config())); }) {
    if constexpr (requires { m->options.rope; }) rope = m->options.rope;
    if constexpr (requires { m->options.softcap; }) softcap = m->options.softcap;
    if constexpr (requires { Traits::project(*m, w_o->weight, w_o->weight); }) {
      project = [m](const torch::Tensor& x, const torch::Tensor& context) mutable {
        return Traits::project(*m, x, context);
      };
    }
  }

  torch::nn::Linear w_q, w_k, w_v, w_o, w_g;
  RMSNorm norm_q, norm_k;
  torch::Tensor sinks;
  int64_t d_head;
  Rope rope = false;
  std::optional<double> softcap = {};
  std::function<torch::Tensor(int64_t L, int64_t S)> score_bias;
  std::function<AnyMechanism()> another;  ///< of the same options
  /// Of x and of a context, where they are others than w_q, w_k, w_v, their norms and RoPE make.
  std::function<Projected(const torch::Tensor& x, const torch::Tensor& context)> project;
};

/// What the contract knows of a mechanism.
struct Mechanism {
  std::string name;  ///< in errors and in print
  bool head_axis;    ///< of its weights
  bool has_temperature, has_rope;
  bool heads_divide;  ///< there is an option num_heads, which divides d_model
  std::function<torch::Tensor(int64_t n)> allowed, allowed_causal;
  std::function<AnyMechanism(const Change&)> make;
  std::function<void(const AnyMechanism&)> lives_as_a_module;  ///< what takes its own type
};
inline std::ostream& operator<<(std::ostream& stream, const Mechanism& m) {
  return stream << m.name;
}

/// The one that a traits struct says, as values of the suite's parameter.
template <class Traits>
auto mechanism() {
  using Module = typename Traits::Module;
  using Options = decltype(Traits::options());
  const Options o = Traits::options();
  constexpr bool rope = requires { o.rope; }
  , heads = requires { o.num_heads; };
  Mechanism m{.name = Module::ContainedType::kName,
              .head_axis = Traits::kHeadAxis,
              .has_temperature = requires {o.temperature;
}
, .has_rope = rope, .heads_divide = heads, .allowed = Traits::allowed,
  .allowed_causal =
      [](int64_t n) {
        if constexpr (requires { Traits::allowed_causal(n); }) {
          return Traits::allowed_causal(n);
        } else {
          return Traits::allowed(n) & torch::ones({n, n}, torch::kBool).tril();
        }
      },
  .make =
      [](const Change& change) {
        Options options = Traits::options();
        const auto set = [](auto& field, const auto& value) {
          if (value) field = *value;
        };
        set(options.d_model, change.d_model);
        set(options.input_dim, change.input_dim);
        set(options.dropout, change.dropout);
        set(options.causal, change.causal);
        if constexpr (heads) set(options.num_heads, change.num_heads);
        if constexpr (requires { options.temperature; }) {
          set(options.temperature, change.temperature);
        }
        if constexpr (rope) set(options.rope, change.rope);
        return AnyMechanism(Traits(), Module(options));
      },
  .lives_as_a_module = [](const AnyMechanism& any) {
    expect_lives_as_a_module(
        Module(std::dynamic_pointer_cast<typename Module::ContainedType>(any.ptr())));
  }
};  // namespace attzoo::testing
if constexpr (requires { o.head_dim; }) m.heads_divide = heads && !o.head_dim;
return ::testing::Values(m);
}

/// The tests, in mechanism_contract.cpp.
class MechanismContract : public ::testing::TestWithParam<Mechanism> {
 protected:
  void SetUp() override;
};

/// Defaults of a traits struct: everybody is allowed, no score bias, weights with a head axis. One
/// whose projections are others has `static Projected project(Impl&, x, context)`.
struct PlainTraits {
  static constexpr bool kHeadAxis = true;
  static torch::Tensor allowed(int64_t n) { return torch::ones({n, n}, torch::kBool); }
  /// Added to the scores of L queries and S keys, [1, H, L, S].
  template <class Module>
  static torch::Tensor score_bias(Module&, int64_t, int64_t) {
    return torch::zeros({1, 1, 1, 1}, torch::kFloat64);
  }
};

/// `special` with `options` must equal `general`: they get the same weights and see the same x.
void expect_equivalent(const AnyAttention& special, const AnyAttention& general,
                       const AttentionInputs& inputs = {}, int64_t n = 24);

}  // namespace attzoo::testing
