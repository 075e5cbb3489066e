// The loops of mask_update, included once for each instruction set: see isa_variants.h.

template <typename Arguments>
OES_TARGET void update(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  constexpr bool has_gradient = Arguments::kl_part != Kl::kNone;
  constexpr bool has_value = Arguments::kl_part == Kl::kGradientAndValue;
  alignas(64) uint32_t words[kPhiloxTile];
  alignas(64) T decay[kPhiloxTile]; // e = exp(-|s|)
  alignas(64) T gradient[kPhiloxTile]; // of the loss, then of all
  // Of kl_parts.
  alignas(64) T log_argument[has_gradient ? kPhiloxTile : 1], correction[has_gradient ? kPhiloxTile : 1];
  alignas(64) T kl_variance[has_gradient ? kPhiloxTile : 1];
  alignas(64) typename Real<T>::Bits exponent[has_gradient ? kPhiloxTile : 1];
  alignas(64) T kl_terms[has_value ? kPhiloxTile : 1];
  const T eps = static_cast<T>(kKlEps);
  const T log_density = static_cast<T>(a.log_density), log_rest = static_cast<T>(a.log_rest);
  // Copies, since stores through the pointers might change what `a` refers to.
  const T scale = a.inverse_temperature, kl = a.kl, kl_offset = a.kl_offset;
  const T beta1_rest = a.beta1_rest, beta2 = a.beta2, beta2_rest = a.beta2_rest;
  const T step_size = a.step_size, second_scale = a.second_scale, adam_eps = a.eps;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kPhiloxTile;
    const int64_t count = a.numel - start < kPhiloxTile ? a.numel - start : kPhiloxTile;
    const T* __restrict grad = a.grad + start;
    const T* __restrict w0 = a.w0 + start;
    T* __restrict logits = a.logits + start;
    T* __restrict exp_avg = a.exp_avg + start;
    T* __restrict exp_avg_sq = a.exp_avg_sq + start;
    if (has_gradient || needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    relaxed_tile<Relaxed::kVariance>(
        words, logits, decay, count, scale,
        [=, to = &gradient[0]](int64_t i, T variance) OES_LAMBDA { to[i] = grad[i] * w0[i] * variance * scale; });
    if constexpr (has_gradient) {
      for (int64_t i = 0; i < count; ++i) {
        const auto parts = kl_parts(decay[i], eps);
        log_argument[i] = parts.log_argument;
        exponent[i] = parts.exponent;
        correction[i] = parts.correction;
        kl_variance[i] = parts.variance;
      }
      for (int64_t i = 0; i < count; ++i) {
        const T s = logits[i];
        const T log_odds = log_from_split(log_argument[i], exponent[i]);
        gradient[i] += kl * kl_gradient(kl_variance[i], log_odds, correction[i], s, kl_offset);
        if constexpr (has_value) {
          kl_terms[i] = kl_value(decay[i], log_odds, s, eps, log_density, log_rest);
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const T g = gradient[i];
      const T first = exp_avg[i] + (g - exp_avg[i]) * beta1_rest;
      const T second = exp_avg_sq[i] * beta2 + g * g * beta2_rest;
      exp_avg[i] = first;
      exp_avg_sq[i] = second;
      logits[i] = logits[i] - step_size * first / (std::sqrt(second) * second_scale + adam_eps);
    }
    if constexpr (has_value) {
      for (int64_t i = count; i < kPhiloxTile; ++i) {
        kl_terms[i] = T(0);
      }
      double lanes[kLanes] = {};
      for (int i = 0; i < kPhiloxTile; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += static_cast<double>(kl_terms[i + lane]);
        }
      }
      double sum = 0;
      for (double lane : lanes) {
        sum += lane;
      }
      a.kl_of_tile[tile] = sum;
    }
  }
}
