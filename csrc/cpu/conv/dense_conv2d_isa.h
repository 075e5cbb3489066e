// The inner loops of dense_conv2d, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"
#include "cpu/core/output_tiles_isa.h"

constexpr int64_t kTilesOfRow = 6;

// Elements begin .. end of a buffer that starts at element `at` of an image of that pitch, to the image without.
template <typename T>
OES_ISA_INLINE void store_rows(
    const T* buffer, int64_t at, int64_t begin, int64_t end, int64_t pitch, T* out, int64_t columns) {
  for (int64_t p = begin; p < end;) {
    const int64_t i = p / pitch, j = p - i * pitch;
    const int64_t until = (i + 1) * pitch < end ? (i + 1) * pitch : end;
    const int64_t count = until - p < columns - j ? until - p : columns - j;
    for (int64_t k = 0; k < count; ++k) {
      out[i * columns + j + k] = buffer[p - at + k];
    }
    p = until;
  }
}

template <typename T>
OES_TARGET void tap_sum(const DenseTapSum<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t tile = kTileVectors * kLanes<T>;
  const int64_t image = a.rows * a.columns, plane = a.classes * image;
  const int64_t total = a.flat ? (a.rows - 1) * a.pitch + a.columns : a.columns;
  const int64_t wide = kTilesOfRow * tile;
  T* buffer = workspace<T>(a.flat ? kTileOutputs * (a.strip + tile) : a.planes * wide);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, at_strip = task / a.groups * a.strip;
    // Tiles of all classes, one behind the other.
    const int64_t of_class = (a.planes + kTileOutputs - 1) / kTileOutputs, all = a.classes * of_class;
    const int64_t from = group * all / a.groups, to = (group + 1) * all / a.groups;
    const auto with_tiles = [&](const auto& f) OES_TARGET OES_LAMBDA {
      for (int64_t k = from / of_class; k * of_class < to; ++k) {
        const int64_t taps = a.first[k + 1] - a.first[k];
        const int64_t first = (from - k * of_class) * kTileOutputs, end_of_group = (to - k * of_class) * kTileOutputs;
        const T* weights = a.weights + a.planes * a.first[k];
        for_output_tiles(
            first > 0 ? first : 0, end_of_group < a.planes ? end_of_group : a.planes,
            [&](auto rows, int64_t p) OES_TARGET
            OES_LAMBDA { f(rows, weights + p * taps, a.offsets + a.first[k], taps, a.out + p * plane + k * image); });
      }
    };
    if (a.flat) {
      const int64_t until = at_strip + a.strip < total ? at_strip + a.strip : total;
      const int64_t base = at_strip + tile <= total ? at_strip : total - tile;
      const int64_t length = a.strip + tile;
      with_tiles([&](auto rows, const T* weights, const int64_t* offsets, int64_t taps, T* out) OES_TARGET OES_LAMBDA {
        for (int64_t p = base; p < until; p += tile) {
          const int64_t at = p + tile <= total ? p : total - tile;
          output_tile<rows.value, kTileVectors, false>(
              a.source + at, weights, offsets, taps, buffer + at - base, length);
        }
        for (int r = 0; r < rows.value; ++r) {
          store_rows(buffer + r * length, base, at_strip, until, a.pitch, out + r * plane, a.columns);
        }
      });
      continue;
    }
    // Some columns of a row at a time, and of them what a few channels give: their pixels stay in the first-level cache
    // for all outputs.
    const int64_t last = at_strip + a.strip < a.rows ? at_strip + a.strip : a.rows;
    for (int64_t column = 0; column < total; column += wide) {
      const int64_t until = column + wide < total ? column + wide : total;
      for (int64_t row = at_strip; row < last; ++row) {
        const T* source = a.source + row * a.pitch;
        for (int64_t first = 0; first < a.first[1]; first += a.taps_at_once) {
          const int64_t count = a.first[1] - first < a.taps_at_once ? a.first[1] - first : a.taps_at_once;
          for_output_tiles(0, a.planes, [&](auto rows, int64_t o) OES_TARGET OES_LAMBDA {
            const T* weights = a.weights + o * a.first[1] + first * rows.value;
            for (int64_t p = column; p < until; p += tile) {
              const T* from = source + (p + tile <= total ? p : total - tile);
              // Each tile fetches what it can of the row to come; the last row its own again.
              const T* next = from + (row + 1 < a.rows ? a.ahead * a.pitch : 0) +
                  first / a.taps_at_once * a.planes_at_once * a.wide;
              for (int64_t k = o * a.planes_at_once / a.planes; k < (o + rows.value) * a.planes_at_once / a.planes;
                   ++k) {
                __builtin_prefetch(next + k * a.wide);
                __builtin_prefetch(next + k * a.wide + 64 / sizeof(T));
              }
              T* to = buffer + o * wide + p - column;
              if (first == 0) {
                output_tile<rows.value, kTileVectors, false>(from, weights, a.offsets, count, to, wide);
              } else {
                output_tile<rows.value, kTileVectors, true>(from, weights, a.offsets + first, count, to, wide);
              }
            }
          });
        }
        for (int64_t o = 0; o < a.planes; ++o) {
          for (int64_t p = column; p < until; p += tile) {
            const int64_t at = p + tile <= total ? p : total - tile;
            for (int64_t k = 0; k < tile; ++k) {
              a.out[o * plane + row * a.columns + at + k] = buffer[o * wide + p - column + k];
            }
          }
        }
      }
    }
  }
}

template <typename T>
OES_TARGET void weight_grad(const DenseWeightGrad<T>& a, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  alignas(64) T zeros_then_ones[2 * lanes];
  for (int i = 0; i < 2 * lanes; ++i) {
    zeros_then_ones[i] = T(i < lanes ? 0 : 1);
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, strip = task / a.groups;
    const int64_t at = strip * a.strip_rows, extent = a.flat ? a.columns : a.rows;
    const int64_t size = extent - at < a.strip_rows ? extent - at : a.strip_rows;
    const int64_t rows = a.flat ? 1 : size, length = a.flat ? size : a.columns;
    const int64_t tiles = (a.outputs + kTileOutputs - 1) / kTileOutputs; // a group starts where one does
    const int64_t from = group * tiles / a.groups * kTileOutputs, to = (group + 1) * tiles / a.groups * kTileOutputs;
    const T* source = a.source + at * (a.flat ? 1 : a.pitch);
    const T* grad = a.grad + at * (a.flat ? 1 : a.grad_pitch);
    T* partial = a.partial + strip * a.outputs * a.taps;
    // Some rows and channels at a time: their pixels stay in the cache for all outputs.
    const int64_t passes = (a.taps + a.taps_at_once - 1) / a.taps_at_once;
    for (int64_t row = 0; row < rows; row += a.rows_at_once) {
      const int64_t some = rows - row < a.rows_at_once ? rows - row : a.rows_at_once;
      // Where the rows of all planes lie side by side, each pass fetches an equal number of elements of the rows that
      // come next.
      const T* next = source + (row + some + a.ahead) * a.pitch;
      const int64_t fetched = a.ahead == 0 ? 0 : some * a.pitch / passes;
      for (int64_t t = 0; t < a.taps; t += a.taps_at_once) {
        const int64_t count = a.taps - t < a.taps_at_once ? a.taps - t : a.taps_at_once;
        for (int64_t k = 0; k < fetched; k += 64 / static_cast<int64_t>(sizeof(T))) {
          __builtin_prefetch(next + k, 0, 2);
        }
        next += fetched;
        for_output_tiles(from, to < a.outputs ? to : a.outputs, [&](auto outputs, int64_t o) OES_TARGET OES_LAMBDA {
          constexpr int kOutputs = outputs.value;
          const T* of_output = grad + o * a.grad_plane + row * a.grad_pitch;
          const T* of_source = source + row * a.pitch;
          T* sums = partial + o * a.taps + t * kOutputs;
          if (row == 0) {
            weight_grad_tiles<kOutputs, false>(
                of_source, a.offsets + t, count, a.pitch, of_output, a.grad_plane, a.grad_pitch, some, length,
                zeros_then_ones, sums);
          } else {
            weight_grad_tiles<kOutputs, true>(
                of_source, a.offsets + t, count, a.pitch, of_output, a.grad_plane, a.grad_pitch, some, length,
                zeros_then_ones, sums);
          }
        });
      }
    }
  }
}
