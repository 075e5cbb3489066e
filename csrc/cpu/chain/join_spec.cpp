#include "cpu/chain/join_spec.h"

#include <algorithm>

#include "common/chain_checks.h"

namespace oes::chain {
namespace {

constexpr int64_t kMostWindow = 256; // pixels: the place of a maximum is a byte

int64_t size_of(const Indices& indices) {
  return static_cast<int64_t>(indices.size());
}

bool all_in(const Indices& indices, int64_t first, int64_t end) {
  return std::all_of(indices.begin(), indices.end(), [&](int64_t i) { return first <= i && i < end; });
}

void check_axis(const Indices& index, const std::vector<double>& weights, int64_t from, int64_t to) {
  expect(
      size_of(index) == 2 * to && weights.size() == index.size() && all_in(index, 0, from),
      "resampling: expected two rows or columns of the image, and their weights, for each of the result");
  for (size_t i = 0; i < index.size(); i += 2) {
    expect(
        index[i + 1] == index[i] || index[i + 1] == index[i] + 1,
        "resampling: expected rows or columns that are neighbours");
  }
}

bool fits_window(int64_t image, int64_t window, int64_t stride, int64_t results) {
  return window > 0 && stride > 0 && results > 0 && (results - 1) * stride < image && window <= image;
}

void check_map(const JoinSpec& spec, const ImageShape& image) {
  switch (spec.kind) {
    case JoinKind::kSum:
    case JoinKind::kPrelu:
      expect(spec.rows == image.rows && spec.columns == image.columns, "join: expected a result of the image's size");
      return;
    case JoinKind::kResample:
      check_axis(spec.row_index, spec.row_weights, image.rows, spec.rows);
      check_axis(spec.column_index, spec.column_weights, image.columns, spec.columns);
      return;
    case JoinKind::kAveragePool:
    case JoinKind::kMaxPool:
      expect(
          fits_window(image.rows, spec.window_rows, spec.stride_rows, spec.rows) &&
              fits_window(image.columns, spec.window_columns, spec.stride_columns, spec.columns) &&
              spec.window_rows * spec.window_columns <= kMostWindow,
          "pooling: expected windows of 256 pixels at most that begin inside the image");
      return;
    case JoinKind::kCrop:
      expect(
          spec.top >= 0 && spec.left >= 0 && spec.top + spec.rows <= image.rows &&
              spec.left + spec.columns <= image.columns,
          "crop: expected a rectangle inside the image");
      return;
    case JoinKind::kPixelShuffle:
      expect(
          spec.factor > 0 && spec.rows == spec.factor * image.rows && spec.columns == spec.factor * image.columns,
          "pixel shuffle: expected a result of the image's size times the factor");
      return;
  }
}

void check_terms(const JoinSpec& spec, const std::vector<ImageShape>& inputs) {
  const bool sums = spec.kind == JoinKind::kSum, shuffles = spec.kind == JoinKind::kPixelShuffle;
  const int64_t seconds = shuffles ? spec.factor * spec.factor : size_of(spec.inputs);
  expect(spec.terms.size() % 3 == 0, "terms: expected three numbers for each");
  std::vector<bool> read(sums ? 0 : inputs[0].channels);
  int64_t before = -1;
  for (size_t t = 0; t < spec.terms.size(); t += 3) {
    const int64_t output = spec.terms[t], second = spec.terms[t + 1], channel = spec.terms[t + 2];
    expect(
        output >= std::max<int64_t>(before, 0) && output < spec.outputs && second >= 0 && second < seconds &&
            channel >= 0 && channel < inputs[sums ? second : 0].channels,
        "terms: expected ascending outputs, inputs and channels that are there");
    expect(sums || shuffles || output == before + 1, "terms: expected one for each output");
    if (!sums) {
      expect(!read[channel], "terms: expected each channel to be read once");
      read[channel] = true;
    }
    before = output;
  }
  expect(sums || shuffles || size_of(spec.terms) == 3 * spec.outputs, "terms: expected one for each output");
}

} // namespace

void check_join(const JoinSpec& spec, const std::vector<ImageShape>& inputs, int64_t weights) {
  expect(spec.outputs >= 0, "join: expected outputs");
  expect(spec.kind == JoinKind::kSum || inputs.size() == 1, "join: expected one input, but of a sum");
  expect(
      spec.rows > 0 && spec.columns > 0 && spec.rows <= INT32_MAX && spec.columns <= INT32_MAX,
      "join: expected a result of rows and columns");
  expect(spec.outputs == 0 ? spec.terms.empty() : !inputs.empty(), "join: expected an input of what is not constant");
  if (spec.outputs > 0) {
    for (const ImageShape& image : inputs) {
      check_map(spec, image);
    }
    check_terms(spec, inputs);
  }
  expect(size_of(spec.bias) >= spec.outputs, "bias: expected an index for each output");
  expect(all_in(spec.bias, -1, weights), "bias: expected indices inside the flat vector");
  expect(spec.constant_terms.size() % 4 == 0, "constant_terms: expected four numbers for each");
  for (size_t t = 0; t < spec.constant_terms.size(); t += 4) {
    const int64_t* term = &spec.constant_terms[t];
    expect(
        term[0] >= 0 && term[0] < size_of(spec.bias) && term[1] >= 0 && term[1] < size_of(spec.inputs) &&
            term[2] >= 0 && term[2] < inputs[term[1]].constants && term[3] >= -1 && term[3] < weights,
        "constant_terms: expected an output, an input, a constant and a weight that are there");
  }
  if (spec.kind == JoinKind::kPrelu) {
    expect(
        spec.slopes.size() == spec.bias.size() && all_in(spec.slopes, -1, weights),
        "slopes: expected an index inside the flat vector for each output");
  }
}

} // namespace oes::chain
