// Where the taps (o, c, u, v) of a convolution read: for every engine, in elements of one image.
//
// An image lies in planes. At stride 1 a plane is a channel; at stride 2 a channel is un-shuffled into four planes, its
// even and odd rows and columns (torch.nn.functional.pixel_unshuffle of an image padded to even sizes). Either way a
// tap reads its plane at a fixed distance from the output pixel: output (i, j) needs source[offset + i * pitch + j].
//
// kernels/sparse_conv2d.py holds the same for Triton; tests/test_tap_offsets.py holds the two together.
#pragma once

#include <cstdint>

namespace oes {

// The planes that a convolution reads.
struct TapPlanes {
  int64_t inputs, stride; // channels; 1 or 2
  int64_t rows, columns; // of a plane
  bool row_major =
      false; // the rows of all planes lie side by side: [rows, planes, columns], not [planes, rows, columns]

  // Planes of a channel.
  int64_t phases() const {
    return stride * stride;
  }
  int64_t planes() const {
    return inputs * phases();
  }
  // Elements from one row of a plane to the next.
  int64_t pitch() const {
    return row_major ? planes() * columns : columns;
  }
  // The plane that tap (c, u, v) reads.
  int64_t plane_of(int64_t c, int64_t u, int64_t v) const {
    return c * phases() + u % stride * stride + v % stride;
  }
  // Where in the image it reads for output (0, 0).
  int64_t offset_of(int64_t c, int64_t u, int64_t v) const {
    const int64_t plane = plane_of(c, u, v), row = u / stride, column = v / stride;
    return (row_major ? row * planes() + plane : plane * rows + row) * columns + column;
  }
};

// The gradient of a convolution's result in a border of zeros, which the gradient of the planes is a sum over: `top`
// rows above and `left` elements before each row, as far as a tap reaches in its plane.
struct PaddedGradPlanes {
  int64_t stride, rows, pitch; // of a plane, its border included
  int64_t top, left;

  // Where tap (o, u, v) reads for pixel (0, 0) of its plane.
  int64_t offset_of(int64_t o, int64_t u, int64_t v) const {
    return (o * rows + top - u / stride) * pitch + left - v / stride;
  }
};

// How far a tap of a kernel of that side reaches in its plane.
constexpr int64_t tap_margin(int64_t kernel_side, int64_t stride) {
  return (kernel_side - 1) / stride;
}

} // namespace oes
