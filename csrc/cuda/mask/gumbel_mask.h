// w0 * sigmoid((s + L) / T) and its gradients, the noise L drawn on the way: see oes_fast/reference/gumbel_mask.py.
#pragma once

#include "cuda/core/platform.h"
#include "cuda/mask/noise_source.h"

namespace oes::cuda::mask {

template <typename T>
struct GumbelMask {
  NoiseSource noise;
  int64_t networks, numel;
  T inverse_temperature;
  const T* w0; // [networks, numel], or [numel] of all of them
  int64_t w0_stride; // numel or 0
  const T* logits; // [networks, numel], as all others
  T* masked;
  bool aligned; // set by the launch
};

template <typename T>
struct GumbelMaskBackward {
  NoiseSource noise;
  int64_t networks, numel;
  T inverse_temperature;
  const T* grad;
  const T* w0; // not read where grad_logits is nullptr
  int64_t w0_stride;
  const T* logits;
  T* grad_w0; // [networks, numel]; nullptr where it is not asked for, as grad_logits
  T* grad_logits;
  bool aligned;
};

// For float and double.
template <typename T>
void gumbel_mask(GumbelMask<T> a, cudaStream_t stream);
template <typename T>
void gumbel_mask_backward(GumbelMaskBackward<T> a, cudaStream_t stream);

} // namespace oes::cuda::mask
