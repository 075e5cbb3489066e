// The program of a chain, which oes_fast/rewrite/chain_program.py writes: convolutions and batch norms one behind the
// other. A weight is named by its index in the flat vector of weights; -1 stands for a weight that is not there.
#pragma once

#include <cstdint>
#include <vector>

#include "common/enums.h"

namespace oes {

using Indices = std::vector<int64_t>;

struct ConvSpec {
  ConvKind kind = ConvKind::kDirect;
  Padding padding = Padding::kZeros;
  Indices border = {0, 0, 0, 0}; // left, right, top, bottom; of a direct convolution
  bool box = false; // sum of 2 x 2 pixels first
  int64_t stride = 1, kernel_rows = 1, kernel_columns = 1;
  int64_t outputs = 0;
  Indices taps; // (o, c, u, v) of every kept weight, in that order
  Indices weights; // their indices
  int64_t first_weight = -1; // or: all weights are kept, and lie from this index on; taps and weights are empty
  bool dense = false; // compute with all weights, those that the mask drops being zero, where the image is wide enough
  double scale = 1; // of the weights
  // What is the same for all pixels: a bias, and what constant input channels add. Varying outputs come first, then
  // the constant ones whose running statistics are kept.
  Indices bias; // [outputs + constant outputs]
  Indices constant_taps; // (output, index of the weight, number of the constant) of every kept weight
};

struct NormSpec {
  Indices gamma, beta; // [channels]
  double eps = 1e-5, momentum = 0.1;
  int64_t copies = 1; // pixels that stand for each
  bool tracks = false;
  Indices stats_index; // of the channels in the running statistics
  // Constants whose running statistics are kept, as the convolution or norm before counts them, -1 for zero; and
  // theirs.
  Indices tracked, tracked_stats_index;
  Act act = Act::kLeaky; // none is leaky with a slope of 1
  double slope = 1;
  Indices constants; // indices of the beta of every constant channel
};

} // namespace oes
