// Philox4x32-10 (Salmon et al., SC 2011, section 4.1): the contract of oes_fast/reference/philox.py.
#pragma once

#include <cstdint>

#include "common/inline.h"

namespace oes {

constexpr uint32_t kMaskNoise = 0; // stream of the relaxed mask's noise
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxKey {
  uint32_t low, high, step, stream;

  OES_INLINE PhiloxKey(int64_t seed, int64_t step_, uint32_t stream_)
      : low(static_cast<uint32_t>(static_cast<uint64_t>(seed))),
        high(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
        step(static_cast<uint32_t>(step_)),
        stream(stream_) {}
};

} // namespace oes
