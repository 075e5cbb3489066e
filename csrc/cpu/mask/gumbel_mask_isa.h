// The loops of gumbel_mask, included once for each instruction set: see isa_variants.h.

template <typename Arguments>
OES_TARGET void forward(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  alignas(64) uint32_t words[kPhiloxTile];
  alignas(64) T decay[kPhiloxTile];
  const T scale = a.inverse_temperature;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kPhiloxTile;
    const int64_t count = a.numel - start < kPhiloxTile ? a.numel - start : kPhiloxTile;
    const T* __restrict w0 = a.w0 + start;
    const T* __restrict logits = a.logits + start;
    T* __restrict masked = a.masked + start;
    if (needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    relaxed_tile<Relaxed::kMask>(
        words, logits, decay, count, scale, [=](int64_t i, T m) OES_LAMBDA { masked[i] = w0[i] * m; });
  }
}

template <typename Arguments>
OES_TARGET void backward(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  alignas(64) uint32_t words[kPhiloxTile];
  alignas(64) T decay[kPhiloxTile];
  const T scale = a.inverse_temperature;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kPhiloxTile;
    const int64_t count = a.numel - start < kPhiloxTile ? a.numel - start : kPhiloxTile;
    const T* __restrict grad = a.grad + start;
    const T* __restrict logits = a.logits + start;
    if (needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    if (a.grad_w0 != nullptr) {
      T* __restrict grad_w0 = a.grad_w0 + start;
      relaxed_tile<Relaxed::kMask>(
          words, logits, decay, count, scale, [=](int64_t i, T m) OES_LAMBDA { grad_w0[i] = grad[i] * m; });
    }
    if (a.grad_logits != nullptr) {
      const T* __restrict w0 = a.w0 + start;
      T* __restrict grad_logits = a.grad_logits + start;
      relaxed_tile<Relaxed::kVariance>(words, logits, decay, count, scale, [=](int64_t i, T variance) OES_LAMBDA {
        grad_logits[i] = grad[i] * w0[i] * variance * scale;
      });
    }
  }
}
