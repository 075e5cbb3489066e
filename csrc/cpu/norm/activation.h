// The activations and their derivatives.
#pragma once

#include "common/enums.h"
#include "common/vector_math.h"

namespace oes::norm {

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

// The activation of the image that leaves the network.
template <typename T>
OES_INLINE void output_pixels(
    OutputAct act, T shift, T slope, const T* __restrict y, int64_t count, T* __restrict out) {
  if (act == OutputAct::kSigmoid) {
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
    OutputAct act, T shift, T slope, T factor, const T* __restrict target, int64_t count, T* __restrict y,
    T* __restrict out, T* __restrict error) {
  if (act == OutputAct::kSigmoid) {
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

// Of squared errors that have weights: their gradient in y, and each error times its weight.
template <typename T>
OES_INLINE void weigh_loss_pixels(
    const T* __restrict weight, int64_t count, const T* __restrict error, T* __restrict y, T* __restrict weighted) {
  for (int64_t j = 0; j < count; ++j) {
    y[j] *= weight[j];
    weighted[j] = error[j] * weight[j];
  }
}

} // namespace oes::norm
