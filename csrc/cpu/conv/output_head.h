// The last layer: a 1 x 1 convolution of few outputs over normalised, activated pixels, the activation of the image and
// its error to a target, each pixel read once forward and once backward.
//
// An image is cut into chunks of pixels; sums of a chunk are in the element type, lane by lane, and over the chunks in
// double, in order: the result does not depend on the number of threads.
#pragma once

#include "cpu/norm/moments.h"
#include "cpu/norm/prologue.h"

namespace oes::conv {

constexpr int64_t kHeadChunk = 2048; // pixels

inline int64_t head_chunks(int64_t pixels) {
  return ceil_div(pixels, kHeadChunk);
}

template <typename T>
struct OutputHead {
  int64_t channels, outputs, pixels; // outputs: at most norm::kMostHeadOutputs
  norm::Prologue<T> prologue; // without a second norm
  const T* y; // [channels, pixels]
  const T* weights; // [channels, norm::kMostHeadOutputs], zeros behind the outputs
};

template <typename T>
struct OutputHeadForward {
  OutputHead<T> head;
  OutputAct act;
  T slope;
  const T* shift; // [outputs]
  const T* target; // [outputs, pixels], or nullptr
  const T* weight; // of each squared error, as the target; or nullptr
  T* out; // [outputs, pixels]
  T* sums; // [outputs, pixels]: of the convolution; with a target the gradient of the loss to those
  double* errors; // [chunks]: sums of the (weighted) squared errors
};

template <typename T>
struct OutputHeadBackward {
  OutputHead<T> head;
  const T* grad; // [outputs, pixels], of the convolution's sums
  // [chunks, channels, 2]: of the gradient of the normalised pixels, and of it times (y - mean)
  double* sums;
  double* weight_sums; // [chunks, channels, norm::kMostHeadOutputs]: gradient of the weights
};

// Returns the mean (weighted) squared error to the target; zero without one.
template <typename T>
double output_head(const OutputHeadForward<T>& a);
template <typename T>
void output_head_backward(const OutputHeadBackward<T>& a);

} // namespace oes::conv
