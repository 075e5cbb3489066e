// Sums over the pixels of a channel, each in one fixed order.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace oes::norm {

// Numbers added side by side, in an order that every instruction set keeps. Vectors of 32 bytes: wider ones go through
// memory where the processor lacks them.
template <typename T>
struct Lanes {
  static constexpr int kEach = 32 / sizeof(T), kCount = 2 * kEach;
  typedef T Vector __attribute__((vector_size(32)));
  typedef T Unaligned __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));

  OES_INLINE static double sum(const Vector (&x)[2]) {
    double total = 0;
    for (int k = 0; k < kCount; ++k) {
      total += static_cast<double>(x[k / kEach][k % kEach]);
    }
    return total;
  }
};

// Sums of x and x^2 of many numbers, taken about the first of them so that nothing cancels where the mean is far from
// zero.
template <typename T>
struct Moments {
  using L = Lanes<T>;
  T pivot;
  typename L::Vector sum[2] = {}, square[2] = {};

  OES_INLINE explicit Moments(T first) : pivot(first) {}

  OES_INLINE void add(const T* x, int64_t count) {
    int64_t j = 0;
    for (; j + L::kCount <= count; j += L::kCount) {
      for (int v = 0; v < 2; ++v) {
        const typename L::Vector d = *reinterpret_cast<const typename L::Unaligned*>(x + j + v * L::kEach) - pivot;
        sum[v] += d;
        square[v] += d * d;
      }
    }
    if (j < count) {
      typename L::Vector d[2] = {};
      for (int k = 0; j < count; ++j, ++k) {
        d[k / L::kEach][k % L::kEach] = x[j] - pivot;
      }
      for (int v = 0; v < 2; ++v) {
        sum[v] += d[v];
        square[v] += d[v] * d[v];
      }
    }
  }

  // Mean, and sum of squares about it.
  OES_INLINE void finish(int64_t count, double* result) const {
    const double first = L::sum(sum), second = L::sum(square);
    const auto n = static_cast<double>(count);
    result[0] = static_cast<double>(pivot) + first / n;
    result[1] = second - first * first / n;
  }
};

// Mean and sum of squares about it of chunks that have their own (Chan, Golub and LeVeque 1983).
struct Merged {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double chunk_mean, double chunk_squares) {
    const double total = count + n, delta = chunk_mean - mean;
    mean += delta * n / total;
    squares += chunk_squares + delta * delta * count * n / total;
    count = total;
  }
};

// Sums of x and x * y.
template <typename T>
struct Sums {
  using L = Lanes<T>;
  typename L::Vector first[2] = {}, second[2] = {};

  OES_INLINE void add(const T* x, const T* y, int64_t count) {
    int64_t j = 0;
    for (; j + L::kCount <= count; j += L::kCount) {
      for (int v = 0; v < 2; ++v) {
        const typename L::Vector value = *reinterpret_cast<const typename L::Unaligned*>(x + j + v * L::kEach);
        first[v] += value;
        second[v] += value * *reinterpret_cast<const typename L::Unaligned*>(y + j + v * L::kEach);
      }
    }
    for (int k = 0; j < count; ++j, ++k) {
      first[k / L::kEach][k % L::kEach] += x[j];
      second[k / L::kEach][k % L::kEach] += x[j] * y[j];
    }
  }

  OES_INLINE void finish(double* result) const {
    result[0] = L::sum(first);
    result[1] = L::sum(second);
  }
};

} // namespace oes::norm
