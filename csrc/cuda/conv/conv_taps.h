// What a convolution of a chain comes to: sums over taps forward and backward, and one product for each weight.
#pragma once

#include <vector>

#include "common/chain_specs.h"
#include "cuda/conv/tap_lists.h"

namespace oes::cuda::conv {

struct Border {
  int top = 0, left = 0, bottom = 0, right = 0;
  Padding padding = Padding::kZeros;
};

// How an image is read, see PlaneReader.
struct Reading {
  Border border;
  bool box = false;
  int unshuffle = 1;
};

// A sum over taps, see TapSumArgs, and what is done to its result, see Epilogue.
struct TapSumSpec {
  std::vector<Tap> taps;
  int outputs, channels; // written, read
  Reading reading;
  int side = 1;
  int first_cell = 0, row_cells = 0, column_cells = 0; // first_cell: of rows and columns
  bool box = false;
  int box_first = 0;
  Border border; // of the image written
  int rows = 0, columns = 0; // of the image written
};

// The gradient of the weights, see WeightGradArgs; a tap's output is a channel of what stays fixed.
struct WeightGradSpec {
  std::vector<Tap> taps;
  bool image_is_fixed; // and the gradient moves
  int fixed_channels, moving_channels;
  Reading fixed, moving;
  int rows, columns; // cells
};

struct ConvTaps {
  TapSumSpec forward, input_grad;
  WeightGradSpec weight_grad;
  int out_rows, out_columns;
};

// The convolution of an image of `inputs` channels.
ConvTaps conv_taps(const ConvSpec& spec, int inputs, int rows, int columns);

} // namespace oes::cuda::conv
