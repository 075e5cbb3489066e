// What the kernels of sparse_conv2d are given: see sparse_conv2d.cpp for the ops around them.
//
// Images lie in planes. At stride 1 a plane is a channel; at stride 2 a channel is split into four planes, its even
// and odd rows and columns, so that either way a tap reads its plane at a fixed distance from the output pixel:
// output (i, j) needs source[offset + i * pitch + j].
//
// Images are taken as one long row: pixels beyond the right edge are computed and left out, which costs less
// than vectors that are not full. Sums run over the taps in one fixed order, whatever the split of the work.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace oes::sparse_conv2d {

constexpr int kWide = 4; // vectors across a tile of a wide image
constexpr int kFlat = 12; // vectors in a strip of a narrow image, taken as one row
constexpr int kTapsAtOnce = 6; // weight gradients computed in one pass over an output's gradient

// out[p][i][j] = sum over the taps t of p of weights[t] * source[offsets[t] + i * pitch + j]. A unit of work is one
// strip of one image for one group of planes p.
template <typename T>
struct Gather {
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
struct Dot {
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

// Cuts the work and does it; `macs` are the multiply-accumulates of all of it.
template <typename T>
void run(Gather<T> a, int64_t images, int64_t macs);

// Cuts the work of a, whose rows and columns are the output's; a flat one has the gradient at the source's pitch.
template <typename T>
void cut(Dot<T>& a, bool flat, int64_t images);
template <typename T>
void run(const Dot<T>& a, int64_t images, int64_t macs);

// Adds scale * gradient of weight t to to[indices[t]], from the sums that the strips of one image have left.
template <typename T>
void add_grads(const Dot<T>& a, const T* partial, const int64_t* indices, T scale, T* to);

} // namespace oes::sparse_conv2d
