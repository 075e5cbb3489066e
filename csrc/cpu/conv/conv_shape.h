// Sizes of a direct convolution on planes, see common/tap_offsets.h.
#pragma once

#include <cstdint>

#include "common/tap_offsets.h"

namespace oes::conv {

struct ConvShape {
  int64_t inputs, outputs, kernel_rows, kernel_columns, stride;
  int64_t rows, columns; // of the result
  int64_t plane_rows, plane_columns; // of the planes that it reads
  bool row_major; // see TapPlanes; else the image of all planes may be taken as flat: as one row

  TapPlanes planes() const {
    return {inputs, stride, plane_rows, plane_columns, row_major};
  }
  // Of the gradient of the result, whose rows are as long as the planes': what lies before a row lies behind the one
  // above.
  PaddedGradPlanes padded_grad() const {
    const int64_t top = tap_margin(kernel_rows, stride), left = tap_margin(kernel_columns, stride);
    return {stride, plane_rows + top, plane_columns, top, left};
  }
  int64_t padded_grad_plane() const { // elements
    return padded_grad().rows * padded_grad().pitch;
  }
  int64_t kernel_size() const {
    return kernel_rows * kernel_columns;
  }
  int64_t weight_numel() const {
    return outputs * inputs * kernel_size();
  }
};

} // namespace oes::conv
