// The words of Philox4x32-10 (see common/philox_constants.h): a thread makes the four of one counter.
#pragma once

#include "common/philox_constants.h"
#include "cuda/core/platform.h"

namespace oes::cuda {

struct PhiloxWords {
  uint32_t of[4];
};

// Those of elements 4 * block .. 4 * block + 3. The products are of 64 bits, which is one instruction for both halves.
OES_INLINE PhiloxWords philox_words(const PhiloxKey& key, int64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(static_cast<uint64_t>(block) >> 32);
  uint32_t c2 = key.step, c3 = key.stream, k0 = key.low, k1 = key.high;
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * kPhiloxMultiplier0;
    const uint64_t p1 = static_cast<uint64_t>(c2) * kPhiloxMultiplier1;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

} // namespace oes::cuda
