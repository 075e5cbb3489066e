// What happens to a pixel between two convolutions and behind the last, and the derivative of it.
#pragma once

#include <cstring>

#include "cpu/core/vector_math.h"

namespace oes {

// The activations of oes_fast/reference/batch_norm_act.py. None is leaky with a slope of 1.
enum class Act { kLeaky, kElu, kSilu };

template <Act kAct, typename T>
OES_INLINE T activate(T x, T slope) {
  if constexpr (kAct == Act::kLeaky) {
    return x < T(0) ? x * slope : x;
  } else if constexpr (kAct == Act::kElu) {
    const T below = slope * (exp_negative(absolute(x)) - T(1));
    return x < T(0) ? below : x;
  } else {
    const auto pair = sigmoid_pair(x);
    return x * (x < T(0) ? pair.small : pair.large);
  }
}

// Derivative of the activation at x. At its kink it is that of the negative side, as PyTorch has it: a constant channel
// whose beta is 0 lies exactly there.
template <Act kAct, typename T>
OES_INLINE T activate_grad(T x, T slope) {
  if constexpr (kAct == Act::kLeaky) {
    return x <= T(0) ? slope : T(1);
  } else if constexpr (kAct == Act::kElu) {
    const T below = slope * exp_negative(absolute(x));
    return x <= T(0) ? below : T(1);
  } else {
    const auto pair = sigmoid_pair(x);
    const T at = x < T(0) ? pair.small : pair.large, rest = x < T(0) ? pair.large : pair.small;
    return at * (T(1) + x * rest);
  }
}

// What f returns for the activation, as a constant of its own type.
template <Act kAct>
struct ActConstant {
  static constexpr Act value = kAct;
};

template <typename F>
OES_INLINE auto with_act(Act act, const F& f) {
  switch (act) {
    case Act::kElu:
      return f(ActConstant<Act::kElu>());
    case Act::kSilu:
      return f(ActConstant<Act::kSilu>());
    default:
      return f(ActConstant<Act::kLeaky>());
  }
}

// value = scale2 * (act(scale * (y - mean) + shift) - mean2) + shift2, channel by channel: batch norm, activation, and
// the batch norm that may follow. The mean goes first: where it is far from zero, nothing cancels after a rounding.
template <typename T>
struct PixelMap {
  const T *mean, *scale, *shift, *mean2, *scale2, *shift2;
  T slope; // of the activation below zero; 1 for none
  Act act;
};

constexpr int64_t kMostBehind = 4; // with more, reading the gradient costs less than computing it

// Gradient of a convolution's result y: a * grad + b * (y - mean) + c, channel by channel, from the gradient of the normalised
// result: what a batch norm's derivative comes to once its two sums are known.
template <typename T>
struct PixelGrad {
  const T *grad, *y, *mean, *a, *b, *c;
  // Where the layer behind is a 1 x 1 convolution of few outputs, `grad` is the gradient of those, and that of the
  // normalised result is computed from it whenever it is read: weights * grad, through the activation of `map`.
  int64_t outputs = 0, pixels = 0; // of that layer, at most kMostBehind; 0: `grad` is what it says
  const T* weights = nullptr; // [channels, kMostBehind], zeros behind the outputs
  PixelMap<T> map = {};
};

template <typename T>
OES_INLINE void map_row(
    const T* __restrict from, const PixelMap<T>& map, int64_t channel, int64_t count, T* __restrict to) {
  const T mean = map.mean[channel], scale = map.scale[channel], shift = map.shift[channel], slope = map.slope;
  const T mean2 = map.mean2[channel], scale2 = map.scale2[channel], shift2 = map.shift2[channel];
  with_act(map.act, [&](auto act) OES_LAMBDA {
    for (int64_t j = 0; j < count; ++j) {
      to[j] = scale2 * (activate<act.value>(scale * (from[j] - mean) + shift, slope) - mean2) + shift2;
    }
  });
}

template <typename T>
OES_INLINE void grad_row(const PixelGrad<T>& g, int64_t channel, int64_t at, int64_t count, T* __restrict to) {
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
  const T* __restrict grads[kMostBehind];
  T w[kMostBehind];
  for (int64_t o = 0; o < kMostBehind; ++o) {
    grads[o] = g.grad + (o < last ? o : last) * g.pixels + pixel;
    w[o] = g.weights[channel * kMostBehind + o];
  }
  const T *__restrict g0 = grads[0], *__restrict g1 = grads[1], *__restrict g2 = grads[2], *__restrict g3 = grads[3];
  const T scale = g.map.scale[channel], shift = g.map.shift[channel], slope = g.map.slope;
  with_act(g.map.act, [&](auto act) OES_LAMBDA {
    for (int64_t j = 0; j < count; ++j) {
      const T centred = y[j] - mean;
      const T sum = (w[0] * g0[j] + w[1] * g1[j]) + (w[2] * g2[j] + w[3] * g3[j]);
      to[j] = a * (sum * activate_grad<act.value>(scale * centred + shift, slope)) + (b * centred + c);
    }
  });
}

// The activation of the image that leaves the network.
enum class Last { kLeaky, kSigmoid };

template <typename T>
OES_INLINE void output_pixels(Last act, T shift, T slope, const T* __restrict y, int64_t count, T* __restrict out) {
  if (act == Last::kSigmoid) {
    for (int64_t j = 0; j < count; ++j) {
      const T x = y[j] + shift;
      const auto pair = sigmoid_pair(x);
      out[j] = x < T(0) ? pair.small : pair.large;
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      out[j] = activate<Act::kLeaky>(y[j] + shift, slope);
    }
  }
}

// The same with the error to the target, and factor * error * derivative in place of y.
template <typename T>
OES_INLINE void output_loss_pixels(
    Last act, T shift, T slope, T factor, const T* __restrict target, int64_t count, T* __restrict y,
    T* __restrict out, T* __restrict error) {
  if (act == Last::kSigmoid) {
    for (int64_t j = 0; j < count; ++j) {
      const T x = y[j] + shift;
      const auto pair = sigmoid_pair(x);
      out[j] = x < T(0) ? pair.small : pair.large;
      error[j] = out[j] - target[j];
      y[j] = error[j] * factor * (pair.large * pair.small);
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      const T x = y[j] + shift;
      out[j] = activate<Act::kLeaky>(x, slope);
      error[j] = out[j] - target[j];
      y[j] = error[j] * factor * activate_grad<Act::kLeaky>(x, slope);
    }
  }
}

// Numbers added side by side, in an order that every instruction set keeps. Vectors of 32 bytes: wider ones go through
// memory where the processor lacks them.
template <typename T>
struct Lanes {
  static constexpr int kEach = 32 / sizeof(T), kCount = 2 * kEach;
  typedef T Vector __attribute__((vector_size(32)));
  typedef T Unaligned __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));

  OES_INLINE static double sum(const Vector (&x)[2]) {
    double total = 0;
    for (int k = 0; k < kCount; ++k) {
      total += static_cast<double>(x[k / kEach][k % kEach]);
    }
    return total;
  }
};

// Sums of x and x^2 of many numbers, taken about the first of them so that nothing cancels where the mean is far from
// zero.
template <typename T>
struct Moments {
  using L = Lanes<T>;
  T pivot;
  typename L::Vector sum[2] = {}, square[2] = {};

  OES_INLINE explicit Moments(T first) : pivot(first) {}

  OES_INLINE void add(const T* x, int64_t count) {
    int64_t j = 0;
    for (; j + L::kCount <= count; j += L::kCount) {
      for (int v = 0; v < 2; ++v) {
        const typename L::Vector d = *reinterpret_cast<const typename L::Unaligned*>(x + j + v * L::kEach) - pivot;
        sum[v] += d;
        square[v] += d * d;
      }
    }
    if (j < count) {
      typename L::Vector d[2] = {};
      for (int k = 0; j < count; ++j, ++k) {
        d[k / L::kEach][k % L::kEach] = x[j] - pivot;
      }
      for (int v = 0; v < 2; ++v) {
        sum[v] += d[v];
        square[v] += d[v] * d[v];
      }
    }
  }

  // Mean, and sum of squares about it.
  OES_INLINE void finish(int64_t count, double* result) const {
    const double first = L::sum(sum), second = L::sum(square);
    const auto n = static_cast<double>(count);
    result[0] = static_cast<double>(pivot) + first / n;
    result[1] = second - first * first / n;
  }
};

// Mean and sum of squares about it of parts that have their own (Chan, Golub and LeVeque 1983).
struct Merged {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double part_mean, double part_squares) {
    const double total = count + n, delta = part_mean - mean;
    mean += delta * n / total;
    squares += part_squares + delta * delta * count * n / total;
    count = total;
  }
};

// Sums of x and x * y.
template <typename T>
struct Sums {
  using L = Lanes<T>;
  typename L::Vector first[2] = {}, second[2] = {};

  OES_INLINE void add(const T* x, const T* y, int64_t count) {
    int64_t j = 0;
    for (; j + L::kCount <= count; j += L::kCount) {
      for (int v = 0; v < 2; ++v) {
        const typename L::Vector value = *reinterpret_cast<const typename L::Unaligned*>(x + j + v * L::kEach);
        first[v] += value;
        second[v] += value * *reinterpret_cast<const typename L::Unaligned*>(y + j + v * L::kEach);
      }
    }
    for (int k = 0; j < count; ++j, ++k) {
      first[k / L::kEach][k % L::kEach] += x[j];
      second[k / L::kEach][k % L::kEach] += x[j] * y[j];
    }
  }

  OES_INLINE void finish(double* result) const {
    result[0] = L::sum(first);
    result[1] = L::sum(second);
  }
};

} // namespace oes
