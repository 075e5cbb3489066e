// Images made of the results of a chain: sums and concatenations, and maps of one that change its size. What is read
// goes through its prologue (normalised and activated) on the way; gradients are those of the mapped image.
//
// Work is cut into channels and rows, and every element is summed by one task in one order: results do not depend on
// the number of threads.
#pragma once

#include <vector>

#include "cpu/norm/prologue.h"

namespace oes::join {

template <typename T>
struct MappedImage {
  const T* y; // [channels, rows, columns]
  norm::Prologue<T> prologue;
};

// Of every output the sum of the channels named by terms first[o] .. first[o + 1].
template <typename T>
struct SumImages {
  int64_t outputs, pixels;
  const MappedImage<T>* images;
  const int64_t *first, *input, *channel;
  T* out;
};

// The gradient of one image: of channel c the sum of those of outputs[first[c]] .. outputs[first[c + 1]].
template <typename T>
struct SumGrad {
  int64_t channels, pixels;
  const int64_t *first, *outputs;
  const T* grad;
  bool add; // to what is there
  T* to;
};

// What maps of one image have in common. `channel` is that of the image for each output; for a pixel shuffle for each
// output and phase, -1 for zero. `output` is the inverse, -1 for a channel that nothing reads.
template <typename T>
struct Map {
  int64_t outputs, channels;
  int64_t rows, columns; // of the image
  int64_t out_rows, out_columns;
  const int64_t *channel, *output;
  MappedImage<T> image;
  T* out; // [outputs, out rows, out columns]
  const T* grad; // of `out`
  bool add; // the gradient of the image to what is there
  T* grad_image;
};

// Weighted sums of two neighbouring rows or columns, and the derivative.
enum class Stretch { kTwiceNearest, kTwiceLinear, kAny };

template <typename T>
struct Axis {
  Stretch form = Stretch::kAny;
  std::vector<int64_t> index; // [result, 2]
  std::vector<T> weights;
  std::vector<int64_t> back_first, back_list; // results that read each row or column of the image
  std::vector<T> back_weights;

  void bind(const std::vector<int64_t>& indices, const std::vector<double>& of_indices, int64_t size);
};

template <typename T>
struct Resample : Map<T> {
  const Axis<T>*row_axis, *column_axis;
};

template <typename T>
struct Pool : Map<T> {
  int64_t window_rows, window_columns, stride_rows, stride_columns;
  uint8_t* place; // [outputs, out rows, out columns]: of the maximum in its window; nullptr: the average
};

template <typename T>
struct Crop : Map<T> {
  int64_t top, left;
};

template <typename T>
struct PixelShuffle : Map<T> {
  int64_t factor;
};

template <typename T>
struct Prelu : Map<T> {
  const T* slopes; // [outputs]
  double* sums; // [outputs, prelu_chunks]: gradients of the slopes; or nullptr
};

int64_t prelu_chunks(int64_t pixels);

template <typename T>
void sum_images(const SumImages<T>& a);
template <typename T>
void sum_grad(const SumGrad<T>& a);
template <typename T>
void resample(const Resample<T>& a);
template <typename T>
void resample_grad(const Resample<T>& a);
template <typename T>
void pool(const Pool<T>& a);
template <typename T>
void pool_grad(const Pool<T>& a);
template <typename T>
void crop(const Crop<T>& a);
template <typename T>
void crop_grad(const Crop<T>& a);
template <typename T>
void pixel_shuffle(const PixelShuffle<T>& a);
template <typename T>
void pixel_shuffle_grad(const PixelShuffle<T>& a);
template <typename T>
void prelu(const Prelu<T>& a);
template <typename T>
void prelu_grad(const Prelu<T>& a);

// In place: the gradient of a norm's input from that of its result, see norm::PrologueGrad, whose own gradient is
// `grad`.
template <typename T>
void norm_grad(const norm::PrologueGrad<T>& of, int64_t channels, int64_t pixels, T* grad);

// to += from.
template <typename T>
void add_to(const T* from, int64_t count, T* to);

} // namespace oes::join
