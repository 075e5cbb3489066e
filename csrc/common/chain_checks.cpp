#include "common/chain_checks.h"

#include <algorithm>
#include <stdexcept>

namespace oes {
namespace {

// Whether first <= index < end for all.
bool all_in(const Indices& indices, int64_t first, int64_t end) {
  return std::all_of(indices.begin(), indices.end(), [&](int64_t i) { return first <= i && i < end; });
}

} // namespace

void expect(bool holds, const char* what) {
  if (!holds) {
    throw std::invalid_argument(what);
  }
}

void check_conv(
    const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, int64_t constants, int64_t weights) {
  const int64_t outputs = spec.outputs;
  expect(spec.taps.size() == 4 * spec.weights.size(), "taps: expected four numbers for each weight");
  expect(
      outputs > 0 && spec.kernel_rows > 0 && spec.kernel_columns > 0 && (spec.stride == 1 || spec.stride == 2),
      "convolution: expected outputs, a kernel, and a stride of 1 or 2");
  expect(all_in(spec.weights, 0, weights), "weights: expected indices inside the flat vector");
  const int64_t numel = outputs * inputs * spec.kernel_rows * spec.kernel_columns;
  expect(
      spec.first_weight < 0 || (spec.weights.empty() && spec.first_weight + numel <= weights),
      "first_weight: expected all weights inside the flat vector, and none named beside them");
  expect(static_cast<int64_t>(spec.bias.size()) >= outputs, "bias: expected an index for each output");
  expect(all_in(spec.bias, -1, weights), "bias: expected indices inside the flat vector");
  expect(spec.border.size() == 4 && all_in(spec.border, 0, INT32_MAX), "border: expected four widths");
  if (spec.padding == Padding::kReflect || spec.padding == Padding::kCircular) {
    const int64_t most = spec.padding == Padding::kReflect ? 0 : 1;
    expect(
        std::max(spec.border[0], spec.border[1]) < columns + most &&
            std::max(spec.border[2], spec.border[3]) < rows + most,
        "border: expected less than the image");
  }
  expect(spec.constant_taps.size() % 3 == 0, "constant_taps: expected three numbers for each");
  for (size_t i = 0; i < spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &spec.constant_taps[i];
    expect(
        tap[0] >= 0 && tap[0] < static_cast<int64_t>(spec.bias.size()) && tap[1] >= 0 && tap[1] < weights &&
            tap[2] >= 0 && tap[2] < constants,
        "constant_taps: expected an output, a weight and a constant that are there");
  }
  for (size_t t = 0; t < spec.weights.size(); ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    expect(
        tap[0] >= 0 && tap[0] < outputs && tap[1] >= 0 && tap[1] < inputs && tap[2] >= 0 && tap[2] < spec.kernel_rows &&
            tap[3] >= 0 && tap[3] < spec.kernel_columns &&
            (t == 0 || std::lexicographical_compare(tap - 4, tap, tap, tap + 4)),
        "taps: expected ascending indices inside the weight");
  }
}

void check_norm(const NormSpec& spec, int64_t channels, int64_t constants, int64_t weights) {
  const auto each = static_cast<size_t>(channels);
  expect(spec.gamma.size() == each && spec.beta.size() == each, "norm: expected a weight for each channel");
  expect(
      all_in(spec.gamma, -1, weights) && all_in(spec.beta, -1, weights) && all_in(spec.constants, 0, weights),
      "norm: expected indices inside the flat vector");
  expect(spec.eps >= 0 && spec.copies >= 1, "norm: expected eps >= 0 and one copy or more");
  if (!spec.tracks) {
    return;
  }
  expect(
      spec.stats_index.size() == each && all_in(spec.stats_index, 0, INT32_MAX),
      "stats_index: expected one for each channel");
  expect(
      spec.tracked.size() == spec.tracked_stats_index.size() && all_in(spec.tracked, -1, constants) &&
          all_in(spec.tracked_stats_index, 0, INT32_MAX),
      "tracked: expected constants that are there, with an index for each");
}

} // namespace oes
