// exp, log and the logistic transform, written so that loops over them vectorise and every instruction set, and a GPU
// with Rounded<T> as the type, rounds alike: IEEE operations only, none of them contracted, minimax polynomials (Remez;
// error below a tenth of a unit in the last place).
#pragma once

#include <cstdint>

#include "common/inline.h"

namespace oes {

// c0 + c1 x + c2 x^2 + .. of constants c0, c1, c2, ..; by value, since a GPU has no arrays of constants of the host.
template <typename T, typename Constant>
OES_INLINE T polynomial(T, Constant last) {
  return last;
}

template <typename T, typename Constant, typename... Rest>
OES_INLINE T polynomial(T x, Constant first, Rest... rest) {
  return polynomial(x, rest...) * x + first;
}

template <typename T>
struct Real;

template <>
struct Real<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kBias = 127;
  static constexpr float kMagic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
  // exp(-x) beyond is taken as 0: 2e-19 moves no weight, and products of it never get subnormal, which is slow.
  static constexpr float kFlush = 43.0f;
  static constexpr float kLeastFifth = 0x1p-12f; // what is smaller, its fifth power is taken as 0
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f; // kLn2High has 15 bits
  static constexpr float kLog2E = 0x1.715476p+0f;

  // atanh(z) = z + z w P(w), w = z^2 <= 0.0401
  template <typename T>
  static OES_INLINE T atanh_polynomial(T w) {
    return polynomial(w, 0.33333474755043483f, 0.19978803916502147f, 0.15182624343767107f);
  }

  // exp(-q) = 1 - q + q^2 P(q), |q| <= ln(2) / 2
  template <typename T>
  static OES_INLINE T exp_polynomial(T q) {
    return polynomial(
        q, 0.49999993447796487f, -0.16666520631709497f, 0.041668388045313997f, -0.0083687168797281399f,
        0.0013814598646664034f);
  }
};

template <>
struct Real<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kBias = 1023;
  static constexpr double kMagic = 6755399441055744.0;
  static constexpr double kFlush = 350.0;
  static constexpr double kLeastFifth = 0x1p-100;
  static constexpr double kLn2High = 0x1.62e42fefa4p-1, kLn2Low = -0x1.8432a1b0e2634p-43;
  static constexpr double kLog2E = 0x1.71547652b82fep+0;

  template <typename T>
  static OES_INLINE T atanh_polynomial(T w) {
    return polynomial(
        w, 0.33333333333333297953, 0.20000000000028476641, 0.14285714277883882715, 0.11111112151429632311,
        0.090908327559701429189, 0.076955616867821313586, 0.065867064807450042786, 0.069221354017281066464);
  }

  template <typename T>
  static OES_INLINE T exp_polynomial(T q) {
    return polynomial(
        q, 0.50000000000000000439, -0.1666666666666668342, 0.041666666666666094269, -0.0083333333333170343817,
        0.0013888888889115634019, -0.00019841269896383537154, 0.000024801586926620575104, -2.7557234862161097802e-6,
        2.7557581859337941151e-7, -2.5112036766837636659e-8, 2.082662362761640331e-9);
  }
};

// A ratio large / small = 2^exponent * large / scaled with large / scaled in [2/3, 3/2]; 0 < 0.75 small <= large.
template <typename T>
struct SplitRatio {
  typename Real<T>::Bits exponent;
  T scaled;
};

template <typename T>
OES_INLINE SplitRatio<T> split_ratio(T large, T small) {
  using R = Real<T>;
  using Bits = typename R::Bits;
  // The difference of two bit patterns is a piecewise linear log2 of the ratio, off by at most 0.086.
  const Bits half = Bits(1) << (R::kMantissa - 1);
  const Bits exponent = (bit_cast<Bits>(large) - bit_cast<Bits>(small) + half) >> R::kMantissa;
  return {exponent, bit_cast<T>(bit_cast<Bits>(small) + (exponent << R::kMantissa))};
}

// The logarithm of a split ratio, from z = (large - scaled) / (large + scaled).
template <typename T>
OES_INLINE T log_from_split(T z, typename Real<T>::Bits exponent) {
  using R = Real<T>;
  const T w = z * z;
  const T half = z + z * (w * R::atanh_polynomial(w));
  const T k = static_cast<T>(static_cast<int32_t>(exponent));
  return (half + half + k * R::kLn2Low) + k * R::kLn2High;
}

// log(large / small) for 0 < 0.75 small <= large: nothing is rounded before z, so the result is as exact near 0 as
// elsewhere if the two arguments and their sum are.
template <typename T>
OES_INLINE T log_ratio(T large, T small) {
  const auto split = split_ratio(large, small);
  return log_from_split((large - split.scaled) / (large + split.scaled), split.exponent);
}

template <typename T>
constexpr typename Real<T>::Bits kSignBit = typename Real<T>::Bits(1) << (8 * sizeof(T) - 1);

template <typename T>
OES_INLINE T absolute(T x) {
  return bit_cast<T>(bit_cast<typename Real<T>::Bits>(x) & ~kSignBit<T>);
}

// x where `sign` is positive, -x where it is negative.
template <typename T>
OES_INLINE T with_sign(T x, T sign) {
  using Bits = typename Real<T>::Bits;
  return bit_cast<T>(bit_cast<Bits>(x) ^ (bit_cast<Bits>(sign) & kSignBit<T>));
}

// exp(-x) for x >= 0, 0 beyond kFlush; NaN stays NaN.
template <typename T>
OES_INLINE T exp_negative(T x) {
  using R = Real<T>;
  using Bits = typename R::Bits;
  const T shifted = R::kMagic - x * R::kLog2E;
  const T k = shifted - R::kMagic;
  const T q = (x + k * R::kLn2High) + k * R::kLn2Low; // exp(-x) = 2^k exp(-q)
  const T power = bit_cast<T>((bit_cast<Bits>(shifted) + R::kBias) << R::kMantissa);
  const T result = power * (T(1) + ((q * q) * R::exp_polynomial(q) - q));
  return x > R::kFlush ? T(0) : result;
}

// sigmoid(|x|) and sigmoid(-|x|), both without cancellation.
template <typename T>
struct SigmoidPair {
  T large, small;
};

template <typename T>
OES_INLINE SigmoidPair<T> sigmoid_pair(T x) {
  const T e = exp_negative(absolute(x));
  const T large = T(1) / (T(1) + e);
  return {large, e * large};
}

// A uniform draw u of a 32-bit word as u / (1 - u) = a / b, both exact: a = (word >> 9) + 1/2 and b = 2^23 - a.
template <typename T>
struct Odds {
  T a, b;
};

template <typename T>
OES_INLINE Odds<T> logistic_odds(uint32_t word) {
  const T a = static_cast<T>(static_cast<int32_t>(word >> 9)) + T(0.5);
  return {a, T(8388608) - a};
}

// Logistic(0, 1) noise of a 32-bit word: log(a / b).
template <typename T>
OES_INLINE T logistic(uint32_t word) {
  const auto [a, b] = logistic_odds<T>(word);
  const T magnitude = log_ratio<T>(a < b ? b : a, a < b ? a : b);
  return a < b ? -magnitude : magnitude;
}

} // namespace oes
