// An image as a direct convolution reads it: normalised and activated, with a border, summed over 2 x 2 pixels where a
// pooling went before the convolution, un-shuffled into even and odd rows and columns for stride 2. One read, one
// write.
#pragma once

#include "cpu/core/border.h"
#include "cpu/norm/prologue.h"

namespace oes::conv {

template <typename T>
struct ConvInput {
  int64_t channels, rows, columns; // of the image
  const Border* border;
  bool box, unshuffle;
  norm::Prologue<T> prologue;
  const T* image;
  T* planes; // [channels, 1 or 4, plane_rows, plane_columns]
  // For the derivative:
  const T* grad_planes;
  T* grad_image;

  int64_t high() const { // of the bordered, summed image
    return border->high() - (box ? 1 : 0);
  }
  int64_t wide() const {
    return border->wide() - (box ? 1 : 0);
  }
  int64_t plane_rows() const {
    return unshuffle ? (high() + 1) / 2 : high();
  }
  int64_t plane_columns() const {
    return unshuffle ? (wide() + 1) / 2 : wide();
  }
  int64_t plane_size() const {
    return (unshuffle ? 4 : 1) * plane_rows() * plane_columns();
  }
};

template <typename T>
void conv_input(const ConvInput<T>& a);

// Gradient of the image, mapped by the prologue, from that of the planes.
template <typename T>
void conv_input_backward(const ConvInput<T>& a);

// The gradient of a convolution's result in zeros: `top` rows above and `left` columns before, up to `high` rows of
// `pitch` elements. `left` more elements may follow the last plane, for what reads on from the end of a row into the
// next: those of `slack`.
template <typename T>
struct PaddedGrad {
  int64_t planes, rows, columns, top, left, high, pitch, slack;
  norm::PrologueGrad<T> grad; // without y it is the gradient as it is
  T* out; // [planes, high, pitch]
};

template <typename T>
void padded_grad(const PaddedGrad<T>& a);

} // namespace oes::conv
