// Dense convolutions with fewer products (Winograd's): a tile of outputs comes from the products of transformed pixels
// and transformed weights at `points` x `points` frequencies, instead of one for every output and tap.
//
// A convolution on the planes of dense_conv2d.h and the gradient of those planes are both one sum of windows:
//
//   out[p * classes + k][i][j] = sum over source planes q, a, b of weight * source[q][i + a][j + b], a, b < window.
//
// With stride 2 the planes of the source (backward: of the result) come in four classes, the even and odd rows and
// columns. Where a class has fewer taps than the window some of its transformed weights are zero, and left out.
#pragma once

#include <cstdint>
#include <vector>

#include "scratch.h"

namespace oes::winograd_conv2d {

constexpr int64_t kSlack = 64; // elements that may be read, and are not used, behind the last plane of a source

// A unit of work is one strip of tiles for one group of the result's planes. Tiles are counted row by row; a strip of
// them may begin and end inside a row.
template <typename T>
struct Sum {
  const T* source; // [source_planes, source_classes], source_plane elements each, rows of `pitch`
  T* out; // [planes, classes, rows, columns]
  const T* weights; // see Conv::set
  int64_t planes, classes, rows, columns;
  int64_t source_planes, source_classes, source_plane, pitch;
  int tile, points; // a tile is tile x tile outputs, from points x points pixels
  // Planes of the source behind one another: the sums of class k of the result at frequency f take those from taps[g]
  // to taps[g + 1], g = k * points * points + f. Transformed pixels lie from places[f] on, those of a class of the
  // source slots[f][class] * source_planes further on (-1: it does not have the frequency).
  const int64_t *taps, *places, *slots;
  const int64_t* offsets; // of the pixels of a frequency's planes
  int64_t strips, groups;
};

template <typename T>
void run(const Sum<T>& a);

// One direction of a convolution, bound to its shape.
template <typename T>
class Conv {
 public:
  struct Shape {
    bool backward; // from the gradient of the result to that of the planes
    int64_t inputs, outputs, kernel, stride;
    int64_t rows, columns; // of the result, here the planes' if backward
    int64_t pitch, source_plane;
  };

  // Whether it is faster than the direct sum.
  static bool fits(const Shape& shape);

  void bind(const Shape& shape);

  bool bound() const {
    return sum_.weights != nullptr;
  }

  // weights [outputs, inputs, kernel, kernel], times scale. They are kept by classes of the result, in each by parts of
  // planes, in those by frequency, in those by blocks (see block.h).
  void set(const T* weights, T scale);

  void run(const T* source, T* out) const;

 private:
  void bind_frequencies(int64_t window);
  void set_block(const T* weights, T scale, int64_t from, int64_t to, int64_t p, int64_t rows);

  Shape shape_{};
  Sum<T> sum_{};
  std::vector<int64_t> kernel_taps_; // [classes, window, window]: place in the kernel
  std::vector<int64_t> taps_, places_, slots_, offsets_;
  std::vector<T> to_points_; // [points, window]
  Aligned<T> weights_;
};

} // namespace oes::winograd_conv2d
