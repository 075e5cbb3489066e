// The loops of sparse_up_conv2d over a strip, forward, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"
#include "cpu/core/output_tiles_isa.h"

constexpr int64_t kLoneTileVectors = 12; // vectors of a tile

template <typename T>
OES_ISA_INLINE int64_t vectors_of(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

// Elements of a row of columns with room for a vector on either side.
template <typename T>
OES_ISA_INLINE int64_t line_of(int64_t columns) {
  return (vectors_of<T>(columns) + 2) * kLanes<T>;
}

// out[p] (+)= sum over the taps of weights[t] * source[offsets[t] + p] for a number of vectors, at most
// kLoneTileVectors.
template <bool kAdd, int kVectors = kLoneTileVectors, typename T>
OES_ISA_INLINE void products(
    const T* source, const T* weights, const int32_t* offsets, int64_t taps, int64_t vectors, T* out) {
  if (vectors == kVectors) {
    tile<kVectors, kAdd>(source, weights, offsets, taps, out);
  } else if constexpr (kVectors > 1) {
    products<kAdd, kVectors - 1>(source, weights, offsets, taps, vectors, out);
  }
}

// Rows first .. first + count of all channels, mapped, into planes of the strip. With `edge` 1 a row has a pixel more
// on either side and may lie beyond the image: there the image's edge repeats, or lies zero. Zeros fill the last
// vector.
template <typename T>
OES_ISA_INLINE void load_strip(
    const T* source, const norm::Prologue<T>& prologue, int64_t inputs, int64_t rows, int64_t columns, bool zeros,
    int64_t first, int64_t count, int64_t edge, int64_t plane, T* strip) {
  const int64_t pitch = columns + 2 * edge, end = vectors_of<T>(count * pitch) * kLanes<T>;
  for (int64_t c = 0; c < inputs; ++c) {
    const T* from = source + c * rows * columns;
    for (int64_t r = 0; r < count; ++r) {
      T* to = strip + c * plane + r * pitch;
      const int64_t row = first + r;
      if (zeros && (row < 0 || row >= rows)) {
        for (int64_t j = 0; j < pitch; ++j) {
          to[j] = T(0);
        }
        continue;
      }
      const int64_t inside = row < 0 ? 0 : row >= rows ? rows - 1 : row;
      // The same row of the next channel lies elsewhere, where nothing but this fetches it ahead.
      for (int64_t j = 0; c + 1 < inputs && j < columns; j += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(from + (rows + inside) * columns + j, 0, 2);
      }
      norm::prologue_row(from + inside * columns, prologue, c, columns, to + edge);
      if (edge != 0) {
        to[0] = zeros ? T(0) : to[1];
        to[columns + 1] = zeros ? T(0) : to[columns];
      }
    }
    for (int64_t j = count * pitch; j < end; ++j) {
      strip[c * plane + j] = T(0);
    }
  }
}

// Two rows of y from the nine b of an output, [9][plane], whose rows have an edge: `at` is where the row lies that
// stands in the middle. The kernel's upper row adds to y from the row above and the middle one, its lower row from the
// middle one and the one below.
template <typename T>
struct Combined {
  typename Vector<T>::Type even, odd;
};

template <typename T>
OES_ISA_INLINE Combined<T> combine_columns(const T* b, int64_t plane) {
  using V = Vector<T>;
  const typename V::Type left = V::load(b + 1), middle = V::load(b + plane + 1), right = V::load(b + 2 * plane + 1);
  return {V::load(b) + (middle + right), (left + middle) + V::load(b + 2 * plane + 2)};
}

// All rows of a strip of y, [2 rows, 2 columns], and the moments of it about its first pixel.
template <typename T>
OES_ISA_INLINE void combine(const T* b, int64_t plane, int64_t rows, int64_t columns, T* out, double* moments) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t pitch = columns + 2, wide = 2 * columns;
  if (columns < lanes) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t x = 0; x < 2 * wide; ++x) {
        const int64_t odd_row = x / wide, odd = x % 2, j = x % wide / 2;
        T sum = T(0);
        for (int64_t u = 0; u < 3; ++u) {
          const int64_t row = r + (u == 0 ? odd_row : u == 1 ? 1 : 1 + odd_row);
          const T* of_row = b + 3 * u * plane + row * pitch + j;
          sum += of_row[odd] + (of_row[plane + 1] + of_row[2 * plane + 1 + odd]);
        }
        out[r * 2 * wide + x] = sum;
      }
    }
    if (moments != nullptr) {
      norm::Moments<T> all(out[0]);
      all.add(out, 2 * rows * wide);
      all.finish(2 * rows * wide, moments);
    }
    return;
  }
  alignas(64) T first_and_rest[2 * lanes];
  for (int64_t k = 0; k < 2 * lanes; ++k) {
    first_and_rest[k] = T(k < lanes ? 0 : 1);
  }
  typename V::Type pivot = V::all(T(0)), sum = V::all(T(0)), square = V::all(T(0));
  for (int64_t r = 0; r < rows; ++r) {
    T* to_row = out + r * 2 * wide;
    const int64_t row = (r + 1) * pitch;
    for (int64_t j = 0; j < columns; j += lanes) {
      // The last vector starts where a whole vector still fits; its pixels that were counted before count for nothing.
      const int64_t at = columns - j < lanes ? columns - lanes : j;
      const T* from = b + row + at;
      const Combined<T> above = combine_columns(from - pitch, plane), next = combine_columns(from, plane);
      const Combined<T> middle = combine_columns(from + 3 * plane, plane);
      const Combined<T> here = combine_columns(from + 6 * plane, plane),
                        below = combine_columns(from + 6 * plane + pitch, plane);
      const typename V::Type pixels[4] = {
          above.even + (middle.even + here.even), above.odd + (middle.odd + here.odd),
          (next.even + middle.even) + below.even, (next.odd + middle.odd) + below.odd};
      T* to = to_row + 2 * at;
      V::interleave(to, pixels[0], pixels[1]);
      V::interleave(to + wide, pixels[2], pixels[3]);
      if (moments != nullptr) {
        if (j == 0 && r == 0) {
          pivot = V::all(out[0]);
        }
        const typename V::Type counted = V::load(first_and_rest + lanes - (j - at));
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          typename V::Type d = pixels[k] - pivot;
          if (j != at) {
            d = d * counted;
          }
          sum = sum + d;
          square = V::fma(d, d, square);
        }
      }
    }
  }
  if (moments != nullptr) {
    alignas(64) T of_lanes[2 * lanes];
    V::store(of_lanes, sum);
    V::store(of_lanes + lanes, square);
    double first = 0, second = 0;
    for (int64_t k = 0; k < lanes; ++k) {
      first += static_cast<double>(of_lanes[k]);
      second += static_cast<double>(of_lanes[lanes + k]);
    }
    const auto n = static_cast<double>(2 * rows * wide);
    moments[0] = static_cast<double>(out[0]) + first / n;
    moments[1] = second - first * first / n;
  }
}

// The vectors of a strip that a row of the kernel reads, in tiles of about one size: those of a short one would
// epilogue registers empty.
struct Tiles {
  int64_t begin, vectors, count;

  OES_INLINE int64_t from(int64_t tile) const {
    return begin + tile * vectors / count;
  }
};

template <typename T>
OES_TARGET void upsample_conv(const UpsampleConv<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  const bool up = a.kernel == kUpsampleKernel;
  const int64_t halo = up ? 1 : 0, side = up ? 3 : 1, columns = a.columns, pitch = columns + 2 * halo;
  const int64_t plane = a.plane, of_output = a.kernel * plane;
  T* strip = workspace<T>(a.inputs * plane + (a.dense ? kTileOutputs : 1) * of_output);
  T* b = strip + a.inputs * plane;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, at = task / a.groups;
    const int64_t first = at * a.strip_rows;
    const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
    load_strip(
        a.source, a.prologue, a.inputs, a.rows, columns, a.zeros, first - halo, rows + 2 * halo, halo, plane, strip);
    const auto finish = [&](int64_t o, const T* sums) OES_TARGET OES_LAMBDA {
      double* moments = a.moments == nullptr ? nullptr : a.moments + 2 * (at * a.outputs + o);
      if (up) {
        combine(sums, plane, rows, columns, a.out + (o * a.rows + first) * 4 * columns, moments);
        return;
      }
      T* out = a.out + (o * a.rows + first) * columns;
      for (int64_t j = 0; j < rows * columns; ++j) {
        out[j] = sums[j];
      }
      if (moments != nullptr) {
        norm::Moments<T> all(sums[0]);
        all.add(sums, rows * columns);
        all.finish(rows * columns, moments);
      }
    };
    // The kernel's upper row reads no pixel of the strip's last row, its lower one none of the first, the middle
    // neither.
    Tiles tiles[3];
    int64_t most = 0;
    for (int64_t u = 0; u < side; ++u) {
      const int64_t from = up && u > 0 ? pitch / lanes : 0, size = (rows + 2 * halo - (up && u < 2 ? 1 : 0)) * pitch;
      const int64_t vectors = vectors_of<T>(size) - from;
      tiles[u] = {from, vectors, (vectors + a.tile - 1) / a.tile};
      most = most < tiles[u].count ? tiles[u].count : most;
    }
    // Calls f with every tap of the kernel, tile by tile, so that the pixels of all channels stay in the first-level
    // cache for the sums of an output.
    const auto each_tile = [&](const auto& f) OES_TARGET OES_LAMBDA {
      for (int64_t i = 0; i < most; ++i) {
        for (int64_t u = 0; u < side; ++u) {
          if (i < tiles[u].count) {
            const int64_t from = tiles[u].from(i), vectors = tiles[u].from(i + 1) - from;
            for (int64_t k = side * u; k < side * (u + 1); ++k) {
              f(k, from * lanes, vectors);
            }
          }
        }
      }
    };
    if (a.dense) {
      const int64_t output_tiles_count = (a.outputs + kTileOutputs - 1) / kTileOutputs;
      const int64_t from_output = group * output_tiles_count / a.groups * kTileOutputs;
      const int64_t end_output = (group + 1) * output_tiles_count / a.groups * kTileOutputs;
      for_output_tiles(
          from_output, end_output < a.outputs ? end_output : a.outputs,
          [&](auto outputs, int64_t o) OES_TARGET OES_LAMBDA {
            constexpr int kOutputs = outputs.value;
            each_tile([&](int64_t k, int64_t pixel, int64_t vectors) OES_TARGET OES_LAMBDA {
              output_tiles<kOutputs, false>(
                  strip + pixel, a.weights + o * a.kernel * a.inputs + k * a.inputs * kOutputs, a.offsets, a.inputs,
                  vectors, b + k * plane + pixel, of_output);
            });
            for (int r = 0; r < kOutputs; ++r) {
              finish(o + r, b + r * of_output);
            }
          });
      continue;
    }
    for (int64_t o = group * a.outputs / a.groups; o < (group + 1) * a.outputs / a.groups; ++o) {
      const int64_t* taps = a.first + o * a.kernel;
      each_tile([&](int64_t k, int64_t pixel, int64_t vectors) OES_TARGET OES_LAMBDA {
        products<false>(
            strip + pixel, a.weights + taps[k], a.offsets + taps[k], taps[k + 1] - taps[k], vectors,
            b + k * plane + pixel);
      });
      finish(o, b);
    }
  }
}
