// A number each of whose operations is rounded to nearest by itself, whatever the compiler is told: nvcc makes one
// fused operation of a product and a sum, so that results would not be those of the CPU. For what must have its bits.
// Device code.
#pragma once

#include "common/vector_math.h"
#include "cuda/core/platform.h"

namespace oes::cuda {

OES_INLINE float add(float a, float b) {
  return __fadd_rn(a, b);
}
OES_INLINE float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
OES_INLINE float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
OES_INLINE float square_root(float x) {
  return __fsqrt_rn(x);
}
OES_INLINE double add(double a, double b) {
  return __dadd_rn(a, b);
}
OES_INLINE double multiply(double a, double b) {
  return __dmul_rn(a, b);
}
OES_INLINE double divide(double a, double b) {
  return __ddiv_rn(a, b);
}
OES_INLINE double square_root(double x) {
  return __dsqrt_rn(x);
}

template <typename T>
struct Rounded {
  T value;

  Rounded() = default;
  OES_INLINE Rounded(T value_) // implicit, so that constants of T are as good as those of Rounded<T>
      : value(value_) {}

  friend OES_INLINE Rounded operator+(Rounded a, Rounded b) {
    return add(a.value, b.value);
  }
  friend OES_INLINE Rounded operator-(Rounded a, Rounded b) {
    return add(a.value, -b.value);
  }
  friend OES_INLINE Rounded operator*(Rounded a, Rounded b) {
    return multiply(a.value, b.value);
  }
  friend OES_INLINE Rounded operator/(Rounded a, Rounded b) {
    return divide(a.value, b.value);
  }
  friend OES_INLINE Rounded sqrt(Rounded x) {
    return square_root(x.value);
  }
  OES_INLINE Rounded operator-() const {
    return -value;
  }
  friend OES_INLINE bool operator<(Rounded a, Rounded b) {
    return a.value < b.value;
  }
  friend OES_INLINE bool operator>(Rounded a, Rounded b) {
    return a.value > b.value;
  }
  friend OES_INLINE bool operator==(Rounded a, Rounded b) {
    return a.value == b.value;
  }
};

} // namespace oes::cuda

template <typename T>
struct oes::Real<oes::cuda::Rounded<T>> : oes::Real<T> {};
