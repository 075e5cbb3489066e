// What happens to a pixel between two convolutions and behind the last, and the derivative of it: done by whoever reads
// the pixel.
#pragma once

#include "cuda/norm/activation.h"

namespace oes::cuda::norm {

constexpr int kPrologueNumbers = 6; // of a channel: mean, scale, shift of the first norm, then those of the second
constexpr int kGradNumbers = 4; // of a channel: mean, a, b, c

// value = scale2 * (act(scale * (y - mean) + shift) - mean2) + shift2, channel by channel: batch norm, activation, and
// the batch norm that may follow. The mean goes first: where it is far from zero, nothing cancels after a rounding.
template <typename T>
struct Prologue {
  const T* numbers; // [networks, channels, kPrologueNumbers]; nullptr: a pixel is taken as it is
  T slope; // of the activation below zero
  Act act;
  bool second; // a second norm follows
};

// The numbers of one channel, in registers.
template <typename T>
struct PrologueNumbers {
  T mean = T(0), scale = T(1), shift = T(0), mean2 = T(0), scale2 = T(1), shift2 = T(0);

  __device__ __forceinline__ PrologueNumbers(const Prologue<T>& p, int64_t channel) {
    if (p.numbers == nullptr) {
      return;
    }
    const T* of = p.numbers + channel * kPrologueNumbers;
    mean = of[0];
    scale = of[1];
    shift = of[2];
    if (p.second) {
      mean2 = of[3];
      scale2 = of[4];
      shift2 = of[5];
    }
  }

  // What the activation is taken of.
  __device__ __forceinline__ T normalised(T y) const {
    return scale * (y - mean) + shift;
  }
  __device__ __forceinline__ T activated(const Prologue<T>& p, T y) const {
    return activate(p.act, p.slope, normalised(y));
  }
  __device__ __forceinline__ T value(const Prologue<T>& p, T y) const {
    if (p.numbers == nullptr) {
      return y;
    }
    const T x = activated(p, y);
    return p.second ? scale2 * (x - mean2) + shift2 : x;
  }
};

// Gradient of a convolution's result y: a * grad + b * (y - mean) + c, channel by channel, from the gradient of what
// the activation is taken of: what a batch norm's derivative comes to once its two sums are known.
template <typename T>
struct GradNumbers {
  T mean = T(0), a = T(1), b = T(0), c = T(0);

  // numbers: [networks, channels, kGradNumbers]; nullptr: no norm is behind the result.
  __device__ __forceinline__ GradNumbers(const T* numbers, int64_t channel) {
    if (numbers == nullptr) {
      return;
    }
    const T* of = numbers + channel * kGradNumbers;
    mean = of[0];
    a = of[1];
    b = of[2];
    c = of[3];
  }

  __device__ __forceinline__ T value(T grad, T y) const {
    return a * grad + (b * (y - mean) + c);
  }
};

} // namespace oes::cuda::norm
