// The relaxed mask of a tile: see common/relaxed_mask.h.
//
// Each loop over the tile is short: the processor looks ahead some 100 operations, and in a long chain of dependent
// ones that is too little to keep it busy while it waits for their results.
#pragma once

#include "common/relaxed_mask.h"
#include "cpu/core/philox.h"

namespace oes::mask {

// exp(-|s|): shared by the mask and the KL term.
template <typename T>
OES_INLINE void decay_tile(const T* __restrict logits, int64_t count, T* __restrict decay) {
  for (int64_t i = 0; i < count; ++i) {
    decay[i] = exp_negative(absolute(logits[i]));
  }
}

// f(i, m) or f(i, m (1 - m)) for the elements of a tile. `decay` is that of decay_tile where needs_decay; otherwise it
// is not read. What f reads and writes arrives from memory while the rest is computed, so no loop of its own for that.
template <Relaxed kWanted, typename T, typename F>
OES_INLINE void relaxed_tile(
    const uint32_t* __restrict words, const T* __restrict logits, const T* __restrict decay, int64_t count,
    T inverse_temperature, const F& f) {
  if (needs_decay(inverse_temperature)) {
    for (int64_t i = 0; i < count; ++i) {
      f(i, relaxed_fifth<kWanted>(words[i], logits[i], decay[i]));
    }
    return;
  }
  alignas(64) T x[kPhiloxTile];
  for (int64_t i = 0; i < count; ++i) {
    x[i] = (logits[i] + logistic<T>(words[i])) * inverse_temperature;
  }
  for (int64_t i = 0; i < count; ++i) {
    f(i, relaxed<kWanted>(x[i]));
  }
}

} // namespace oes::mask
