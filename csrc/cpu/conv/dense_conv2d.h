// Direct convolution with all of its weights, on the planes of sparse_conv2d.h. Faster than the sparse one from about
// half of the weights on: every pixel that is loaded serves a block of outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv/sparse_conv2d.h"
#include "cpu/conv/winograd/conv2d.h"
#include "cpu/conv/winograd/weight_grad.h"

namespace oes::dense_conv2d {

// out[p * classes + k][i][j] = sum over the taps t of class k of weights[k][p][t] * source[offsets[t] + i * pitch + j]:
// planes of a class read the same taps. A unit of work is one strip of pixels for one group of blocks of planes.
template <typename T>
struct Gather {
  const T* source;
  T* out; // [planes, classes, rows, columns]
  const T* weights; // class by class, in blocks
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

// partial[strip][o][t], in blocks = sum over the pixels of the strip of grad[o][i][j] * source[offsets[t] + i * pitch + j].
template <typename T>
struct Dot {
  const T* source;
  const T* grad; // as for sparse_conv2d::Dot
  T* partial;
  const int64_t* offsets; // [taps]
  int64_t outputs, taps, rows, columns, pitch, grad_pitch, grad_plane;
  int64_t strips, strip_rows, groups;
  bool flat;
  int64_t rows_at_once, taps_at_once; // taps of whole channels
  int64_t ahead; // as of sparse_conv2d::Dot
};

template <typename T>
void run(const Gather<T>& a);
template <typename T>
void run(const Dot<T>& a);

// A convolution bound to its shape: what of its taps the two sums need.
template <typename T>
class Conv {
 public:
  // Whether images of these sizes are wide enough for it.
  static bool fits(bool flat, int64_t rows, int64_t columns, int64_t pitch);

  // Whether the convolution takes fewer products by Winograd's way, which wants a flat image.
  static bool wants_flat(
      int64_t inputs, int64_t kernel_rows, int64_t kernel_columns, int64_t stride,
      const sparse_conv2d::Gather<T>& forward, const sparse_conv2d::Gather<T>& backward);

  // Shapes as of the sparse sums: `forward`, `backward` and `dot` give everything but the taps and how work is cut.
  void bind(
      int64_t inputs, int64_t kernel_rows, int64_t kernel_columns, int64_t stride, bool flat,
      const sparse_conv2d::Gather<T>& forward, const sparse_conv2d::Gather<T>& backward,
      const sparse_conv2d::Dot<T>& dot, const std::vector<int64_t>& offsets, int64_t top, int64_t left,
      int64_t bordered_plane);

  // weights [outputs, inputs, kernel rows, kernel columns], times scale.
  void set(const T* weights, T scale, bool backward);
  // Adds scale * gradient to grad, of the same shape, from the sums that run_dot has left.
  void add_grads(const T* sums, T scale, T* grad) const;

  // The convolution, and the gradient of its planes from that of its result with a border of zeros: whichever way is
  // faster for the shape. winograd::kSlack more elements of a flat image may be read.
  void run_forward(const T* source, T* out) const;
  void run_backward(const T* source, T* out) const;
  // The sums of the gradient of the weights, likewise; grad as for sparse_conv2d::Dot.
  void run_dot(const T* source, const T* grad, T* sums) const;

  int64_t sums() const { // elements that run_dot leaves
    return winograd_grad_.bound() ? winograd_grad_.sums() : dot.strips * dot.outputs * dot.taps;
  }

  Gather<T> forward, backward; // but for the images
  Dot<T> dot;

 private:
  void bind_winograd(
      int64_t kernel_rows, int64_t kernel_columns, int64_t stride, bool flat,
      const sparse_conv2d::Gather<T>& of_outputs, const sparse_conv2d::Gather<T>& of_inputs,
      const sparse_conv2d::Dot<T>& of_weights);
  void set_forward(const T* weights, T scale);
  void set_backward(const T* weights, T scale);

  int64_t inputs_ = 0;
  std::vector<int64_t> offsets_, first_, back_offsets_, back_first_, back_taps_;
  std::vector<T> weights_, back_weights_;
  winograd::Conv<T> winograd_, back_winograd_;
  winograd::Grad<T> winograd_grad_;
};

} // namespace oes::dense_conv2d
