// Direct convolution with all of its weights, on the planes of sparse_conv2d.h. Faster than the sparse one from about
// half of the weights on: every pixel that is loaded serves a tile of outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv/sparse_conv2d.h"
#include "cpu/conv/winograd/conv2d.h"
#include "cpu/conv/winograd/weight_grad.h"

namespace oes::conv {

// out[p * classes + k][i][j] = sum over the taps t of class k of weights[k][p][t] * source[offsets[t] + i * pitch + j]:
// planes of a class read the same taps. A task is one strip of pixels for one group of tiles of planes.
template <typename T>
struct DenseTapSum {
  const T* source;
  T* out; // [planes, classes, rows, columns]
  const T* weights; // class by class, in tiles of planes
  const int64_t* offsets;
  const int64_t* first; // [classes + 1]
  int64_t classes, planes, rows, columns, pitch;
  bool flat; // the image is one row
  int64_t strip; // elements of a flat image, rows of another
  int64_t strips, groups;
  // Where the rows of all planes of the source lie side by side:
  int64_t taps_at_once, planes_at_once; // of whole channels, whose pixels stay in the cache
  int64_t wide; // columns of a plane
  int64_t ahead; // row of the source, from that of the output, that is fetched while the output's is summed
};

// partial[strip][o][t], in tiles of outputs = sum over the pixels of the strip of grad[o][i][j] * source[offsets[t] + i
// * pitch + j].
template <typename T>
struct DenseWeightGrad {
  const T* source;
  const T* grad; // as for SparseWeightGrad
  T* partial;
  const int64_t* offsets; // [taps]
  int64_t outputs, taps, rows, columns, pitch, grad_pitch, grad_plane;
  int64_t strips, strip_rows, groups;
  bool flat;
  int64_t rows_at_once, taps_at_once; // taps of whole channels
  int64_t ahead; // as of SparseWeightGrad
};

template <typename T>
void run(const DenseTapSum<T>& a);
template <typename T>
void run(const DenseWeightGrad<T>& a);

// A convolution bound to its shape: what of its taps the two sums need.
template <typename T>
class DenseConv2d {
 public:
  // Whether images of these sizes are wide enough for it.
  static bool fits(bool flat, int64_t rows, int64_t columns, int64_t pitch);

  // Whether the convolution takes fewer products by Winograd's way, which wants a flat image.
  static bool wants_flat(const ConvShape& shape);

  void bind(const ConvShape& shape);

  // weights [outputs, inputs, kernel rows, kernel columns], times scale.
  void set(const T* weights, T scale, bool backward);
  // Adds scale * gradient to grad, of the same shape, from the sums that run_weight_grad has left.
  void add_grads(const T* sums, T scale, T* grad) const;

  // The convolution, and the gradient of its planes from that of its result with a border of zeros: whichever way is
  // faster for the shape. winograd::kSlack more elements of a flat image may be read.
  void run_forward(const T* source, T* out) const;
  void run_backward(const T* source, T* out) const;
  // The sums of the gradient of the weights, likewise; grad as for SparseWeightGrad.
  void run_weight_grad(const T* source, const T* grad, T* sums) const;

  int64_t sums() const { // elements that run_weight_grad leaves
    return winograd_grad_.bound() ? winograd_grad_.sums() : grad_.strips * grad_.outputs * grad_.taps;
  }

 private:
  void bind_winograd(const ConvShape& shape);
  void set_forward(const T* weights, T scale);
  void set_backward(const T* weights, T scale);

  int64_t inputs_ = 0;
  DenseTapSum<T> forward_{}, backward_{}; // but for the images
  DenseWeightGrad<T> grad_{};
  std::vector<int64_t> offsets_, first_, back_offsets_, back_first_, back_taps_;
  std::vector<T> weights_, back_weights_;
  winograd::Conv2d<T> winograd_, back_winograd_;
  winograd::WeightGrad<T> winograd_grad_;
};

} // namespace oes::conv
