// The activations and their derivatives, as csrc/cpu/norm/activation.h has them.
#pragma once

#include <cmath>

#include "common/enums.h"
#include "cuda/core/platform.h"

namespace oes::cuda::norm {

// 1 / (1 + exp(-x)) without overflow.
template <typename T>
__device__ __forceinline__ T sigmoid(T x) {
  const T e = std::exp(x < T(0) ? x : -x);
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

template <typename T>
__device__ __forceinline__ T activate(Act act, T slope, T x) {
  if (act == Act::kLeaky) {
    return x < T(0) ? x * slope : x;
  }
  if (act == Act::kElu) {
    return x < T(0) ? slope * std::expm1(x) : x;
  }
  return x * sigmoid(x);
}

// Derivative at x. At the kink it is that of the negative side, as PyTorch has it.
template <typename T>
__device__ __forceinline__ T activate_grad(Act act, T slope, T x) {
  if (act == Act::kLeaky) {
    return x <= T(0) ? slope : T(1);
  }
  if (act == Act::kElu) {
    return x <= T(0) ? slope * std::exp(x) : T(1);
  }
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

// The activation of the image that leaves the network.
template <typename T>
__device__ __forceinline__ T output_activate(OutputAct act, T slope, T x) {
  return act == OutputAct::kSigmoid ? sigmoid(x) : activate(Act::kLeaky, slope, x);
}

template <typename T>
__device__ __forceinline__ T output_activate_grad(OutputAct act, T slope, T x) {
  if (act == OutputAct::kSigmoid) {
    const T s = sigmoid(x);
    return s * (T(1) - s);
  }
  return activate_grad(Act::kLeaky, slope, x);
}

} // namespace oes::cuda::norm
