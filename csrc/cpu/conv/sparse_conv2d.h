// Convolution over an unstructured mask: see oes_fast/reference/sparse_conv2d.py.
//
// Forward and input gradient are the same sum over taps (SparseTapSum), the second over the output's gradient with a
// border of zeros: for each input plane the taps that read it, so that no two threads write one element. The weight
// gradient is one product of two images for every tap (SparseWeightGrad), summed strip by strip and over the strips in
// double. Where taps read: common/tap_offsets.h.
//
// Images are taken as one long row: pixels beyond the right edge are computed and left out, which costs less than
// vectors that are not full. Sums run over the taps in one fixed order, and how the work is cut depends on shapes
// alone: the result has the same bits for every number of threads, and differs by rounding between instruction sets.
#pragma once

#include <cstdint>

#include "cpu/conv/conv_shape.h"
#include "cpu/core/simd.h"

namespace oes::conv {

constexpr int kRowVectors = 4; // vectors that a row of an image has at least to be taken as a row
constexpr int kFlatVectors = 12; // vectors in a strip of an image that is taken as one row
constexpr int kTapsAtOnce = 6; // weight gradients computed in one pass over an output's gradient

// out[p][i][j] = sum over the taps t of p of weights[t] * source[offsets[t] + i * pitch + j]. A task is one
// strip of one image for one group of planes p.
template <typename T>
struct SparseTapSum {
  const T* source;
  T* out; // [images, planes, rows, columns]
  const T* weights;
  const int64_t* offsets;
  const int64_t* first; // [planes + 1]: the taps of plane p are first[p] .. first[p + 1]
  int64_t planes, rows, columns, pitch;
  int64_t source_image; // elements from one image to the next
  int64_t strips, groups;
  bool flat; // strips of the image as one row, not of rows
  int64_t strip_rows;
  int64_t ahead; // row of the source, from that of the output, that is fetched while the output's is summed
  int64_t planes_of_row; // 0; or, where the rows of all planes lie side by side, how many planes: rows are prefetched
};

// partial[image, strip][t] = sum over the pixels of the strip of grad[o][i][j] * source[offsets[t] + i * pitch + j].
template <typename T>
struct SparseWeightGrad {
  const T* source;
  const T* grad; // [images, outputs, rows * grad_pitch]; in a flat image zero beyond the right edge
  T* partial; // [images, strips, taps]
  const int64_t* offsets;
  const int64_t* first; // [outputs + 1]
  int64_t outputs, taps, rows, columns, pitch, grad_pitch;
  int64_t source_image, grad_plane;
  int64_t strips, strip_rows, groups; // a flat image has one row, and strip_rows is elements
  bool flat;
  int64_t ahead = 0; // where the rows of all planes lie side by side: how far a tap reaches; those behind are fetched
};

// The sums of a convolution of one image, but for the images, the weights and the taps: forward, and of the gradient of
// the planes from that of the result in its border of zeros.
template <typename T>
SparseTapSum<T> forward_sum(const ConvShape& shape);
template <typename T>
SparseTapSum<T> backward_sum(const ConvShape& shape);
// Likewise of the gradient of the weights; the gradient of the result has its border of zeros.
template <typename T>
SparseWeightGrad<T> weight_grad_sum(const ConvShape& shape);

// Cuts the work into tasks and does it; `macs` are the multiply-accumulates of all of it.
template <typename T>
void run(SparseTapSum<T> a, int64_t images, int64_t macs);

// Decides how the work of a is cut, whose rows and columns are the output's; a flat one has the gradient at the
// source's pitch.
template <typename T>
void plan_tasks(SparseWeightGrad<T>& a, bool flat, int64_t images);
template <typename T>
void run(const SparseWeightGrad<T>& a, int64_t images, int64_t macs);

// Adds scale * gradient of weight t to to[indices[t]], from the sums that the strips of one image have left.
template <typename T>
void add_grads(const SparseWeightGrad<T>& a, const T* partial, const int64_t* indices, T scale, T* to);

} // namespace oes::conv
