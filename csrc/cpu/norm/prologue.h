// What happens to a pixel between two convolutions and behind the last, and the derivative of it: done by whoever reads
// the pixel.
#pragma once

#include "cpu/core/simd.h"
#include "cpu/norm/activation.h"

namespace oes::norm {

// value = scale2 * (act(scale * (y - mean) + shift) - mean2) + shift2, channel by channel: batch norm, activation, and
// the batch norm that may follow. The mean goes first: where it is far from zero, nothing cancels after a rounding.
template <typename T>
struct Prologue {
  const T *mean, *scale, *shift, *mean2, *scale2, *shift2;
  T slope; // of the activation below zero; 1 for none
  Act act;
};

constexpr int64_t kMostHeadOutputs = 4; // with more, reading the gradient costs less than computing it

// Gradient of a convolution's result y: a * grad + b * (y - mean) + c, channel by channel, from the gradient of the
// normalised result: what a batch norm's derivative comes to once its two sums are known.
template <typename T>
struct PrologueGrad {
  const T *grad, *y, *mean, *a, *b, *c;
  // Where the layer behind is a 1 x 1 convolution of few outputs, `grad` is the gradient of those, and that of the
  // normalised result is computed from it whenever it is read: weights * grad, through the activation of `prologue`.
  int64_t outputs = 0, pixels = 0; // of that layer, at most kMostHeadOutputs; 0: `grad` is what it says
  const T* weights = nullptr; // [channels, kMostHeadOutputs], zeros behind the outputs
  Prologue<T> prologue = {};
};

template <typename T>
OES_INLINE void prologue_row(
    const T* __restrict from, const Prologue<T>& prologue, int64_t channel, int64_t count, T* __restrict to) {
  const T mean = prologue.mean[channel], scale = prologue.scale[channel], shift = prologue.shift[channel],
          slope = prologue.slope;
  const T mean2 = prologue.mean2[channel], scale2 = prologue.scale2[channel], shift2 = prologue.shift2[channel];
  with_act(prologue.act, [&](auto act) OES_LAMBDA {
    for (int64_t j = 0; j < count; ++j) {
      to[j] = scale2 * (activate<act.value>(scale * (from[j] - mean) + shift, slope) - mean2) + shift2;
    }
  });
}

template <typename T>
OES_INLINE void prologue_grad_row(
    const PrologueGrad<T>& g, int64_t channel, int64_t at, int64_t count, T* __restrict to) {
  const T* __restrict y = g.y + at;
  const T mean = g.mean[channel], a = g.a[channel], b = g.b[channel], c = g.c[channel];
  if (g.outputs == 0) {
    const T* __restrict grad = g.grad + at;
    for (int64_t j = 0; j < count; ++j) {
      to[j] = a * grad[j] + (b * (y[j] - mean) + c);
    }
    return;
  }
  const int64_t pixel = at - channel * g.pixels, last = g.outputs - 1;
  const T* __restrict grads[kMostHeadOutputs];
  T w[kMostHeadOutputs];
  for (int64_t o = 0; o < kMostHeadOutputs; ++o) {
    grads[o] = g.grad + (o < last ? o : last) * g.pixels + pixel;
    w[o] = g.weights[channel * kMostHeadOutputs + o];
  }
  const T* __restrict g0 = grads[0], * __restrict g1 = grads[1], * __restrict g2 = grads[2], * __restrict g3 = grads[3];
  const T scale = g.prologue.scale[channel], shift = g.prologue.shift[channel], slope = g.prologue.slope;
  with_act(g.prologue.act, [&](auto act) OES_LAMBDA {
    for (int64_t j = 0; j < count; ++j) {
      const T centred = y[j] - mean;
      const T sum = (w[0] * g0[j] + w[1] * g1[j]) + (w[2] * g2[j] + w[3] * g3[j]);
      to[j] = a * (sum * activate_grad<act.value>(scale * centred + shift, slope)) + (b * centred + c);
    }
  });
}

} // namespace oes::norm
