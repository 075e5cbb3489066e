// The loops of masked_adam, included once for each instruction set: see isa_variants.h.

template <typename Arguments>
OES_TARGET void masked_adam(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.weights)>;
  constexpr int64_t kStrip = 512;
  alignas(64) T kept[kStrip];
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t count = end - first < kStrip ? end - first : kStrip;
    const T* __restrict grad = a.grad + first;
    if (a.mask != nullptr) { // not a product: NaN that is not kept counts for nothing
      for (int64_t i = 0; i < count; ++i) {
        kept[i] = a.mask[first + i] ? grad[i] : T(0);
      }
      grad = kept;
    }
    T* __restrict weights = a.weights + first;
    T* __restrict exp_avg = a.exp_avg + first;
    T* __restrict exp_avg_sq = a.exp_avg_sq + first;
    for (int64_t i = 0; i < count; ++i) {
      const T g = grad[i];
      const T mean = exp_avg[i] * a.beta1 + g * a.beta1_rest;
      const T square = exp_avg_sq[i] * a.beta2 + g * g * a.beta2_rest;
      exp_avg[i] = mean;
      exp_avg_sq[i] = square;
      weights[i] -= a.step_size * mean / (std::sqrt(square) * a.second_scale + a.eps);
    }
  }
}
