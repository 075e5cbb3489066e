// Passes over an image that batch norm with its activation needs: statistics, and the sums of its derivative.
//
// An image of `channels` planes is cut into chunks of pixels; sums of a chunk are in the element type, in 16 lanes,
// and over the chunks in double, in order: the result does not depend on the number of threads.
#pragma once

#include "cpu/norm/prologue.h"

namespace oes::batch_norm_act {

constexpr int64_t kChunk = 8192; // pixels

inline int64_t chunks_of(int64_t pixels) {
  return (pixels + kChunk - 1) / kChunk;
}

// Mean, and sum of squares about it, of every chunk of y, or of the activated pixels if `mapped`.
template <typename T>
struct Statistics {
  int64_t channels, pixels;
  const T* y;
  PixelMap<T> map;
  bool mapped;
  double* moments; // [channels, chunks, 2]
};

// In place: gradient of the mapped pixels to gradient of the normalised ones. With `second`, the batch norm after the
// activation has been undone by a * grad + b * (activated - mean2) + c first.
template <typename T>
struct ActivationGrad {
  int64_t channels, pixels;
  const T* y;
  PixelMap<T> map;
  bool second;
  const T *a, *b, *c;
  T* grad;
  double* sums; // [channels, chunks, 2]: of the result, and of the result times (y - mean)
};

// Sums of the gradient, and of the gradient times (activated - mean2), for the batch norm after the activation.
template <typename T>
struct SecondSums {
  int64_t channels, pixels;
  const T* y;
  PixelMap<T> map;
  const T* grad;
  double* sums;
};

// The image that leaves the network: act(y + shift), or its derivative in place of the gradient.
template <typename T>
struct Output {
  int64_t channels, pixels;
  Last act;
  T slope;
  const T* y;
  const T* shift; // [channels]
  const T* grad; // of the output; nullptr: make the output
  T* out;
};

// The output with its loss, the mean squared error to a target, and the gradient of that in place of y.
template <typename T>
struct OutputLoss {
  int64_t channels, pixels;
  Last act;
  T slope;
  T* y;
  const T* shift; // [channels]
  const T* target;
  T* out;
  double* sums; // [channels, chunks]: of the squared errors
};

template <typename T>
void statistics(const Statistics<T>& a);
template <typename T>
void activation_grad(const ActivationGrad<T>& a);
template <typename T>
void second_sums(const SecondSums<T>& a);
template <typename T>
void output(const Output<T>& a);
template <typename T>
double output_loss(const OutputLoss<T>& a);
template <typename T>
void map_image(const T* y, const PixelMap<T>& map, int64_t channels, int64_t pixels, T* out);

} // namespace oes::batch_norm_act
