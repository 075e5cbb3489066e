// The convolution of the up-sampled image in a chain, 3 x 3, and the pointwise one: see conv/sparse_up_conv2d.h.
#pragma once

#include <optional>

#include "cpu/chain/chain_conv.h"
#include "cpu/chain/conv_weights.h"

namespace oes::chain {

template <typename T>
class UpsampleConv : public ChainConv<T> {
 public:
  UpsampleConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns);

  void reserve(SharedBuffers<T>& buffers) const override;
  void set_weights(const T* weights) override;
  void forward(const ForwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  void backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  int64_t moments_pixels() const override;
  int64_t epilogue_chunks() const override;

 private:
  KeptWeights kept_; // where not all are computed with
  std::optional<AllWeights<T>> all_;
  conv::UpsampleConvWeights<T> weights_;
};

} // namespace oes::chain
