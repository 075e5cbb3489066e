// Adam on the kept weights: see oes_fast/reference/masked_adam.py.
#pragma once

#include "cuda/core/platform.h"
#include "cuda/mask/adam.h"

namespace oes::cuda::mask {

template <typename T>
struct MaskedAdam {
  Adam<T> adam;
  int64_t networks, numel;
  T* weights; // [networks, numel], as the gradient and the moments
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  const uint8_t* mask; // [networks, numel], or [numel] of all of them; nullptr: all are kept
  int64_t mask_stride; // numel or 0
  bool aligned, mask_aligned; // set by the launch
};

// For float and double.
template <typename T>
void masked_adam(MaskedAdam<T> a, cudaStream_t stream);

} // namespace oes::cuda::mask
