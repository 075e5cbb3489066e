// The inner loops of sparse_conv2d, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"

// Row of an output of a multiple of a vector at least: 12 vectors at a time, the last tile from the end backwards.
template <typename T>
OES_ISA_INLINE int64_t row_tile(int64_t left, int64_t columns) {
  int64_t vectors = left > 8 * kLanes<T> ? 12
      : left > 4 * kLanes<T>             ? 8
      : left > 2 * kLanes<T>             ? 4
      : left > kLanes<T>                 ? 2
                                         : 1;
  while (vectors > 1 && vectors * kLanes<T> > columns) {
    vectors = vectors == 12 ? 8 : vectors / 2;
  }
  return vectors;
}

// A strip of rows of an image whose planes lie side by side: a row of all planes is contiguous, and the row to
// come is fetched, from its start to its end, while this one is summed.
template <typename T>
OES_ISA_INLINE void tap_sum_rows(
    const SparseTapSum<T>& a, int64_t image, int64_t first, int64_t rows, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t row = first; row < first + rows; ++row) {
    const T* of_row = a.source + image * a.source_image + row * a.pitch;
    Fetch<T> fetch{row + 1 < a.rows ? of_row + a.ahead * a.pitch : of_row}; // the last row fetches its own again
    for (int64_t column = 0; column < a.columns;) {
      const int64_t vectors = row_tile<T>(a.columns - column, a.columns);
      const int64_t at = a.columns - column < vectors * lanes ? a.columns - vectors * lanes : column;
      const T* source = of_row + at;
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t t = a.first[plane], taps = a.first[plane + 1] - t;
        T* out = a.out + ((image * a.planes + plane) * a.rows + row) * a.columns + at;
        const T* weights = a.weights + t;
        const int64_t* offsets = a.offsets + t;
        switch (vectors) {
          case 12:
            tile<12, false, true>(source, weights, offsets, taps, out, &fetch);
            break;
          case 8:
            tile<8, false, true>(source, weights, offsets, taps, out, &fetch);
            break;
          case 4:
            tile<4>(source, weights, offsets, taps, out);
            break;
          case 2:
            tile<2>(source, weights, offsets, taps, out);
            break;
          default:
            if (a.columns >= lanes) {
              tile<1>(source, weights, offsets, taps, out);
              break;
            }
            for (int64_t j = 0; j < a.columns; ++j) {
              T sum = T(0);
              for (int64_t tap = 0; tap < taps; ++tap) {
                sum += weights[tap] * source[offsets[tap] - at + j];
              }
              out[j - at] = sum;
            }
        }
      }
      column = at + vectors * lanes;
    }
  }
}

// Elements begin .. end of a buffer that starts at element `at` of the image with its pitch, to the image without.
template <typename T>
OES_ISA_INLINE void store_flat(
    const T* buffer, int64_t at, int64_t begin, int64_t end, int64_t pitch, T* out, int64_t columns) {
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
OES_ISA_INLINE void tap_sum_flat(const SparseTapSum<T>& a, int64_t image, int64_t strip, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t total = (a.rows - 1) * a.pitch + a.columns;
  const int64_t from = strip * kFlatVectors * lanes;
  const int64_t to = from + kFlatVectors * lanes < total ? from + kFlatVectors * lanes : total;
  const T* source = a.source + image * a.source_image;
  alignas(64) T buffer[kFlatVectors * lanes];
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
        tile<12>(source + at, weights, offsets, taps, buffer);
      } else if (vectors == 8) {
        tile<8>(source + at, weights, offsets, taps, buffer);
      } else if (vectors == 4) {
        tile<4>(source + at, weights, offsets, taps, buffer);
      } else if (vectors == 2) {
        tile<2>(source + at, weights, offsets, taps, buffer);
      } else {
        tile<1>(source + at, weights, offsets, taps, buffer);
      }
      const int64_t until = at + vectors * lanes < to ? at + vectors * lanes : to;
      store_flat(buffer, at, p, until, a.pitch, out, a.columns);
      p = until;
    }
  }
}

template <typename T>
OES_TARGET void tap_sum(const SparseTapSum<T>& a, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, strip = task / a.groups % a.strips, image = task / a.groups / a.strips;
    const int64_t from = group * a.planes / a.groups, to = (group + 1) * a.planes / a.groups;
    if (a.flat) {
      tap_sum_flat(a, image, strip, from, to);
    } else {
      const int64_t first = strip * a.strip_rows;
      tap_sum_rows(a, image, first, a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows, from, to);
    }
  }
}

// Products of one output with all of its taps.
template <bool kFetch, typename T>
OES_ISA_INLINE void weight_grad_of_output(
    const T* source, const int64_t* offsets, int64_t taps, const T* grad, int64_t rows, int64_t length, int64_t pitch,
    int64_t grad_pitch, const T* zeros_then_ones, T* result, Fetch<T>& fetch) {
  for (; taps >= kTapsAtOnce; taps -= kTapsAtOnce, offsets += kTapsAtOnce, result += kTapsAtOnce) {
    weight_grads<kTapsAtOnce, kFetch>(
        source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
  }
  switch (taps) {
    case 5:
      return weight_grads<5, kFetch>(
          source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
    case 4:
      return weight_grads<4, kFetch>(
          source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
    case 3:
      return weight_grads<3, kFetch>(
          source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
    case 2:
      return weight_grads<2, kFetch>(
          source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
    case 1:
      return weight_grads<1, kFetch>(
          source, offsets, grad, rows, length, pitch, grad_pitch, zeros_then_ones, result, fetch);
    default:
      return;
  }
}

template <typename T>
OES_TARGET void weight_grad(const SparseWeightGrad<T>& a, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  alignas(64) T zeros_then_ones[2 * lanes];
  for (int i = 0; i < 2 * lanes; ++i) {
    zeros_then_ones[i] = T(i < lanes ? 0 : 1);
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, strip = task / a.groups % a.strips, image = task / a.groups / a.strips;
    const int64_t from = group * a.outputs / a.groups, to = (group + 1) * a.outputs / a.groups;
    const int64_t at = strip * a.strip_rows, extent = a.flat ? a.columns : a.rows;
    const int64_t size = extent - at < a.strip_rows ? extent - at : a.strip_rows;
    const int64_t rows = a.flat ? 1 : size, length = a.flat ? size : a.columns;
    const T* source = a.source + image * a.source_image + at * (a.flat ? 1 : a.pitch);
    T* partial = a.partial + (image * a.strips + strip) * a.taps;
    // The rows that the next strip will read, as far as this one has not.
    Fetch<T> fetch{source + (size + a.ahead) * a.pitch};
    for (int64_t output = from; output < to; ++output) {
      const T* grad = a.grad + (image * a.outputs + output) * a.grad_plane + at * (a.flat ? 1 : a.grad_pitch);
      const int64_t t = a.first[output], taps = a.first[output + 1] - t;
      if (a.columns < lanes) { // less than a vector
        for (int64_t tap = t; tap < t + taps; ++tap) {
          T sum = T(0);
          for (int64_t i = 0; i < rows; ++i) {
            for (int64_t k = 0; k < length; ++k) {
              sum += grad[i * a.grad_pitch + k] * source[a.offsets[tap] + i * a.pitch + k];
            }
          }
          partial[tap] = sum;
        }
      } else if (a.ahead != 0) {
        weight_grad_of_output<true>(
            source, a.offsets + t, taps, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t,
            fetch);
      } else {
        weight_grad_of_output<false>(
            source, a.offsets + t, taps, grad, rows, length, a.pitch, a.grad_pitch, zeros_then_ones, partial + t,
            fetch);
      }
    }
  }
}
