// The AVX-512 intrinsics of the kernels on AVX2: for `make emulate`, which runs their tests with the capability avx512
// on a processor without it. Vectors of 64 bytes are the compiler's own, in two halves; products and sums round alike.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define OES_EMULATED __attribute__((target("avx2,fma"), always_inline)) inline

namespace oes::emulated {

using Lanes32 = uint32_t __attribute__((vector_size(64)));
using Lanes64 = uint64_t __attribute__((vector_size(64)));

template <typename V, typename T>
OES_EMULATED V load(const T* p) {
  V result;
  std::memcpy(&result, p, sizeof(V));
  return result;
}

template <typename T, typename V>
OES_EMULATED void store(T* p, V x) {
  std::memcpy(p, &x, sizeof(V));
}

template <typename V, typename T>
OES_EMULATED V all(T x) {
  return x - V{};
}

template <typename Half, typename V>
OES_EMULATED Half half(V x, int index) {
  Half both[2];
  std::memcpy(both, &x, sizeof(V));
  return both[index];
}

OES_EMULATED __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  __m256 both[2];
  for (int i = 0; i < 2; ++i) {
    both[i] = _mm256_fmadd_ps(half<__m256>(a, i), half<__m256>(b, i), half<__m256>(c, i));
  }
  return load<__m512>(both);
}

OES_EMULATED __m512d fmadd(__m512d a, __m512d b, __m512d c) {
  __m256d both[2];
  for (int i = 0; i < 2; ++i) {
    both[i] = _mm256_fmadd_pd(half<__m256d>(a, i), half<__m256d>(b, i), half<__m256d>(c, i));
  }
  return load<__m512d>(both);
}

OES_EMULATED __m512i shifted(__m512i x, int count) {
  return reinterpret_cast<__m512i>(reinterpret_cast<Lanes64>(x) >> count);
}

OES_EMULATED __m512i products(__m512i a, __m512i b) {
  return reinterpret_cast<__m512i>(
      (reinterpret_cast<Lanes64>(a) & 0xFFFFFFFFu) * (reinterpret_cast<Lanes64>(b) & 0xFFFFFFFFu));
}

// The low halves of a below those of b.
OES_EMULATED __m512i paired(__m512i a, __m512i b) {
  const auto low = reinterpret_cast<Lanes64>(a) & 0xFFFFFFFFu;
  return reinterpret_cast<__m512i>(low | (reinterpret_cast<Lanes64>(b) << 32));
}

// Of each two lanes the first or the second: of a, then of b.
OES_EMULATED __m512i unpacked(__m512i a, __m512i b, int second) {
  const Lanes64 first_ones = {0, 8, 2, 10, 4, 12, 6, 14};
  return __builtin_shuffle(a, b, reinterpret_cast<__m512i>(first_ones + static_cast<uint64_t>(second)));
}

} // namespace oes::emulated

// Macros in some versions of the compiler's header.
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#undef _mm512_srli_epi64
#undef _mm512_ternarylogic_epi64
#undef _mm512_mask_shuffle_epi32

#define _mm512_loadu_ps(P) oes::emulated::load<__m512>(P)
#define _mm512_loadu_pd(P) oes::emulated::load<__m512d>(P)
#define _mm512_storeu_ps(P, X) oes::emulated::store(P, X)
#define _mm512_storeu_pd(P, X) oes::emulated::store(P, X)
#define _mm512_set1_ps(X) oes::emulated::all<__m512, float>(X)
#define _mm512_set1_pd(X) oes::emulated::all<__m512d, double>(X)
#define _mm512_fmadd_ps(A, B, C) oes::emulated::fmadd(A, B, C)
#define _mm512_fmadd_pd(A, B, C) oes::emulated::fmadd(A, B, C)
#define _mm512_setr_epi32(...) reinterpret_cast<__m512i>(oes::emulated::Lanes32{__VA_ARGS__})
#define _mm512_setr_epi64(...) reinterpret_cast<__m512i>(oes::emulated::Lanes64{__VA_ARGS__})
#define _mm512_permutex2var_ps(A, FROM, B) __builtin_shuffle(A, B, reinterpret_cast<oes::emulated::Lanes32>(FROM))
#define _mm512_permutex2var_pd(A, FROM, B) __builtin_shuffle(A, B, FROM)
#define _mm512_castps512_ps256(A) oes::emulated::half<__m256>(A, 0)
#define _mm512_castpd512_pd256(A) oes::emulated::half<__m256d>(A, 0)
#define _mm512_extractf32x8_ps(A, HALF) oes::emulated::half<__m256>(A, HALF)
#define _mm512_extractf64x4_pd(A, HALF) oes::emulated::half<__m256d>(A, HALF)

#define _mm512_load_si512(P) oes::emulated::load<__m512i>(P)
#define _mm512_store_si512(P, X) oes::emulated::store(P, X)
#define _mm512_set1_epi64(X) oes::emulated::all<__m512i, int64_t>(X)
#define _mm512_add_epi64(A, B) ((A) + (B))
#define _mm512_srli_epi64(A, COUNT) oes::emulated::shifted(A, COUNT)
#define _mm512_mul_epu32(A, B) oes::emulated::products(A, B)
#define _mm512_ternarylogic_epi64(A, B, C, TABLE) ((A) ^ (B) ^ (C)) // 0x96, the only one in use
#define _mm512_mask_shuffle_epi32(A, MASK, B, ORDER) oes::emulated::paired(A, B) // 0xAAAA and CCAA
#define _mm512_unpacklo_epi64(A, B) oes::emulated::unpacked(A, B, 0)
#define _mm512_unpackhi_epi64(A, B) oes::emulated::unpacked(A, B, 1)
