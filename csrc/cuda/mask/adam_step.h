// What masked_adam and mask_update share of a step of Adam. Device code.
#pragma once

#include "cuda/core/rounded.h"
#include "cuda/mask/adam.h"

namespace oes::cuda::mask {

template <typename T>
struct Corrections {
  Rounded<T> step_size, second_scale;
};

template <typename T>
OES_INLINE Corrections<T> corrections_of(const Adam<T>& adam) {
  if (adam.ticks == nullptr) {
    return {adam.step_size, adam.second_scale};
  }
  const T* row = adam.corrections + *adam.ticks % adam.rows * 2;
  return {row[0], row[1]};
}

// The step along the first moment over the root of the second.
template <typename T>
OES_INLINE Rounded<T> adam_step(
    Rounded<T> first, Rounded<T> second, const Corrections<T>& corrections, Rounded<T> eps) {
  return corrections.step_size * first / (sqrt(second) * corrections.second_scale + eps);
}

} // namespace oes::cuda::mask
