// Chain rule through the sampled mask, KL gradient and Adam in one pass: see oes_fast/reference/mask_update.py.
#pragma once

#include "cuda/core/platform.h"
#include "cuda/mask/adam.h"
#include "cuda/mask/noise_source.h"

namespace oes::cuda::mask {

template <typename T>
struct MaskUpdate {
  NoiseSource noise;
  Adam<T> adam;
  int64_t networks, numel;
  T inverse_temperature;
  T kl, kl_offset; // log(p0 / (1 - p0))
  T log_density, log_rest;
  const T* grad; // [networks, numel], as all but w0
  const T* w0; // [networks, numel], or [numel] of all of them
  int64_t w0_stride; // numel or 0
  T* logits;
  T* exp_avg;
  T* exp_avg_sq;
  T* kl_value; // [networks]: the KL sum of the logits as they were; nullptr where it is not asked for, as the next two
  double* kl_sums; // [networks, kl_blocks(numel)], scratch
  unsigned* kl_tickets; // [networks], zeros, and zeros again afterwards
  bool aligned; // set by the launch
};

// Blocks of the launch, each of which sums the KL terms of its elements.
int64_t kl_blocks(int64_t numel);

// For float and double.
template <typename T>
void mask_update(MaskUpdate<T> a, cudaStream_t stream);

} // namespace oes::cuda::mask
