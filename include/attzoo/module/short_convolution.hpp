#pragma once
/// \file
/// The short causal convolution that stands before many recurrences, as a layer: the `conv1d` of
/// Mamba (Gu and Dao, 2023, arXiv:2312.00752), Mamba-2, Gated DeltaNet and Kimi Delta Attention.

#include <attzoo/config.hpp>
#include <attzoo/functional/short_convolution.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <iosfwd>

namespace attzoo {

/// Options of ShortConvolution.
struct ShortConvolutionOptions {
  int64_t channels = 0;     ///< size of the last dimension; > 0
  int64_t kernel_size = 4;  ///< tokens that are summed up, the latest ones; > 0
  bool bias = false;        ///< whether there is one for each channel
  bool silu = true;         ///< silu(y) = y sigmoid(y) of the sums
};

/// The module; ShortConvolution holds it.
class ShortConvolutionImpl : public torch::nn::Cloneable<ShortConvolutionImpl> {
 public:
  /// Throws c10::ValueError for options out of range.
  explicit ShortConvolutionImpl(const ShortConvolutionOptions& o);

  /// Makes and registers the parameters.
  void reset() override;
  /// Draws all of them as torch's Conv1d does, uniformly within +- 1 / sqrt(kernel_size), in place.
  void reset_parameters();
  /// Prints the module with its options.
  void pretty_print(std::ostream& stream) const override;

  /// x [batch, seq, channels] -> the same shape and dtype; half types are summed in float32. Throws
  /// c10::ValueError for another shape or device, c10::TypeError for another dtype than the
  /// weight's, unless autocast is on.
  torch::Tensor forward(const torch::Tensor& x);

  /// The same behind the tokens of `initial_state` [batch, kernel_size - 1, channels], the state of
  /// the result of the call before (default: zeros), or for a packed batch; see
  /// short_convolution(). Example, in decoding:
  /// `auto y = conv->convolve(token, state); state = y.state;`
  ShortConvolutionResult convolve(const torch::Tensor& x, const torch::Tensor& initial_state = {},
                                  const Documents& documents = {});

  ShortConvolutionOptions options;  ///< as they were given
  torch::Tensor weight;             ///< [channels, 1, kernel_size], as torch's Conv1d has it
  torch::Tensor bias;               ///< [channels], or undefined
};

/// Example: `ShortConvolution conv({.channels = 512});`
class ShortConvolution : public torch::nn::ModuleHolder<ShortConvolutionImpl> {
 public:
  using torch::nn::ModuleHolder<ShortConvolutionImpl>::ModuleHolder;
  explicit ShortConvolution(const ShortConvolutionOptions& options)
      : ModuleHolder(std::make_shared<ShortConvolutionImpl>(options)) {}
};

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/module/checks.hpp>

#include <torch/nn/init.h>

#include <cmath>
#include <ostream>

namespace attzoo {

ATTZOO_API ShortConvolutionImpl::ShortConvolutionImpl(const ShortConvolutionOptions& o)
    : options(o) {
  TORCH_CHECK_VALUE(o.channels > 0, "ShortConvolution: channels must be > 0, got ", o.channels);
  TORCH_CHECK_VALUE(o.kernel_size > 0, "ShortConvolution: kernel_size must be > 0, got ",
                    o.kernel_size);
  core::check_layer("ShortConvolution", "weight", o.kernel_size, o.channels,
                    c10::str(" channels=", o.channels, " kernel_size=", o.kernel_size));
  reset();
}

ATTZOO_API void ShortConvolutionImpl::reset() {
  weight = register_parameter("weight", torch::empty({options.channels, 1, options.kernel_size}));
  bias = register_parameter(
      "bias", options.bias ? torch::empty({options.channels}) : torch::Tensor(), options.bias);
  reset_parameters();
}

ATTZOO_API void ShortConvolutionImpl::reset_parameters() {
  const double bound = 1 / std::sqrt(static_cast<double>(options.kernel_size));
  torch::nn::init::uniform_(weight, -bound, bound);
  if (bias.defined()) torch::nn::init::uniform_(bias, -bound, bound);
}

ATTZOO_API void ShortConvolutionImpl::pretty_print(std::ostream& stream) const {
  stream << "attzoo::ShortConvolution(channels=" << options.channels
         << ", kernel_size=" << options.kernel_size << std::boolalpha << ", bias=" << options.bias
         << ", silu=" << options.silu << ")";
}

ATTZOO_API torch::Tensor ShortConvolutionImpl::forward(const torch::Tensor& x) {
  return convolve(x).output;
}

ATTZOO_API ShortConvolutionResult ShortConvolutionImpl::convolve(const torch::Tensor& x,
                                                                 const torch::Tensor& initial_state,
                                                                 const Documents& documents) {
  core::check_tokens(x, "ShortConvolution", "x", options.channels, weight, "channels");
  return short_convolution(
      x, weight.squeeze(1),
      {.bias = bias, .silu = options.silu, .initial_state = initial_state, .documents = documents});
}

}  // namespace attzoo

#endif
