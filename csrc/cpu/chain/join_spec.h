// What a block of a chain computes that is no convolution: sums and concatenations of results, and maps of one result
// that change its size. Its value is kept, [outputs, rows, columns].
#pragma once

#include <cstdint>
#include <vector>

#include "common/chain_specs.h"

namespace oes::chain {

enum class JoinKind {
  kSum, // of channels of any inputs: concatenations too
  kResample, // interpolation along rows and columns
  kAveragePool,
  kMaxPool,
  kCrop,
  kPixelShuffle,
  kPrelu,
};

struct JoinSpec {
  JoinKind kind = JoinKind::kSum;
  Indices inputs; // numbers of the results that it reads; but for a sum it is one
  int64_t outputs = 0, rows = 0, columns = 0; // of the value
  // (output, input, channel of it) of every channel that goes into an output, in that order; an output of a pixel
  // shuffle is made of (output, phase, channel). Otherwise an output has one, but of a sum any number.
  Indices terms;
  // What is the same for all pixels, as in ConvSpec. Varying outputs come first, then the constant ones.
  Indices bias; // [outputs + constant outputs]
  Indices constant_terms; // (output, input, number of the constant, index of the weight or -1 for one) of each
  double scale = 1; // of those weights
  // Resampling: (two neighbouring rows of the image) of every row of the result, and their weights; columns likewise.
  Indices row_index, column_index;
  std::vector<double> row_weights, column_weights;
  int64_t window_rows = 1, window_columns = 1, stride_rows = 1, stride_columns = 1; // of a pooling
  int64_t top = 0, left = 0; // of a crop
  int64_t factor = 1; // of a pixel shuffle
  Indices slopes; // of a PReLU: index of the weight of every output, the constant ones too; -1: zero
};

// Of a result that is read.
struct ImageShape {
  int64_t channels, rows, columns, constants;
};

// Raises std::invalid_argument where the spec does not fit its inputs, or names something that is not there.
// `weights`: length of the flat vector.
void check_join(const JoinSpec& spec, const std::vector<ImageShape>& inputs, int64_t weights);

} // namespace oes::chain
