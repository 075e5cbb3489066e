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

#include "cpu/conv/winograd/tiles.h"
#include "cpu/core/workspace.h"

namespace oes::conv::winograd {

// A task is one strip of tiles for one group of the result's planes. A strip may begin and end inside a row.
template <typename T>
struct TapSum : Tiles<T> {
  T* out; // [planes, classes, rows, columns]
  const T* weights; // see Conv2d::set
  const int64_t* offsets; // of the pixels of a frequency's planes
  int64_t strips, tasks_of_strip;
};

template <typename T>
void run(const TapSum<T>& a);

// One direction of a convolution, bound to its shape.
template <typename T>
class Conv2d {
 public:
  // Whether it is faster than the direct sum.
  static bool fits(const Shape& shape);

  void bind(const Shape& shape);

  bool bound() const {
    return sum_.weights != nullptr;
  }

  // weights [outputs, inputs, kernel, kernel], times scale. They are kept by classes of the result, in each by groups
  // of planes, in those by frequency, in those by tiles (see output_tiles.h).
  void set(const T* weights, T scale);

  void run(const T* source, T* out) const;

 private:
  void set_tile(const T* weights, T scale, int64_t from, int64_t to, int64_t p, int64_t rows);

  Shape shape_{};
  Transforms<T> transforms_;
  TapSum<T> sum_{};
  std::vector<int64_t> offsets_;
  Aligned<T> weights_;
};

} // namespace oes::conv::winograd
