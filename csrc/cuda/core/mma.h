// Products of small matrices by a warp, on tensor cores: d += a b, with a of 16 x 8, b of 8 x 8 and d of 16 x 8.
//
// The factors are TF32 (10 bits of mantissa; a product of two is exact in float32), sums are float32. Of lane l, with
// g = l / 4 and t = l % 4, the registers hold (row, column)
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b: (t, g), (t + 4, g)
//   d: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
// All lanes of the warp call it together.
#pragma once

#include "cuda/core/platform.h"

namespace oes::cuda {

// The nearest TF32 number, of two that are as near the one further from zero; the low 13 bits are 0.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef OES_EMULATE_CUDA
  return ::oes::emulation::to_tf32(x);
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
#endif
}

__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef OES_EMULATE_CUDA
  ::oes::emulation::mma_tf32_16x8x8(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// A number as one TF32 number or, for three products in place of one, as the sum of two.
template <bool kThree>
struct Tf32Split {
  uint32_t high, low;

  Tf32Split() = default;
  __device__ __forceinline__ explicit Tf32Split(float x) : high(to_tf32(x)), low(0) {
    if constexpr (kThree) {
      low = to_tf32(x - __uint_as_float(high));
    }
  }
};

// d += a b, in three products where the numbers are split: the small ones first.
template <bool kThree>
__device__ __forceinline__ void mma_split_16x8x8(
    float (&d)[4], const Tf32Split<kThree> (&a)[4], const Tf32Split<kThree> (&b)[2]) {
  const uint32_t a_high[4] = {a[0].high, a[1].high, a[2].high, a[3].high}, b_high[2] = {b[0].high, b[1].high};
  if constexpr (kThree) {
    const uint32_t a_low[4] = {a[0].low, a[1].low, a[2].low, a[3].low}, b_low[2] = {b[0].low, b[1].low};
    mma_tf32_16x8x8(d, a_low, b_high);
    mma_tf32_16x8x8(d, a_high, b_low);
  }
  mma_tf32_16x8x8(d, a_high, b_high);
}

} // namespace oes::cuda
