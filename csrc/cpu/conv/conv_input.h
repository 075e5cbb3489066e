// An image as a direct convolution reads it: normalised and activated, with a border, summed over 2 x 2 pixels where a
// pooling went before the convolution, split into even and odd rows and columns for stride 2. One read, one write.
#pragma once

#include <vector>

#include "cpu/norm/prologue.h"

namespace oes {

// What an image is continued with.
enum class Padding { kZeros, kReflect, kReplicate, kCircular };

} // namespace oes

namespace oes::frame {

// Which row or column of the image lies at each place of the bordered one; -1: zero.
struct Border {
  std::vector<int32_t> rows, columns;
  int64_t top = 0, left = 0;
  // The inverse: bordered rows that show row i are row_list[row_first[i]] .. row_list[row_first[i + 1]].
  std::vector<int32_t> row_first, row_list;
};

Border border(Padding padding, int64_t rows, int64_t columns, int64_t left, int64_t right, int64_t top, int64_t bottom);

template <typename T>
struct Frame {
  int64_t channels, rows, columns; // of the image
  const Border* border;
  bool box, split;
  PixelMap<T> map;
  const T* image;
  T* planes; // [channels, 1 or 4, plane_rows, plane_columns]
  // For the derivative:
  const T* grad_planes;
  T* grad_image;

  int64_t high() const { // of the bordered, summed image
    return static_cast<int64_t>(border->rows.size()) - (box ? 1 : 0);
  }
  int64_t wide() const {
    return static_cast<int64_t>(border->columns.size()) - (box ? 1 : 0);
  }
  int64_t plane_rows() const {
    return split ? (high() + 1) / 2 : high();
  }
  int64_t plane_columns() const {
    return split ? (wide() + 1) / 2 : wide();
  }
  int64_t plane_size() const {
    return (split ? 4 : 1) * plane_rows() * plane_columns();
  }
};

template <typename T>
void make(const Frame<T>& a);

// Gradient of the mapped image from that of the planes.
template <typename T>
void make_back(const Frame<T>& a);

// The gradient of a convolution's result in zeros: `top` rows above and `left` columns before, up to `high` rows of
// `pitch` elements; `left` more follow the last plane, for what reads on from the end of a row into the next.
template <typename T>
struct Bordered {
  int64_t channels, rows, columns, top, left, high, pitch;
  PixelGrad<T> grad;
  T* out; // [channels, high, pitch]
};

template <typename T>
void bordered(const Bordered<T>& a);

} // namespace oes::frame
