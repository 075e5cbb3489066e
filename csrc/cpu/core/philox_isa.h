// The loops of the noise, included once for each instruction set: see isa_variants.h.

template <typename Arguments>
OES_TARGET void random_bits(const Arguments& a, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kPhiloxTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kPhiloxTile;
    const int64_t count = a.numel - start < kPhiloxTile ? a.numel - start : kPhiloxTile;
    int64_t* __restrict out = a.words + start;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int64_t>(words[i]);
    }
  }
}

template <typename Arguments>
OES_TARGET void from_words(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  const int64_t stop = end * kPhiloxTile < a.numel ? end * kPhiloxTile : a.numel;
  const int64_t* __restrict words = a.words;
  T* __restrict noise = a.noise;
  for (int64_t i = begin * kPhiloxTile; i < stop; ++i) {
    noise[i] = logistic<T>(static_cast<uint32_t>(words[i]));
  }
}
