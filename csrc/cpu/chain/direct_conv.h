// Direct convolutions of a chain: over planes that conv_input makes of the image, with the kept weights or with all.
#pragma once

#include <vector>

#include "cpu/chain/chain_conv.h"
#include "cpu/chain/conv_weights.h"
#include "cpu/conv/conv_input.h"
#include "cpu/conv/dense_conv2d.h"
#include "cpu/conv/sparse_conv2d.h"

namespace oes::chain {

template <typename T>
class DirectConv : public ChainConv<T> {
 public:
  void reserve(SharedBuffers<T>& buffers) const override;
  void forward(const ForwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  void backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) override;
  int64_t constant_source_size() const override;
  bool constant_source_row_major() const override;
  int64_t planes_size() const override {
    return constant_input_ ? 0 : this->inputs_ * input_.plane_size();
  }

 protected:
  // Calls wants_flat(shape) for a constant input: whether its planes are to lie as images of their own.
  template <typename F>
  DirectConv(
      const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input, const F& wants_flat);

  // The sums over planes. `grad` is that of the result in its border of zeros, `centre` where it starts inside.
  virtual void sum(const T* planes, T* out) = 0;
  virtual void sum_weight_grads(const T* planes, const T* centre, T* weight_sums) = 0;
  virtual void add_weight_grads(const T* weight_sums, T* grad_weights) = 0;
  virtual void sum_back(const T* grad, T* grad_planes) = 0;
  virtual int64_t weight_sums() const = 0; // elements

  bool constant_input_;
  conv::ConvShape shape_{};

 private:
  Border border_;
  conv::ConvInput<T> input_{};
  Aligned<T> planes_;
};

// With the kept weights.
template <typename T>
class SparseConv : public DirectConv<T> {
 public:
  SparseConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input);
  void set_weights(const T* weights) override;

 protected:
  void sum(const T* planes, T* out) override;
  void sum_weight_grads(const T* planes, const T* centre, T* weight_sums) override;
  void add_weight_grads(const T* weight_sums, T* grad_weights) override;
  void sum_back(const T* grad, T* grad_planes) override;
  int64_t weight_sums() const override;

 private:
  int64_t macs() const;

  KeptWeights kept_;
  std::vector<T> weights_, back_weights_;
  Indices offsets_, first_; // of the taps of every output
  Indices back_order_, back_offsets_, back_first_; // of the taps that read every plane
  conv::SparseTapSum<T> sum_, back_sum_; // but for the images
  conv::SparseWeightGrad<T> weight_grad_;
};

// With all weights, and by Winograd's sums where these are faster.
template <typename T>
class DenseConv : public DirectConv<T> {
 public:
  DenseConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input);
  void set_weights(const T* weights) override;

 protected:
  void sum(const T* planes, T* out) override;
  void sum_weight_grads(const T* planes, const T* centre, T* weight_sums) override;
  void add_weight_grads(const T* weight_sums, T* grad_weights) override;
  void sum_back(const T* grad, T* grad_planes) override;
  int64_t weight_sums() const override;

 private:
  AllWeights<T> weights_;
  conv::DenseConv2d<T> conv_;
};

} // namespace oes::chain
