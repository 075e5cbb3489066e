// A row as convolutions of stride 2 take it: even and odd columns apart.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace oes {

template <typename T>
OES_INLINE void unshuffle_row(const T* __restrict from, int64_t count, T* __restrict even, T* __restrict odd) {
  const int64_t pairs = count / 2;
  for (int64_t j = 0; j < pairs; ++j) {
    even[j] = from[2 * j];
    odd[j] = from[2 * j + 1];
  }
  if (count % 2 != 0) {
    even[pairs] = from[count - 1];
    odd[pairs] = T(0);
  }
}

} // namespace oes
