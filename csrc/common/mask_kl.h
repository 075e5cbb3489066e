// The KL term of an element and its derivative: see oes_fast/reference/mask_kl.py.
//
// With P >= Q the two probabilities, A = P + eps and B = Q + eps, the derivative is
// P Q [+-(log(A / B) + P / A - Q / B) - log(p0 / (1 - p0))]. Here P = 1 / (1 + e) and Q = e / (1 + e), e = exp(-|s|),
// are cleared of their denominator, and one division serves all.
#pragma once

#include "common/vector_math.h"

namespace oes {

constexpr double kKlEps = 1e-6; // inside the logarithms, as in reference/mask_kl.py

// What one division gives: the split ratio A / B, P / A - Q / B and P Q.
template <typename T>
struct KlParts {
  T log_argument;
  typename Real<T>::Bits exponent;
  T correction, variance;
};

template <typename T>
OES_INLINE KlParts<T> kl_parts(T e, T eps) {
  const T denominator = T(1) + e, cleared_eps = eps * denominator;
  const T larger = T(1) + cleared_eps, smaller = e + cleared_eps;
  const auto split = split_ratio(larger, smaller);
  const T sum = larger + split.scaled, product = larger * smaller, square = denominator * denominator;
  const T others = product * square, inverse = T(1) / (others * sum), of_others = inverse * sum;
  return {
      (larger - split.scaled) * (inverse * others), split.exponent, cleared_eps * (T(1) - e) * (of_others * square),
      e * (of_others * product)};
}

// `log_odds` is log(A / B), `kl_offset` log(p0 / (1 - p0)).
template <typename T>
OES_INLINE T kl_gradient(T variance, T log_odds, T correction, T s, T kl_offset) {
  return variance * (with_sign(log_odds + correction, s) - kl_offset);
}

// The term itself; `log_density` is log p0, `log_rest` log(1 - p0).
template <typename T>
OES_INLINE T kl_value(T e, T log_odds, T s, T eps, T log_density, T log_rest) {
  const T p = T(1) / (T(1) + e);
  const T log_larger = -log_ratio(T(1), p + eps);
  const T of_larger = p * (log_larger - (s < T(0) ? log_rest : log_density));
  const T of_smaller = (e * p) * (log_larger - log_odds - (s < T(0) ? log_density : log_rest));
  return of_larger + of_smaller;
}

} // namespace oes
