// The relaxed mask m = sigmoid((s + L) / T) of an element: see oes_fast/reference/gumbel_mask.py.
#pragma once

#include "common/vector_math.h"

namespace oes {

// 1 / T as published. There the noise L = log(a / b) enters as (a / b)^5, three products for a logarithm and a second
// exponential.
constexpr int kFifthPower = 5;

template <typename T>
OES_INLINE bool needs_decay(T inverse_temperature) {
  return inverse_temperature == T(kFifthPower);
}

template <typename T>
OES_INLINE T fifth_power(T x) {
  const T square = x * x;
  return square * square * x;
}

// The mask, or its derivative in (s + L) / T.
enum class Relaxed { kMask, kVariance };

// m = a^5 / (a^5 + (b e)^5) or, where s is negative, (b e)^5 / (a^5 + (b e)^5), with e = exp(-|s|) and L = log(a / b),
// or log(b / a) where s is negative; m (1 - m) is the product of the two. With a single choice between values: a
// compiler takes each way of several choices through all that follows, divisions too.
template <Relaxed kWanted, typename T>
OES_INLINE T relaxed_fifth(uint32_t word, T s, T decay) {
  using Bits = typename Real<T>::Bits;
  const auto [a, b] = logistic_odds<T>(word ^ -static_cast<uint32_t>(s < T(0))); // its complement has a and b swapped
  const T decayed = b * decay;
  // What is below 1e-18 of the other after the power is taken as 0: products of it would get subnormal.
  const Bits kept = -static_cast<Bits>(!(decayed < a * Real<T>::kLeastFifth));
  const T large = fifth_power(a), small = fifth_power(bit_cast<T>(bit_cast<Bits>(decayed) & kept));
  if constexpr (kWanted == Relaxed::kMask) {
    return (s < T(0) ? small : large) / (large + small);
  } else {
    const T inverse = T(1) / (large + small);
    return (large * inverse) * (small * inverse);
  }
}

// The same of x = (s + L) / T.
template <Relaxed kWanted, typename T>
OES_INLINE T relaxed(T x) {
  const auto p = sigmoid_pair(x);
  if constexpr (kWanted == Relaxed::kMask) {
    return x < T(0) ? p.small : p.large;
  } else {
    return p.large * p.small;
  }
}

} // namespace oes
