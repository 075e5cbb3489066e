// The inner loops of sparse_conv2d, included once per capability with OES_LEVEL and OES_HERE (the target attribute)
// defined: intrinsics and vector types need the attribute on every function that touches them, so OES_CAPABILITIES
// does not serve here. There is no include guard, on purpose.

template <typename T>
struct Vector;

#if OES_LEVEL == 2
template <>
struct Vector<float> {
  using Type = __m512;
  OES_HERE static Type load(const float* p) { return _mm512_loadu_ps(p); }
  OES_HERE static Type all(float x) { return _mm512_set1_ps(x); }
  OES_HERE static void store(float* p, Type x) { _mm512_storeu_ps(p, x); }
  OES_HERE static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
};
template <>
struct Vector<double> {
  using Type = __m512d;
  OES_HERE static Type load(const double* p) { return _mm512_loadu_pd(p); }
  OES_HERE static Type all(double x) { return _mm512_set1_pd(x); }
  OES_HERE static void store(double* p, Type x) { _mm512_storeu_pd(p, x); }
  OES_HERE static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_pd(a, b, c); }
};
#elif OES_LEVEL == 1
template <>
struct Vector<float> {
  using Type = __m256;
  OES_HERE static Type load(const float* p) { return _mm256_loadu_ps(p); }
  OES_HERE static Type all(float x) { return _mm256_set1_ps(x); }
  OES_HERE static void store(float* p, Type x) { _mm256_storeu_ps(p, x); }
  OES_HERE static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
};
template <>
struct Vector<double> {
  using Type = __m256d;
  OES_HERE static Type load(const double* p) { return _mm256_loadu_pd(p); }
  OES_HERE static Type all(double x) { return _mm256_set1_pd(x); }
  OES_HERE static void store(double* p, Type x) { _mm256_storeu_pd(p, x); }
  OES_HERE static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_pd(a, b, c); }
};
#else
template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(16)));
  OES_HERE static Type load(const T* p) {
    Type x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  OES_HERE static Type all(T x) { return x - Type{}; }
  OES_HERE static void store(T* p, Type x) { std::memcpy(p, &x, sizeof x); }
  OES_HERE static Type fma(Type a, Type b, Type c) { return a * b + c; }
};
#endif

constexpr Capability kCapability = static_cast<Capability>(OES_LEVEL);
constexpr int kRows = tile_rows(kCapability);

template <typename T>
constexpr int kLanes = vector_bytes(kCapability) / static_cast<int>(sizeof(T));

// A tile of kHigh rows of kVectors vectors: its sums stay in registers over all taps.
template <int kHigh, int kVectors, typename T>
OES_HERE void tile(
    const T* source,
    int64_t pitch,
    const T* weights,
    const int64_t* offsets,
    int64_t taps,
    T* out,
    int64_t out_pitch,
    int64_t skip) {
  using V = Vector<T>;
  typename V::Type sum[kHigh][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kHigh; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = V::all(T(0));
    }
  }
  for (int64_t t = 0; t < taps; ++t) {
    const T* row = source + offsets[t];
    const typename V::Type weight = V::all(weights[t]);
#pragma GCC unroll 16
    for (int r = 0; r < kHigh; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = V::fma(weight, V::load(row + v * kLanes<T>), sum[r][v]);
      }
      row += pitch;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kHigh; ++r) {
    if (r >= skip) { // rows above belong to the strip before
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        V::store(out + r * out_pitch + v * kLanes<T>, sum[r][v]);
      }
    }
  }
}

// Rows of a strip of a wide image, all planes of a group tile by tile: the tile's part of the source stays near.
template <typename T>
OES_HERE void gather_rows(const Gather<T>& a, int64_t image, int64_t strip, int64_t begin, int64_t end) {
  const int64_t row = strip * kRows < a.rows - kRows ? strip * kRows : a.rows - kRows;
  const int64_t skip = strip * kRows - row;
  const T* source = a.source + image * a.source_image + row * a.pitch;
  for (int64_t column = 0; column < a.columns;) {
    const int64_t left = a.columns - column;
    const int vectors = left > 2 * kLanes<T> ? 4 : left > kLanes<T> ? 2 : 1;
    const int64_t at = left < vectors * kLanes<T> ? a.columns - vectors * kLanes<T> : column;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t t = a.first[plane], taps = a.first[plane + 1] - t;
      T* out = a.out + ((image * a.planes + plane) * a.rows + row) * a.columns + at;
      if (vectors == 4) {
        tile<kRows, 4>(source + at, a.pitch, a.weights + t, a.offsets + t, taps, out, a.columns, skip);
      } else if (vectors == 2) {
        tile<kRows, 2>(source + at, a.pitch, a.weights + t, a.offsets + t, taps, out, a.columns, skip);
      } else {
        tile<kRows, 1>(source + at, a.pitch, a.weights + t, a.offsets + t, taps, out, a.columns, skip);
      }
    }
    column = at + vectors * kLanes<T>;
  }
}

// Elements begin .. end of a buffer that starts at element `at` of the image with its pitch, to the image without.
template <typename T>
OES_HERE void store_flat(const T* buffer, int64_t at, int64_t begin, int64_t end, int64_t pitch, T* out, int64_t columns) {
  for (int64_t p = begin; p < end;) {
    const int64_t i = p / pitch, j = p - i * pitch;
    const int64_t until = (i + 1) * pitch < end ? (i + 1) * pitch : end;
    const int64_t count = (until - p < columns - j ? until - p : columns - j);
    for (int64_t k = 0; k < count; ++k) {
      out[i * columns + j + k] = buffer[p - at + k];
    }
    p = until;
  }
}

template <typename T>
OES_HERE void gather_flat(const Gather<T>& a, int64_t image, int64_t strip, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t total = (a.rows - 1) * a.pitch + a.columns;
  const int64_t from = strip * kFlat * lanes;
  const int64_t to = from + kFlat * lanes < total ? from + kFlat * lanes : total;
  const T* source = a.source + image * a.source_image;
  alignas(64) T buffer[kFlat * lanes];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t t = a.first[plane], taps = a.first[plane + 1] - t;
    const T* weights = a.weights + t;
    const int64_t* offsets = a.offsets + t;
    T* out = a.out + (image * a.planes + plane) * a.rows * a.columns;
    for (int64_t p = from; p < to;) {
      const int64_t left = to - p;
      int64_t vectors = left > 8 * lanes ? 12 : left > 4 * lanes ? 8 : left > 2 * lanes ? 4 : left > lanes ? 2 : 1;
      while (vectors > 1 && vectors * lanes > total) {
        vectors = vectors == 12 ? 8 : vectors / 2;
      }
      int64_t at = p + vectors * lanes <= total ? p : total - vectors * lanes;
      if (total < lanes) {
        at = p;
        for (int64_t k = 0; k < left; ++k) {
          T sum = T(0);
          for (int64_t tap = 0; tap < taps; ++tap) {
            sum += weights[tap] * source[offsets[tap] + p + k];
          }
          buffer[k] = sum;
        }
      } else if (vectors == 12) {
        tile<1, 12>(source + at, 0, weights, offsets, taps, buffer, 0, 0);
      } else if (vectors == 8) {
        tile<1, 8>(source + at, 0, weights, offsets, taps, buffer, 0, 0);
      } else if (vectors == 4) {
        tile<1, 4>(source + at, 0, weights, offsets, taps, buffer, 0, 0);
      } else if (vectors == 2) {
        tile<1, 2>(source + at, 0, weights, offsets, taps, buffer, 0, 0);
      } else {
        tile<1, 1>(source + at, 0, weights, offsets, taps, buffer, 0, 0);
      }
      const int64_t until = at + vectors * lanes < to ? at + vectors * lanes : to;
      store_flat(buffer, at, p, until, a.pitch, out, a.columns);
      p = until;
    }
  }
}

template <typename T>
OES_TARGET void gather(const Gather<T>& a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % a.groups, strip = unit / a.groups % a.strips, image = unit / a.groups / a.strips;
    const int64_t from = group * a.planes / a.groups, to = (group + 1) * a.planes / a.groups;
    if (a.flat) {
      gather_flat(a, image, strip, from, to);
    } else {
      gather_rows(a, image, strip, from, to);
    }
  }
}

template <typename T>
OES_HERE T sum_of_lanes(typename Vector<T>::Type x) {
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
template <int kTaps, typename T>
OES_HERE void dot(
    const T* source,
    const int64_t* offsets,
    const T* grad,
    int64_t rows,
    int64_t length,
    int64_t pitch,
    int64_t grad_pitch,
    const T* zeros_then_ones,
    T* result) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int kVectors = OES_LEVEL == 2 ? 4 : OES_LEVEL == 1 ? 2 : 1; // 24 or 12 sums in registers, or 6
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

template <typename T>
OES_TARGET void dots(const Dot<T>& a, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  alignas(64) T zeros_then_ones[2 * lanes];
  for (int i = 0; i < 2 * lanes; ++i) {
    zeros_then_ones[i] = T(i < lanes ? 0 : 1);
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % a.groups, strip = unit / a.groups % a.strips, image = unit / a.groups / a.strips;
    const int64_t from = group * a.outputs / a.groups, to = (group + 1) * a.outputs / a.groups;
    const int64_t at = strip * a.strip_rows, extent = a.flat ? a.columns : a.rows;
    const int64_t size = extent - at < a.strip_rows ? extent - at : a.strip_rows;
    const int64_t rows = a.flat ? 1 : size, length = a.flat ? size : a.columns;
    const T* source = a.source + image * a.source_image + at * (a.flat ? 1 : a.pitch);
    T* partial = a.partial + (image * a.strips + strip) * a.taps;
    for (int64_t output = from; output < to; ++output) {
      const T* grad = a.grad + (image * a.outputs + output) * a.grad_plane + at * (a.flat ? 1 : a.grad_pitch);
      for (int64_t t = a.first[output]; t < a.first[output + 1];) {
        const int64_t left = a.first[output + 1] - t;
        const int64_t* offsets = a.offsets + t;
        if (a.columns < lanes) { // flat images of less than a vector
          T sum = T(0);
          for (int64_t k = 0; k < length; ++k) {
            sum += grad[k] * source[*offsets + k];
          }
          partial[t++] = sum;
          continue;
        }
        switch (left) {
          case 1:
            dot<1>(source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
            break;
          case 2:
            dot<2>(source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
            break;
          case 3:
            dot<3>(source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
            break;
          case 4:
            dot<4>(source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
            break;
          case 5:
            dot<5>(source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
            break;
          default:
            dot<kTapsAtOnce>(
                source, offsets, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t);
        }
        t += left < kTapsAtOnce ? left : kTapsAtOnce;
      }
    }
  }
}
