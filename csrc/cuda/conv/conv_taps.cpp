#include "cuda/conv/conv_taps.h"

#include <algorithm>

namespace oes::cuda::conv {
namespace {

struct Weight {
  int output, input, row, column, index;
};

std::vector<Weight> kept_weights(const ConvSpec& spec, int inputs) {
  std::vector<Weight> kept;
  if (spec.first_weight < 0) {
    for (size_t t = 0; t < spec.weights.size(); ++t) {
      const int64_t* tap = &spec.taps[4 * t];
      kept.push_back(
          {static_cast<int>(tap[0]), static_cast<int>(tap[1]), static_cast<int>(tap[2]), static_cast<int>(tap[3]),
           static_cast<int>(spec.weights[t])});
    }
    return kept;
  }
  auto index = static_cast<int>(spec.first_weight);
  for (int o = 0; o < spec.outputs; ++o) {
    for (int c = 0; c < inputs; ++c) {
      for (int u = 0; u < spec.kernel_rows; ++u) {
        for (int v = 0; v < spec.kernel_columns; ++v) {
          kept.push_back({o, c, u, v, index++});
        }
      }
    }
  }
  return kept;
}

// Cells of `side` pixels whose results, moved by the box, cover a side of the padded image.
int cells_for(int padded, int side, const TapSumSpec& sum) {
  return (padded + sum.box_first + side - 1) / side - sum.first_cell;
}

ConvTaps direct_taps(const ConvSpec& spec, int inputs, int rows, int columns) {
  const auto outputs = static_cast<int>(spec.outputs), stride = static_cast<int>(spec.stride);
  const int kernel_rows = static_cast<int>(spec.kernel_rows), kernel_columns = static_cast<int>(spec.kernel_columns);
  const Border border{
      static_cast<int>(spec.border[2]), static_cast<int>(spec.border[0]), static_cast<int>(spec.border[3]),
      static_cast<int>(spec.border[1]), spec.padding};
  const int box = spec.box ? 1 : 0;
  const int padded_rows = rows + border.top + border.bottom, padded_columns = columns + border.left + border.right;
  ConvTaps conv;
  conv.out_rows = (padded_rows - box - kernel_rows) / stride + 1;
  conv.out_columns = (padded_columns - box - kernel_columns) / stride + 1;

  const Reading image{border, spec.box, stride};
  TapSumSpec& forward = conv.forward;
  forward.outputs = outputs;
  forward.channels = inputs;
  forward.reading = image;
  forward.rows = forward.row_cells = conv.out_rows;
  forward.columns = forward.column_cells = conv.out_columns;

  // Pixel stride * i + a of the padded image is in output i - k by the weight a + stride * k.
  const int reach_rows = (kernel_rows - 1) / stride, reach_columns = (kernel_columns - 1) / stride;
  TapSumSpec& back = conv.input_grad;
  back.outputs = inputs;
  back.channels = outputs;
  back.reading.border = {reach_rows, reach_columns, 0, 0, Padding::kZeros};
  back.side = stride;
  back.box = spec.box;
  back.box_first = -box;
  back.first_cell = -box;
  back.border = border;
  back.rows = rows;
  back.columns = columns;
  back.row_cells = cells_for(padded_rows, stride, back);
  back.column_cells = cells_for(padded_columns, stride, back);

  WeightGradSpec& grad = conv.weight_grad;
  grad.image_is_fixed = false;
  grad.fixed_channels = outputs;
  grad.moving_channels = inputs;
  grad.moving = image;
  grad.rows = conv.out_rows;
  grad.columns = conv.out_columns;

  for (const Weight& w : kept_weights(spec, inputs)) {
    const int a = w.row % stride, b = w.column % stride, k = w.row / stride, l = w.column / stride;
    const Tap tap{w.output, 0, w.input, a * stride + b, k, l, w.index};
    forward.taps.push_back(tap);
    grad.taps.push_back(tap);
    back.taps.push_back({w.input, a * stride + b, w.output, 0, reach_rows - k, reach_columns - l, w.index});
  }
  return conv;
}

// With s(r) = sum of w_u x(k) over 2 k - u = r, where x(k) is pixel k - 1 of the image continued by one pixel, pixel r
// of the result is s(r) + s(r + 1): the weight u = 0 stands in even sums at k = i, u = 2 there at k = i + 1, u = 1 in
// odd ones at k = i + 1. The gradient of x(k) is the sum of w_u (g(2 k - u - 1) + g(2 k - u)): with three zeros before
// g, the box at 2 k + 2 - u.
ConvTaps upsample_taps(const ConvSpec& spec, int inputs, int rows, int columns) {
  const auto outputs = static_cast<int>(spec.outputs);
  const Border around{1, 1, 1, 1, spec.padding};
  const Reading image{around, false, 1}, gradient{{3, 3, 0, 0, Padding::kZeros}, true, 2};
  ConvTaps conv;
  conv.out_rows = 2 * rows;
  conv.out_columns = 2 * columns;
  TapSumSpec& forward = conv.forward;
  forward.outputs = outputs;
  forward.channels = inputs;
  forward.reading = image;
  forward.side = 2;
  forward.row_cells = rows;
  forward.column_cells = columns;
  forward.box = true;
  forward.rows = conv.out_rows;
  forward.columns = conv.out_columns;

  TapSumSpec& back = conv.input_grad;
  back.outputs = inputs;
  back.channels = outputs;
  back.reading = gradient;
  back.row_cells = rows + 2;
  back.column_cells = columns + 2;
  back.border = around;
  back.rows = rows;
  back.columns = columns;

  WeightGradSpec& grad = conv.weight_grad;
  grad.image_is_fixed = true;
  grad.fixed_channels = inputs;
  grad.moving_channels = outputs;
  grad.fixed = image;
  grad.moving = gradient;
  grad.rows = rows + 2;
  grad.columns = columns + 2;

  const auto phase = [](int u) { return u == 1 ? 1 : 0; };
  const auto later = [](int u) { return u == 0 ? 0 : 1; };
  for (const Weight& w : kept_weights(spec, inputs)) {
    const int u = w.row, v = w.column;
    forward.taps.push_back({w.output, phase(u) * 2 + phase(v), w.input, 0, later(u), later(v), w.index});
    const Tap tap{w.input, 0, w.output, (2 - u) % 2 * 2 + (2 - v) % 2, (2 - u) / 2, (2 - v) / 2, w.index};
    back.taps.push_back(tap);
    grad.taps.push_back(tap);
  }
  return conv;
}

} // namespace

ConvTaps conv_taps(const ConvSpec& spec, int inputs, int rows, int columns) {
  return spec.kind == ConvKind::kUpsample ? upsample_taps(spec, inputs, rows, columns)
                                          : direct_taps(spec, inputs, rows, columns);
}

} // namespace oes::cuda::conv
