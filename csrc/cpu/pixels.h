// What happens to a pixel between two convolutions, and the derivative of it.
#pragma once

#include "simd.h"

namespace oes {

// value = scale2 * leaky(scale * y + shift) + shift2, channel by channel: batch norm, activation, and the batch norm
// that may follow.
template <typename T>
struct PixelMap {
  const T *scale, *shift, *scale2, *shift2;
  T slope; // of the activation below zero; 1 for none
};

// Gradient of a convolution's result y: a * grad + b * y + c, channel by channel, from the gradient of the normalised
// result: what a batch norm's derivative comes to once its two sums are known.
template <typename T>
struct PixelGrad {
  const T *grad, *y, *a, *b, *c;
};

template <typename T>
OES_INLINE T leaky(T x, T slope) {
  return x < T(0) ? x * slope : x;
}

template <typename T>
OES_INLINE void map_row(const T* __restrict from, const PixelMap<T>& map, int64_t channel, int64_t count, T* __restrict to) {
  const T scale = map.scale[channel], shift = map.shift[channel], slope = map.slope;
  const T scale2 = map.scale2[channel], shift2 = map.shift2[channel];
  for (int64_t j = 0; j < count; ++j) {
    to[j] = scale2 * leaky(scale * from[j] + shift, slope) + shift2;
  }
}

template <typename T>
OES_INLINE void grad_row(const PixelGrad<T>& g, int64_t channel, int64_t at, int64_t count, T* __restrict to) {
  const T* __restrict grad = g.grad + at;
  const T* __restrict y = g.y + at;
  const T a = g.a[channel], b = g.b[channel], c = g.c[channel];
  for (int64_t j = 0; j < count; ++j) {
    to[j] = a * grad[j] + (b * y[j] + c);
  }
}

// Sums of x and x^2 of many numbers in a fixed order that vectorises, taken about the first of them so that nothing
// cancels where the mean is far from zero.
template <typename T>
struct Moments {
  static constexpr int kLanes = 16;
  T pivot;
  T sum[kLanes] = {}, square[kLanes] = {};

  OES_INLINE explicit Moments(T first) : pivot(first) {}

  OES_INLINE void add(const T* __restrict x, int64_t count) {
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const T d = x[j + k] - pivot;
        sum[k] += d;
        square[k] += d * d;
      }
    }
    for (int k = 0; j < count; ++j, ++k) {
      const T d = x[j] - pivot;
      sum[k] += d;
      square[k] += d * d;
    }
  }

  // Mean, and sum of squares about it.
  OES_INLINE void finish(int64_t count, double* result) const {
    double first = 0, second = 0;
    for (int k = 0; k < kLanes; ++k) {
      first += static_cast<double>(sum[k]);
      second += static_cast<double>(square[k]);
    }
    const auto n = static_cast<double>(count);
    result[0] = static_cast<double>(pivot) + first / n;
    result[1] = second - first * first / n;
  }
};

} // namespace oes
