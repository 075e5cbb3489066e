// The inner loops of conv2d, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"
#include "cpu/core/output_tiles_isa.h"

// Behind the tiles of core.
#include "cpu/conv/winograd/tiles_isa.h"

// Tiles of a strip.
template <typename T>
constexpr int64_t kStrip = kTileVectors * kLanes<T>;

constexpr int64_t kGroup = kTilesOfGroup * kTileOutputs; // planes of the result that are summed together

// The inverse of load_columns.
template <int kTile, typename T>
OES_ISA_INLINE void store_columns(T* to, const typename Vector<T>::Type (&columns)[kTile]) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kTile == 2) {
    V::interleave(to, columns[0], columns[1]);
  } else {
    alignas(64) T even[2 * lanes], odd[2 * lanes];
    V::interleave(even, columns[0], columns[2]);
    V::interleave(odd, columns[1], columns[3]);
    V::interleave(to, V::load(even), V::load(odd));
    V::interleave(to + 2 * lanes, V::load(even + lanes), V::load(odd + lanes));
  }
}

// Frequencies to outputs: powers of the points, the i-th for output i.
template <int kTile, typename T>
OES_ISA_INLINE void inverse(const typename Vector<T>::Type (&x)[4], typename Vector<T>::Type (&y)[kTile]) {
  static_assert(kTile == 2);
  y[0] = x[0] + (x[1] + x[2]);
  y[1] = (x[1] - x[2]) + x[3];
}

template <int kTile, typename T>
OES_ISA_INLINE void inverse(const typename Vector<T>::Type (&x)[6], typename Vector<T>::Type (&y)[kTile]) {
  using V = Vector<T>;
  using Type = typename V::Type;
  constexpr T near = T(kPoints6[1]), far = T(kPoints6[3]);
  const Type sum = x[1] + x[2], difference = x[1] - x[2], sum_far = x[3] + x[4], difference_far = x[3] - x[4];
  y[0] = x[0] + (sum + sum_far);
  y[1] = V::fma(V::all(near), difference, V::all(far) * difference_far);
  if constexpr (kTile == 4) {
    y[2] = V::fma(V::all(near * near), sum, V::all(far * far) * sum_far);
    y[3] = V::fma(V::all(near * near * near), difference, V::all(far * far * far) * difference_far);
  }
  y[kTile - 1] = y[kTile - 1] + x[5];
}

// The outputs of one plane of the result from its frequencies, `next` from one frequency to the next.
template <int kTile, int kPoints, typename T>
OES_ISA_INLINE void store_outputs(
    const T* frequencies, int64_t next, const TileSpan* spans, int64_t count, int64_t tiles, T* buffer, T* out,
    int64_t columns) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, wide = kTile * kStrip<T>;
  for (int64_t v = 0; v < tiles; v += lanes) {
    typename V::Type rows[kTile][kPoints];
#pragma GCC unroll 16
    for (int c = 0; c < kPoints; ++c) {
      typename V::Type x[kPoints], y[kTile];
#pragma GCC unroll 16
      for (int r = 0; r < kPoints; ++r) {
        x[r] = V::load(frequencies + (r * kPoints + c) * next + v);
      }
      inverse<kTile, T>(x, y);
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
        rows[i][c] = y[i];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      typename V::Type y[kTile];
      inverse<kTile, T>(rows[i], y);
      store_columns<kTile>(buffer + i * wide + v * kTile, y);
    }
  }
  for (const TileSpan* span = spans; span != spans + count; ++span) {
    const int64_t size = span->tiles * kTile;
    for (int64_t i = span->skip_rows; i < kTile; ++i) {
      const T* from = buffer + i * wide + span->lane * kTile;
      T* to = out + (span->row + i) * columns + span->column;
      int64_t k = span->skip_columns;
      for (; k + lanes <= size; k += lanes) {
        V::store(to + k, V::load(from + k));
      }
      for (; k < size; ++k) {
        to[k] = from[k];
      }
    }
  }
}

template <int kTile, int kPoints, typename T>
OES_TARGET void sum_of(const TapSum<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>, strip = kStrip<T>, all = kPoints * kPoints;
  const int64_t total = (a.rows + kTile - 1) / kTile * ((a.columns + kTile - 1) / kTile);
  const int64_t groups = (a.planes + kGroup - 1) / kGroup;
  T* pixels =
      workspace<T>(a.pixel_first[all] * strip + all * (kLine + kGroup * strip + strip + lanes) + kTile * kTile * strip);
  T* products = pixels + a.pixel_first[all] * strip + all * kLine; // [points, points, planes of a group, strip]
  T* columns = products + all * kGroup * strip;
  T* buffer = columns + all * (strip + lanes);
  TileSpan spans[kStrip<T>];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t at = task / a.tasks_of_strip * strip, task_of_strip = task % a.tasks_of_strip;
    const int64_t until = at + strip < total ? at + strip : total, tiles = until - at;
    const int64_t vectors = (tiles + lanes - 1) / lanes;
    const int64_t count = find_spans(a, at, until, spans);
    transform_planes<kTile, kPoints, kTileVectors>(a, spans, count, tiles, columns, pixels);
    const int64_t first = task_of_strip * a.classes * groups / a.tasks_of_strip,
                  last = (task_of_strip + 1) * a.classes * groups / a.tasks_of_strip;
    for (int64_t group = first; group < last; ++group) {
      const int64_t k = group / groups, from = group % groups * kGroup;
      const int64_t to = from + kGroup < a.planes ? from + kGroup : a.planes;
      const int64_t* taps = a.taps + k * all;
      const T* weights = a.weights + a.planes * taps[0] + from * (taps[all] - taps[0]);
      for (int64_t f = 0; f < all; ++f) {
        T* sums = products + f * kGroup * strip;
        const int64_t sources = taps[f + 1] - taps[f];
        if (sources == 0) {
          for (int64_t i = 0; i < (to - from) * strip; ++i) {
            sums[i] = T(0);
          }
          continue;
        }
        const T* of_frequency = weights + (taps[f] - taps[0]) * (to - from);
        for_output_tiles(from, to, [&](auto rows, int64_t p) OES_TARGET OES_LAMBDA {
          output_tiles<rows.value, false>(
              pixels + a.pixel_first[f] * strip + f * kLine, of_frequency + (p - from) * sources, a.offsets, sources,
              vectors, sums + (p - from) * strip, strip);
        });
      }
      for (int64_t p = from; p < to; ++p) {
        store_outputs<kTile, kPoints>(
            products + (p - from) * strip, kGroup * strip, spans, count, tiles, buffer,
            a.out + (p * a.classes + k) * a.rows * a.columns, a.columns);
      }
    }
  }
}

template <typename T>
OES_TARGET void sum(const TapSum<T>& a, int64_t begin, int64_t end) {
  if (a.points == 4) {
    sum_of<2, 4>(a, begin, end);
  } else if (a.tile == 2) {
    sum_of<2, 6>(a, begin, end);
  } else {
    sum_of<4, 6>(a, begin, end);
  }
}

// Weights that are transformed at once.
constexpr int64_t kWeights = 16;

// result = scale * to_points * window * transposed to_points, for each of `size` kernels; tap t of the window is at
// weights + taps[t] * size.
template <int kWindow, int kPoints, typename T>
OES_ISA_INLINE void transform_windows(
    const T* weights, const int64_t* taps, const T* to_points, T scale, int64_t size, T* result) {
  using V = Vector<T>;
  for (int64_t at = 0; at < size; at += kLanes<T>) {
    typename V::Type of_columns[kPoints][kWindow];
#pragma GCC unroll 16
    for (int v = 0; v < kWindow; ++v) {
      typename V::Type x[kWindow];
#pragma GCC unroll 16
      for (int u = 0; u < kWindow; ++u) {
        x[u] = V::all(scale) * V::load(weights + taps[u * kWindow + v] * size + at);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kPoints; ++i) {
        typename V::Type sum = V::all(to_points[i * kWindow]) * x[0];
#pragma GCC unroll 16
        for (int u = 1; u < kWindow; ++u) {
          sum = V::fma(V::all(to_points[i * kWindow + u]), x[u], sum);
        }
        of_columns[i][v] = sum;
      }
    }
    for (int i = 0; i < kPoints; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kPoints; ++j) {
        typename V::Type sum = V::all(to_points[j * kWindow]) * of_columns[i][0];
#pragma GCC unroll 16
        for (int v = 1; v < kWindow; ++v) {
          sum = V::fma(V::all(to_points[j * kWindow + v]), of_columns[i][v], sum);
        }
        V::store(result + (i * kPoints + j) * size + at, sum);
      }
    }
  }
}

template <typename T>
OES_TARGET void transform_weights(
    const T* weights, const int64_t* taps, const T* to_points, T scale, int tile, int points, int64_t rows, T* result) {
  if (points == 4) {
    transform_windows<3, 4>(weights, taps, to_points, scale, kWeights * rows, result);
  } else if (tile == 2) {
    transform_windows<5, 6>(weights, taps, to_points, scale, kWeights * rows, result);
  } else {
    transform_windows<3, 6>(weights, taps, to_points, scale, kWeights * rows, result);
  }
}
