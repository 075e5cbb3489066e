// A convolution of a chain, of one of several kinds: bound to its spec and sizes once, then called with weights and
// images. See direct_conv.h, upsample_conv.h and head_conv.h for the kinds.
#pragma once

#include <cstdint>
#include <memory>

#include "common/chain_specs.h"
#include "cpu/conv/sparse_up_conv2d.h"
#include "cpu/core/workspace.h"
#include "cpu/norm/prologue.h"

namespace oes::chain {

// What all convolutions of a chain use, one after the other: as large as the largest needs.
template <typename T>
struct SharedBuffers {
  Aligned<T> grad_planes, padded_grad, weight_sums;
  Aligned<double> moments, head_weight_sums;
};

// The image that a convolution reads, mapped by the prologue as it is read, and where its result goes.
template <typename T>
struct ForwardArguments {
  const T* source; // [inputs, rows, columns]; or as constant_source_size says
  norm::Prologue<T> prologue;
  T* out; // [outputs, out rows, out columns]
  bool moments; // leave those of moments_pixels in the shared buffers
};

// The image that leaves the network, from a last convolution with no norm behind it.
template <typename T>
struct ImageArguments {
  OutputAct act;
  T slope;
  const T* shift; // [outputs]
  const T* target; // of the result; or nullptr
  const T* weight; // of its squared errors; or nullptr
  T* image; // as the result
};

template <typename T>
struct BackwardArguments {
  const T* source;
  norm::Prologue<T> prologue;
  norm::PrologueGrad<T> grad; // of the result
  T* grad_source; // of the mapped image, through `epilogue` where the kind has epilogue_chunks; or nullptr
  conv::GradEpilogue epilogue;
  T* grad_weights; // the flat vector, added to
};

template <typename T>
class ChainConv {
 public:
  ChainConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns)
      : spec_(spec), inputs_(inputs), rows_(rows), columns_(columns), out_rows_(rows), out_columns_(columns) {}
  virtual ~ChainConv() = default;

  int64_t out_rows() const {
    return out_rows_;
  }
  int64_t out_columns() const {
    return out_columns_;
  }
  int64_t out_pixels() const {
    return out_rows_ * out_columns_;
  }

  // Makes the shared buffers as large as this one needs.
  virtual void reserve(SharedBuffers<T>& buffers) const = 0;

  // From the flat vector, before the forward.
  virtual void set_weights(const T* weights) = 0;
  virtual void forward(const ForwardArguments<T>& a, SharedBuffers<T>& buffers) = 0;
  // A forward with the image that leaves the network; returns its mean squared error to the target, zero without one.
  // With a target the result is replaced by the gradient of the error to it.
  virtual double forward_image(const ForwardArguments<T>& a, const ImageArguments<T>& image, SharedBuffers<T>& buffers);
  // After a forward with the same weights and source.
  virtual void backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) = 0;

  // Pixels of the result in each chunk whose moments the forward leaves, [chunks, outputs, 2]; 0: it leaves none.
  virtual int64_t moments_pixels() const {
    return 0;
  }
  // Chunks of the image for which the backward leaves what its epilogue sums, [chunks, inputs, 2] in the shared
  // moments; 0: it leaves nothing, and the gradient has had no epilogue.
  virtual int64_t epilogue_chunks() const {
    return 0;
  }
  // Whether grad_source is written; else whoever reads it computes it: see grad_when_read.
  virtual bool writes_grad_source() const {
    return true;
  }
  virtual void grad_when_read(norm::PrologueGrad<T>&, const norm::Prologue<T>&) const {}

  // A constant source is given as a direct convolution reads it: its border, sums of 2 x 2 pixels and un-shuffled
  // planes made. Its elements, and whether the rows of all planes lie side by side, [rows, planes, columns]; else it is
  // [planes, rows, columns] with winograd::kSlack elements behind them that may be read.
  virtual int64_t constant_source_size() const {
    return 0;
  }
  virtual bool constant_source_row_major() const {
    return false;
  }
  // Elements of the image as it reads it, where it keeps that.
  virtual int64_t planes_size() const {
    return 0;
  }

 protected:
  ConvSpec spec_;
  int64_t inputs_, rows_, columns_; // of the image
  int64_t out_rows_, out_columns_;
};

// Binds a convolution. `constant_input`: the source is constant, see constant_source_size, and has no gradient.
// Raises std::invalid_argument where the spec does not fit the sizes or the kind.
template <typename T>
std::unique_ptr<ChainConv<T>> make_chain_conv(
    const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input);

} // namespace oes::chain
