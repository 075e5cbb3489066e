// The loops of mask_update, included once for each instruction set: see isa_variants.h.

template <typename Arguments>
OES_TARGET void update(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  constexpr bool has_gradient = Arguments::kl_part != Kl::kNone;
  constexpr bool has_value = Arguments::kl_part == Kl::kGradientAndValue;
  alignas(64) uint32_t words[kPhiloxTile];
  alignas(64) T decay[kPhiloxTile]; // e = exp(-|s|)
  alignas(64) T gradient[kPhiloxTile]; // of the loss, then of all
  alignas(64) T kl_gradient[has_gradient ? kPhiloxTile : 1]; // P Q at first
  alignas(64) T log_argument[has_gradient ? kPhiloxTile : 1], correction[has_gradient ? kPhiloxTile : 1];
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
      // With P >= Q the two probabilities, A = P + eps and B = Q + eps, the derivative of the KL term is
      // P Q [+-(log(A / B) + P / A - Q / B) - log(p0 / (1 - p0))]. Here P = 1 / (1 + e) and Q = e / (1 + e) are
      // cleared of their denominator, and one division serves all.
      for (int64_t i = 0; i < count; ++i) {
        const T e = decay[i];
        const T denominator = T(1) + e, cleared_eps = eps * denominator;
        const T larger = T(1) + cleared_eps, smaller = e + cleared_eps;
        const auto split = split_ratio(larger, smaller);
        const T sum = larger + split.scaled, product = larger * smaller, square = denominator * denominator;
        const T others = product * square, inverse = T(1) / (others * sum), of_others = inverse * sum;
        log_argument[i] = (larger - split.scaled) * (inverse * others);
        exponent[i] = split.exponent;
        correction[i] = cleared_eps * (T(1) - e) * (of_others * square);
        kl_gradient[i] = e * (of_others * product);
      }
      for (int64_t i = 0; i < count; ++i) {
        const T s = logits[i];
        const T log_odds = log_from_split(log_argument[i], exponent[i]);
        const T bracket = log_odds + correction[i];
        gradient[i] += kl * (kl_gradient[i] * (with_sign(bracket, s) - kl_offset));
        if constexpr (has_value) {
          const T e = decay[i];
          const T p = T(1) / (T(1) + e);
          const T log_larger = -log_ratio(T(1), p + eps);
          const T of_larger = p * (log_larger - (s < T(0) ? log_rest : log_density));
          const T of_smaller = (e * p) * (log_larger - log_odds - (s < T(0) ? log_density : log_rest));
          kl_terms[i] = of_larger + of_smaller;
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
