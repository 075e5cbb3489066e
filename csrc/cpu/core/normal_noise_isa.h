// The loops of normal noise, included once for each instruction set: see isa_variants.h.

// x = (u - v) / 2^23 of a word, uniform in (-1, 1), and w = -log(1 - x^2), where 1 - x^2 = 4 u v / 2^46.
struct NormalDraw {
  float x, w;
};

OES_ISA_INLINE NormalDraw normal_draw(uint32_t word) {
  const auto [u, v] = logistic_odds<float>(word);
  return {(u - v) * 0x1p-23f, log_ratio(0x1p44f, u * v)};
}

// Standard normal noise of the words of a tile. The tail is rare enough to go over its block again.
OES_ISA_INLINE void normal_tile(const uint32_t* __restrict words, float* __restrict noise) {
  for (int block = 0; block < kPhiloxTile; block += kTailBlock) {
    uint32_t any = 0;
    for (int i = block; i < block + kTailBlock; ++i) {
      const auto [x, w] = normal_draw(words[i]);
      noise[i] = x * normal_centre(w);
      any |= static_cast<uint32_t>(w >= kNormalTail);
    }
    if (any == 0) {
      continue;
    }
    for (int i = block; i < block + kTailBlock; ++i) {
      const auto [x, w] = normal_draw(words[i]);
      const float tail = x * normal_tail(w);
      noise[i] = w < kNormalTail ? noise[i] : tail;
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
