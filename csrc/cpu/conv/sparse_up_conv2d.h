// Convolution of the up-sampled image, over an unstructured mask: see oes_fast/reference/sparse_up_conv2d.py.
//
// With b[o, u, v] = sum over c of w[o, c, u, v] * x[c], images at the low resolution, a 3 x 3 convolution of the
// nearest up-sampling by 2 is
//
//   y[o, Y, X] = sum over u, v of b[o, u, v][floor((Y + u - 1) / 2), floor((X + v - 1) / 2)]
//
// with indices held inside the image (or zero outside). So every kept weight is multiplied once for a pixel of low
// resolution, and the rest are additions. A 1 x 1 convolution is the same without them.
//
// Work is cut into strips of rows that fit the second-level cache: all channels of the strip are normalised and
// activated into it, of_inputs, and only sums leave. Gradients: that of b is the sum of 2 x 2 pixels of the gradient of
// y, and the two products follow.
#pragma once

#include <vector>

#include "cpu/norm/prologue.h"

namespace oes::conv {

constexpr int64_t kUpsampleKernel = 9; // taps of its kernel; that of a pointwise convolution has 1

template <typename T>
struct UpsampleConv {
  int64_t inputs, outputs, rows, columns; // of the input
  int64_t kernel; // kUpsampleKernel, or 1
  bool zeros; // beyond the edge lies zero, not the edge
  int64_t strip_rows, strips, groups; // groups of outputs that share the work of a strip
  int64_t plane; // elements from one plane of a strip to the next
  int64_t tile; // vectors of a sum that stays in registers, at most
  bool dense; // all weights are there
  norm::Prologue<T> prologue;
  const T* source; // [inputs, rows, columns]
  const int64_t* first; // [outputs * kernel + 1]: the weights of b[o, u, v]
  const int32_t* offsets; // channel that each weight reads, times plane
  const T* weights; // dense: [tiles of outputs, kernel, inputs, outputs of the tile]
  T* out; // [outputs, 2 rows, 2 columns], or [outputs, rows, columns]
  double* moments; // [strips, outputs, 2]: mean and sum of squares about it; or nullptr
};

// What is done to the gradient of the mapped input on its way out: nothing; the sums that the derivative of the second
// batch norm needs; or the derivative of the activation, where there is no second, and the sums that the first needs.
enum class GradEpilogue { kNone, kSecondNormSums, kActivation };

template <typename T>
struct UpsampleConvGrad {
  int64_t inputs, outputs, rows, columns, kernel;
  bool zeros;
  int64_t strip_rows, strips, chunks,
      groups; // chunks of strips, summed apart; groups of channels share the work of one
  int64_t outputs_at_once, passes; // outputs whose gradients lie in the cache together
  bool dense;
  norm::Prologue<T> prologue;
  const T* source;
  norm::PrologueGrad<T> grad; // of y
  const int64_t* first;
  const int32_t* offsets;
  const int64_t* back_first; // [inputs * passes + 1]: the weights that read an input, pass by pass
  const int32_t* back_offsets; // which b of the pass each goes to, times plane
  const T* back_weights; // dense: [passes, tiles of inputs, outputs and kernel, inputs of the tile]
  T* grad_source; // [inputs, rows, columns], gradient of the mapped input as `epilogue` says, or nullptr
  GradEpilogue epilogue;
  double* epilogue_sums; // [strips, inputs, 2]: of the gradient, and of it times (input - mean), or (activated input -
                         // mean2)
  int64_t plane, near_vectors; // vectors of pixels whose channels stay in the first-level cache
  int64_t lanes; // of a vector
  // [chunks, weights, lanes]: gradient of the weights, still to be added up; dense: [chunks, weights], in the order of
  // UpsampleConv::weights; or nullptr.
  T* sums;
};

// to[indices[order[t]]] += scale * gradient of weight t, from the sums that upsample_conv_grad has left.
template <typename T>
struct AddGrads {
  const T* sums; // [chunks, count, lanes]
  int64_t chunks, count;
  const int64_t *order, *indices;
  T scale;
  T* to;
};

template <typename T>
void upsample_conv(const UpsampleConv<T>& a);

template <typename T>
void upsample_conv_grad(const UpsampleConvGrad<T>& a);

// The lists of weights in the orders that the two read them, and how their work is cut: which depends on sizes alone,
// so that results do not depend on the number of threads.
template <typename T>
class UpsampleConvWeights {
 public:
  // `taps` are (o, c, u, v) of every weight; values come and gradients go in that order. nullptr: all are there.
  void bind(
      int64_t inputs, int64_t outputs, int64_t rows, int64_t columns, int64_t kernel, bool zeros,
      const std::vector<int64_t>* taps);

  // weight t = scale * from[indices[t]].
  void set(const T* from, const int64_t* indices, T scale);
  // Adds scale * gradient of weight t to to[indices[t]], from the sums that upsample_conv_grad has left.
  void add_grads(const T* sums, const int64_t* indices, T scale, T* to) const;
  // The same of all weights [outputs, inputs, kernel].
  void set_dense(const T* from, T scale);
  void add_dense_grads(const T* sums, T scale, T* to) const;

  int64_t count() const {
    return static_cast<int64_t>(weights_.size());
  }
  int64_t sums() const { // elements of UpsampleConvGrad::sums
    return backward.chunks * count() * (backward.dense ? 1 : backward.lanes);
  }

  UpsampleConv<T> forward; // but for the prologue, the images and the sums
  UpsampleConvGrad<T> backward;

 private:
  void bind_dense();

  std::vector<int64_t> order_, back_order_, first_, back_first_;
  std::vector<int32_t> offsets_, source_offsets_, back_offsets_;
  std::vector<T> weights_, back_weights_;
};

} // namespace oes::conv
