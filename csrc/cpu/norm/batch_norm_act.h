// Passes over an image that batch norm with its activation needs: statistics, and the sums of its derivative.
//
// An image of `channels` planes is cut into chunks of pixels; sums of a chunk are in the element type, in 16 lanes,
// and over the chunks in double, in order: the result does not depend on the number of threads.
#pragma once

#include "cpu/core/border.h"
#include "cpu/norm/moments.h"
#include "cpu/norm/prologue.h"

namespace oes::norm {

constexpr int64_t kChunk = 8192; // pixels

inline int64_t chunks_of(int64_t pixels) {
  return ceil_div(pixels, kChunk);
}

// Mean, and sum of squares about it, of every chunk of y, or of the activated pixels if `mapped`.
template <typename T>
struct Statistics {
  int64_t channels, pixels;
  const T* y;
  Prologue<T> prologue;
  bool mapped;
  double* moments; // [channels, chunks, 2]
};

// In place: gradient of the mapped pixels to gradient of the normalised ones. With `second`, the batch norm after the
// activation has been undone by a * grad + b * (activated - mean2) + c first.
template <typename T>
struct ActivationGrad {
  int64_t channels, pixels;
  const T* y;
  Prologue<T> prologue;
  bool second;
  const T *a, *b, *c;
  T* grad;
  double* sums; // [channels, chunks, 2]: of the result, and of the result times (y - mean)
};

// Sums of the gradient, and of the gradient times (activated - mean2), for the batch norm after the activation.
template <typename T>
struct SecondNormSums {
  int64_t channels, pixels;
  const T* y;
  Prologue<T> prologue;
  const T* grad;
  double* sums;
};

// The image that leaves the network: act(y + shift), or its derivative in place of the gradient.
template <typename T>
struct Output {
  int64_t channels, pixels;
  OutputAct act;
  T slope;
  const T* y;
  const T* shift; // [channels]
  const T* grad; // of the output; nullptr: make the output
  T* out;
};

// The output with its loss, the mean (weighted) squared error to a target, and the gradient of that in place of y.
template <typename T>
struct OutputLoss {
  int64_t channels, pixels;
  OutputAct act;
  T slope;
  T* y;
  const T* shift; // [channels]
  const T* target;
  const T* weight; // of each squared error, as the target; or nullptr
  T* out;
  double* sums; // [channels, chunks]: of the (weighted) squared errors
};

template <typename T>
void statistics(const Statistics<T>& a);
template <typename T>
void activation_grad(const ActivationGrad<T>& a);
template <typename T>
void second_sums(const SecondNormSums<T>& a);
template <typename T>
void output(const Output<T>& a);
template <typename T>
double output_loss(const OutputLoss<T>& a);

// An image through its prologue, and the gradient of a norm's input from that of its result.
template <typename T>
void map_image(const T* y, const Prologue<T>& prologue, int64_t channels, int64_t pixels, T* out);
template <typename T>
void grad_image(const PrologueGrad<T>& grad, int64_t channels, int64_t pixels, T* out);

// The same with a border around it; `grad_padded` is the gradient of the bordered image, `grad` that of the image.
template <typename T>
void map_padded(
    const T* y, const Prologue<T>& prologue, int64_t channels, int64_t rows, int64_t columns, const Border& border,
    T* out);
template <typename T>
void fold_padded(const T* grad_padded, int64_t channels, int64_t rows, int64_t columns, const Border& border, T* grad);

} // namespace oes::norm
