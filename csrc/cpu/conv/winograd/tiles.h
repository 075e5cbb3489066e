// What Winograd's form of a convolution and of the gradient of its weights share: the planes of a source cut into
// tiles, and what they look like at the transforms' frequencies. A tile of tile x tile outputs comes from points x
// points pixels, with points = tile + window - 1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/core/simd.h"

namespace oes::conv::winograd {

// Points of the transforms, but for the one at infinity. Of the pairs for six points tried, these round least: about
// as much as the direct sum, +-1 and +-2 or +-1/2 twice as much. Their squares are exact.
constexpr double kPoints4[] = {0, 1, -1};
constexpr double kPoints6[] = {0, 0.75, -0.75, 1.5, -1.5};

constexpr int64_t kSlack = 64; // elements that may be read, and are not used, behind the last plane of an image
constexpr int64_t kMostKernelTaps = 36; // of a kernel; also stands for a tap that it does not have

struct Shape {
  bool backward; // from the gradient of the result to that of the planes
  int64_t inputs, outputs, kernel, stride;
  int64_t rows, columns; // of the result, here the planes' if backward
  int64_t pitch, source_plane;

  // Rows of the window: taps of the even rows, where there are two classes.
  int64_t window() const {
    return (kernel - 1) / stride + 1;
  }
  // Whether there are transforms for it.
  bool served(int64_t tile) const {
    return std::min(rows, columns) >= tile &&
        (tile == 2 ? (window() == 3 && kernel <= 6) || (window() == 5 && stride == 1)
                   : window() == 3 && stride == 2 && kernel <= 6);
  }
  int64_t tiles(int64_t tile) const {
    return ceil_div(rows, tile) * ceil_div(columns, tile);
  }
  // Products for each tile, source plane and plane of the result, over all classes.
  int64_t frequencies(int64_t tile) const {
    const int64_t points = tile + window() - 1;
    const int64_t fewer = kernel % stride == 0 ? points : points - 1; // of the odd rows or columns
    return stride == 1 ? points * points : (points + fewer) * (points + fewer);
  }
};

constexpr double kWorthwhile = 0.85; // of the direct sum's time at most, measured with AVX2

// Side of the tile that takes least time, 0: the direct sum does.
template <typename F>
int fastest_tile(const Shape& shape, double direct, const F& time_of) {
  double least = kWorthwhile * direct;
  int fastest = 0;
  for (const int tile : {2, 4}) {
    const double time = shape.served(tile) ? time_of(tile) : least;
    if (time < least) {
      least = time;
      fastest = tile;
    }
  }
  return fastest;
}

// Tiles are counted row by row.
template <typename T>
struct Tiles {
  const T* source; // [source_planes, source_classes], source_plane elements each, rows of `pitch`
  int64_t planes, classes, rows, columns; // of the result
  int64_t source_planes, source_classes, source_plane, pitch;
  int tile, points;
  // Planes of the source behind one another: the sums of class k of the result at frequency f take those from taps[g]
  // to taps[g + 1], g = k * points * points + f. Transformed pixels lie from pixel_first[f] on, those of a class of the
  // source class_order[f][class] * source_planes further on (-1: it does not have the frequency).
  const int64_t *taps, *pixel_first, *class_order;
};

// The tables of a shape.
template <typename T>
struct Transforms {
  void bind(const Shape& shape, int tile);

  Tiles<T> tiles{};
  std::vector<int64_t> kernel_taps; // [classes, window, window]: tap of the kernel
  std::vector<int64_t> taps, pixel_first, class_order;
  std::vector<T> to_points; // [points, window], of the weights

 private:
  void bind_frequencies(const Shape& shape);
};

} // namespace oes::conv::winograd
