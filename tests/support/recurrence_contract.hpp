#pragma once
/// \file
/// What every recurrent mechanism must do, written once and compiled once. A mechanism's test file
/// gives a traits struct and instantiates the suite:
///
///     struct DeltaNetTraits {
///       using Module = DeltaNet;
///       static std::vector<DeltaNetOptions> options();  // d_model 12, dropout 0; the first: bias
///       static Defined define(DeltaNetImpl& m, const torch::Tensor& x);  // token by token
///     };
///     INSTANTIATE_TEST_SUITE_P(DeltaNet, RecurrenceContract, recurrence_of<DeltaNetTraits>());

#include <attzoo/module/recurrent.hpp>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing {

/// What a mechanism gives by its definition.
struct Defined {
  torch::Tensor values;  ///< what its weights are of, [B, HV, n, dv]
  torch::Tensor sums;    ///< weights values
  torch::Tensor output;  ///< [B, n, d_model]
};

/// A recurrent mechanism of some options.
struct Recurrence {
  std::string name;  ///< in errors and in print
  size_t variant;    ///< which of the traits' options
  std::function<AnyAttention(const Change&)> make;
  std::function<Defined(const AnyAttention&, const torch::Tensor& x)> define;
  std::function<void(const AnyAttention&)> lives_as_a_module;
  std::function<AnyAttention(int64_t)> of_conv_size;  ///< empty: it has no such option
};
inline std::ostream& operator<<(std::ostream& stream, const Recurrence& r) {
  return stream << r.name << " " << r.variant;
}

/// Those that a traits struct says, as values of the suite's parameter.
template <class Traits>
auto recurrence_of() {
  using Module = typename Traits::Module;
  using Impl = typename Module::ContainedType;
  std::vector<Recurrence> all;
  for (const auto& options : Traits::options()) {
    Recurrence r;
    r.name = Impl::kName;
    r.variant = all.size();
    r.make = [options](const Change& change) -> AnyAttention {
      auto o = options;
      if (change.d_model) o.d_model = *change.d_model;
      if (change.input_dim) o.input_dim = *change.input_dim;
      if (change.dropout) o.dropout = *change.dropout;
      if (change.num_heads) o.num_heads = *change.num_heads;
      return Module(o);
    };
    r.define = [](const AnyAttention& m, const torch::Tensor& x) {
      return Traits::define(*m->as<Impl>(), x);
    };
    r.lives_as_a_module = [](const AnyAttention& any) {
      expect_lives_as_a_module(Module(std::dynamic_pointer_cast<Impl>(any.ptr())));
    };
    if constexpr (requires { options.conv_size; }) {
      r.of_conv_size = [options](int64_t size) -> AnyAttention {
        auto o = options;
        o.conv_size = size;
        return Module(o);
      };
    }
    all.push_back(r);
  }
  return ::testing::ValuesIn(all);
}

/// The tests, in recurrence_contract.cpp.
class RecurrenceContract : public ::testing::TestWithParam<Recurrence> {
 protected:
  void SetUp() override;
};

/// Parameters of norms, gates, decays and biases as training might leave them: those of one
/// dimension are moved by normal numbers of this size.
void move_vectors(const AnyAttention& m, double by = 0.3);

// ---- parts of definitions, of plain LibTorch operations
// --------------------------------------------

/// silu(conv(x)), x [B, n, channels].
torch::Tensor convolved(const torch::Tensor& x, const ShortConvolution& conv);
/// t / sqrt(mean(t^2) + eps) * weight over the last dimension.
torch::Tensor normed(const torch::Tensor& t, const RMSNorm& norm);
/// t / sqrt(sum(t^2) + eps).
torch::Tensor of_length_1(const torch::Tensor& t, double eps = 1e-6);
/// [B, H, n, features] -> [B, n, H * features].
torch::Tensor join(const torch::Tensor& t);
/// Token i of t [B, H, n, features], as a column or as a row.
torch::Tensor column(const torch::Tensor& t, int64_t i);
torch::Tensor row(const torch::Tensor& t, int64_t i);
/// S_i^T q_i of all tokens, [B, HV, n, dv], where S_i = step(S_{i-1}, i) [B, HV, dk, dv].
torch::Tensor carried(const torch::Tensor& q, const torch::Tensor& v,
                      const std::function<torch::Tensor(const torch::Tensor& S, int64_t i)>& step);

}  // namespace attzoo::testing
