// Sums of products that stay in registers: the inner loops of the convolutions. Included once for each instruction set
// with OES_ISA and OES_ISA_INLINE defined: intrinsics and vector types need the target attribute on every function that
// touches them. There is no include guard, on purpose.

// interleave: one, then the other, by turns. deinterleave: the even and the odd ones of x and y. sums: of the lanes of
// each of four vectors.
template <typename T>
struct Vector;

#if OES_ISA == 2
template <>
struct Vector<float> {
  using Type = __m512;
  OES_ISA_INLINE static Type load(const float* p) {
    return _mm512_loadu_ps(p);
  }
  OES_ISA_INLINE static Type all(float x) {
    return _mm512_set1_ps(x);
  }
  OES_ISA_INLINE static void store(float* p, Type x) {
    _mm512_storeu_ps(p, x);
  }
  OES_ISA_INLINE static Type fma(Type a, Type b, Type c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  OES_ISA_INLINE static void interleave(float* p, Type even, Type odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    store(p, _mm512_permutex2var_ps(even, low, odd));
    store(p + 16, _mm512_permutex2var_ps(even, high, odd));
  }
  OES_ISA_INLINE static void deinterleave(Type x, Type y, float* even, float* odd) {
    const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i second = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    store(even, _mm512_permutex2var_ps(x, first, y));
    store(odd, _mm512_permutex2var_ps(x, second, y));
  }
  OES_ISA_INLINE static __m256 half(Type x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  }
  OES_ISA_INLINE static void sums(const Type (&x)[4], float* p) {
    const __m256 pair = _mm256_hadd_ps(half(x[0]), half(x[1])), other = _mm256_hadd_ps(half(x[2]), half(x[3]));
    const __m256 both = _mm256_hadd_ps(pair, other);
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
  }
};
template <>
struct Vector<double> {
  using Type = __m512d;
  OES_ISA_INLINE static Type load(const double* p) {
    return _mm512_loadu_pd(p);
  }
  OES_ISA_INLINE static Type all(double x) {
    return _mm512_set1_pd(x);
  }
  OES_ISA_INLINE static void store(double* p, Type x) {
    _mm512_storeu_pd(p, x);
  }
  OES_ISA_INLINE static Type fma(Type a, Type b, Type c) {
    return _mm512_fmadd_pd(a, b, c);
  }
  OES_ISA_INLINE static void interleave(double* p, Type even, Type odd) {
    store(p, _mm512_permutex2var_pd(even, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), odd));
    store(p + 8, _mm512_permutex2var_pd(even, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), odd));
  }
  OES_ISA_INLINE static void deinterleave(Type x, Type y, double* even, double* odd) {
    store(even, _mm512_permutex2var_pd(x, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), y));
    store(odd, _mm512_permutex2var_pd(x, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), y));
  }
  OES_ISA_INLINE static __m256d half(Type x) {
    return _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
  }
  OES_ISA_INLINE static void sums(const Type (&x)[4], double* p) {
    const __m256d pair = _mm256_hadd_pd(half(x[0]), half(x[1])), other = _mm256_hadd_pd(half(x[2]), half(x[3]));
    _mm256_storeu_pd(
        p, _mm256_add_pd(_mm256_permute2f128_pd(pair, other, 0x20), _mm256_permute2f128_pd(pair, other, 0x31)));
  }
};
#elif OES_ISA == 1
template <>
struct Vector<float> {
  using Type = __m256;
  OES_ISA_INLINE static Type load(const float* p) {
    return _mm256_loadu_ps(p);
  }
  OES_ISA_INLINE static Type all(float x) {
    return _mm256_set1_ps(x);
  }
  OES_ISA_INLINE static void store(float* p, Type x) {
    _mm256_storeu_ps(p, x);
  }
  OES_ISA_INLINE static Type fma(Type a, Type b, Type c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  OES_ISA_INLINE static void interleave(float* p, Type even, Type odd) {
    const Type low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    store(p, _mm256_permute2f128_ps(low, high, 0x20));
    store(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  OES_ISA_INLINE static void deinterleave(Type x, Type y, float* even, float* odd) {
    const Type low = _mm256_permute2f128_ps(x, y, 0x20), high = _mm256_permute2f128_ps(x, y, 0x31);
    const Type first = _mm256_shuffle_ps(low, high, 0x88), second = _mm256_shuffle_ps(low, high, 0xDD);
    store(even, first);
    store(odd, second);
  }
  OES_ISA_INLINE static void sums(const Type (&x)[4], float* p) {
    const Type both = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
  }
};
template <>
struct Vector<double> {
  using Type = __m256d;
  OES_ISA_INLINE static Type load(const double* p) {
    return _mm256_loadu_pd(p);
  }
  OES_ISA_INLINE static Type all(double x) {
    return _mm256_set1_pd(x);
  }
  OES_ISA_INLINE static void store(double* p, Type x) {
    _mm256_storeu_pd(p, x);
  }
  OES_ISA_INLINE static Type fma(Type a, Type b, Type c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  OES_ISA_INLINE static void interleave(double* p, Type even, Type odd) {
    const Type low = _mm256_unpacklo_pd(even, odd), high = _mm256_unpackhi_pd(even, odd);
    store(p, _mm256_permute2f128_pd(low, high, 0x20));
    store(p + 4, _mm256_permute2f128_pd(low, high, 0x31));
  }
  OES_ISA_INLINE static void deinterleave(Type x, Type y, double* even, double* odd) {
    const Type low = _mm256_permute2f128_pd(x, y, 0x20), high = _mm256_permute2f128_pd(x, y, 0x31);
    store(even, _mm256_unpacklo_pd(low, high));
    store(odd, _mm256_unpackhi_pd(low, high));
  }
  OES_ISA_INLINE static void sums(const Type (&x)[4], double* p) {
    const Type pair = _mm256_hadd_pd(x[0], x[1]), other = _mm256_hadd_pd(x[2], x[3]);
    store(p, _mm256_permute2f128_pd(pair, other, 0x20) + _mm256_permute2f128_pd(pair, other, 0x31));
  }
};
#else
template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(16)));
  OES_ISA_INLINE static Type load(const T* p) {
    Type x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  OES_ISA_INLINE static Type all(T x) {
    return x - Type{};
  }
  OES_ISA_INLINE static void store(T* p, Type x) {
    std::memcpy(p, &x, sizeof x);
  }
  OES_ISA_INLINE static Type fma(Type a, Type b, Type c) {
    return a * b + c;
  }
  OES_ISA_INLINE static void interleave(T* p, Type even, Type odd) {
    for (size_t k = 0; k < 16 / sizeof(T); ++k) {
      p[2 * k] = even[k];
      p[2 * k + 1] = odd[k];
    }
  }
  OES_ISA_INLINE static void deinterleave(Type x, Type y, T* even, T* odd) {
    constexpr size_t half = 8 / sizeof(T);
    for (size_t k = 0; k < half; ++k) {
      even[k] = x[2 * k];
      even[k + half] = y[2 * k];
      odd[k] = x[2 * k + 1];
      odd[k + half] = y[2 * k + 1];
    }
  }
  OES_ISA_INLINE static void sums(const Type (&x)[4], T* p) {
    for (int i = 0; i < 4; ++i) {
      p[i] = x[i][0];
      for (size_t k = 1; k < 16 / sizeof(T); ++k) {
        p[i] += x[i][k];
      }
    }
  }
};
#endif

template <typename T>
constexpr int kLanes = vector_bytes(kCapability) / static_cast<int>(sizeof(T));

// One line of memory to come for each tap while the taps of a tile are summed.
template <typename T>
struct Fetch {
  const T* at;

  OES_ISA_INLINE void one() {
    __builtin_prefetch(at);
    at += 64 / sizeof(T);
  }
};

// A tile of kVectors vectors: its sums stay in registers over all taps. Tap t reads at source + offsets[t]. With kAdd
// the sums start from what the tile holds, else from zero; with kFetch every tap fetches a line.
template <int kVectors, bool kAdd = false, bool kFetch = false, typename T, typename Offset>
OES_ISA_INLINE void tile(
    const T* source, const T* weights, const Offset* offsets, int64_t taps, T* out, Fetch<T>* fetch = nullptr) {
  using V = Vector<T>;
  typename V::Type sum[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = kAdd ? V::load(out + v * kLanes<T>) : V::all(T(0));
  }
  for (int64_t t = 0; t < taps; ++t) {
    const T* row = source + offsets[t];
    const typename V::Type weight = V::all(weights[t]);
    if constexpr (kFetch) {
      fetch->one();
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = V::fma(weight, V::load(row + v * kLanes<T>), sum[v]);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    V::store(out + v * kLanes<T>, sum[v]);
  }
}

template <typename T>
OES_ISA_INLINE T sum_of_lanes(typename Vector<T>::Type x) {
  alignas(64) T lanes[kLanes<T>];
  Vector<T>::store(lanes, x);
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

// kTaps products of one output's gradient, over a number of rows. The last, partial vector of a row is read from
// the row's end backwards, the pixels already counted multiplied by zero.
// With kFetch every step along a row fetches a line.
template <int kTaps, bool kFetch, typename T, typename Offset>
OES_ISA_INLINE void weight_grads(
    const T* source, const Offset* offsets, const T* grad, int64_t rows, int64_t length, int64_t pitch,
    int64_t grad_pitch, const T* zeros_then_ones, T* result, Fetch<T>& fetch) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int kVectors = OES_ISA == 2 ? 4 : OES_ISA == 1 ? 2 : 1; // 24 or 12 sums in registers, or 6
  typename V::Type sum[kTaps][kVectors];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[k][v] = V::all(T(0));
    }
  }
  const int64_t tail = length % lanes;
  for (int64_t i = 0; i < rows; ++i) {
    const T* g = grad + i * grad_pitch;
    const T* s[kTaps];
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) {
      s[k] = source + offsets[k] + i * pitch;
    }
    int64_t j = 0;
    for (; j + kVectors * lanes <= length; j += kVectors * lanes) {
      typename V::Type factor[kVectors];
      if constexpr (kFetch) {
        fetch.one();
      }
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        factor[v] = V::load(g + j + v * lanes);
      }
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          sum[k][v] = V::fma(factor[v], V::load(s[k] + j + v * lanes), sum[k][v]);
        }
      }
    }
    for (; j + lanes <= length; j += lanes) {
      const typename V::Type factor = V::load(g + j);
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) {
        sum[k][0] = V::fma(factor, V::load(s[k] + j), sum[k][0]);
      }
    }
    if (tail != 0) {
      const typename V::Type factor = V::load(g + length - lanes) * V::load(zeros_then_ones + tail);
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) {
        sum[k][0] = V::fma(factor, V::load(s[k] + length - lanes), sum[k][0]);
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
    for (int v = 1; v < kVectors; ++v) {
      sum[k][0] = sum[k][0] + sum[k][v];
    }
    result[k] = sum_of_lanes<T>(sum[k][0]);
  }
}
