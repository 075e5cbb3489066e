// The loops of normal noise, included once for each instruction set: see isa_variants.h.

// Standard normal noise of 32-bit words.
OES_ISA_INLINE void normal_tile(const uint32_t* __restrict words, float* __restrict noise) {
  alignas(64) float of_log[kPhiloxTile], of_sign[kPhiloxTile];
  for (int i = 0; i < kPhiloxTile; ++i) {
    const auto [u, v] = logistic_odds<float>(words[i]); // u / 2^23 is uniform: x = (u - v) / 2^23
    const float w = log_ratio(0x1p44f, u * v); // 1 - x^2 = 4 u v / 2^46
    const float x = (u - v) * 0x1p-23f;
    of_log[i] = w;
    of_sign[i] = x;
    noise[i] = x * normal_centre(w);
  }
  for (int block = 0; block < kPhiloxTile; block += kTailBlock) {
    uint32_t any = 0;
    for (int i = block; i < block + kTailBlock; ++i) {
      any |= static_cast<uint32_t>(of_log[i] >= kNormalTail);
    }
    if (any == 0) {
      continue;
    }
    for (int i = block; i < block + kTailBlock; ++i) {
      const float tail = of_sign[i] * normal_tail(of_log[i]);
      noise[i] = of_log[i] < kNormalTail ? noise[i] : tail;
    }
  }
}

template <typename Arguments>
OES_TARGET void normal_noise(const Arguments& a, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kPhiloxTile];
  alignas(64) float noise[kPhiloxTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    normal_tile(words, noise);
    const int64_t start = tile * kPhiloxTile;
    const int64_t count = a.numel - start < kPhiloxTile ? a.numel - start : kPhiloxTile;
    const float* base = a.base + (start - a.first);
    float* out = a.out + (start - a.first);
    if (a.stds != nullptr) {
      const float* stds = a.stds + (start - a.first);
      for (int64_t i = 0; i < count; ++i) {
        out[i] = base[i] + stds[i] * noise[i];
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        out[i] = base[i] + a.std * noise[i];
      }
    }
  }
}
