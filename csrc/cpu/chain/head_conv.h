// The last convolution of a chain where it is pointwise, of few outputs, behind a single norm: see conv/output_head.h.
// Its backward writes no gradient of the image: the convolution before computes it as it reads it.
#pragma once

#include <vector>

#include "cpu/chain/chain_conv.h"
#include "cpu/chain/conv_weights.h"
#include "cpu/conv/output_head.h"

namespace oes::chain {

template <typename T>
class HeadConv : public ChainConv<T> {
 public:
  HeadConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns);

  void reserve(SharedBuffers<T>& buffers) const override;
  void set_weights(const T* weights) override;
  void forward(const ForwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  double forward_image(
      const ForwardArguments<T>& a, const ImageArguments<T>& image, SharedBuffers<T>& buffers) override;
  void backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  int64_t epilogue_chunks() const override;
  bool writes_grad_source() const override {
    return false;
  }
  void grad_when_read(norm::PrologueGrad<T>& grad, const norm::Prologue<T>& prologue) const override;

 private:
  conv::OutputHead<T> head(const norm::Prologue<T>& prologue, const T* source) const;

  KeptWeights kept_;
  Indices positions_; // of the kept ones in weights_
  std::vector<T> weights_; // as conv::OutputHead takes them
};

} // namespace oes::chain
