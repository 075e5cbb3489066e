// The noise of each network and the relaxed mask of four elements: see common/relaxed_mask.h. Device code.
#pragma once

#include "common/relaxed_mask.h"
#include "cuda/core/philox.h"
#include "cuda/core/rounded.h"
#include "cuda/mask/noise_source.h"

namespace oes::cuda::mask {

OES_INLINE PhiloxKey key_of(const NoiseSource& noise, int64_t network) {
  const int64_t seed = noise.seeds == nullptr ? noise.seed : noise.seeds[network];
  return PhiloxKey(seed, noise.ticks == nullptr ? noise.step : *noise.ticks, kMaskNoise);
}

// exp(-|s|), which the mask needs where needs_decay, and the KL term.
template <typename T>
OES_INLINE void decay_four(const Rounded<T> (&s)[4], Rounded<T> (&decay)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    decay[i] = exp_negative(absolute(s[i]));
  }
}

// m, or m (1 - m). `decay` is that of decay_four where needs_decay; otherwise it is not read.
template <Relaxed kWanted, typename T>
OES_INLINE void relaxed_four(
    const PhiloxWords& words, const Rounded<T> (&s)[4], const Rounded<T> (&decay)[4], Rounded<T> inverse_temperature,
    Rounded<T> (&m)[4]) {
  if (needs_decay(inverse_temperature)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      m[i] = relaxed_fifth<kWanted>(words.of[i], s[i], decay[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      m[i] = relaxed<kWanted>((s[i] + logistic<Rounded<T>>(words.of[i])) * inverse_temperature);
    }
  }
}

} // namespace oes::cuda::mask
