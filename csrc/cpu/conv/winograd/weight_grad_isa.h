// The inner loops of weight_grad, included once for each instruction set: see fma_tiles_isa.h.
//
// Pixels at a frequency lie plane by plane, gradients tile by tile with the outputs side by side, in output_groups of
// some vectors of them: a product takes vectors of gradients times single pixels, its sums stay in registers over a
// strip.

#include "cpu/core/fma_tiles_isa.h"

// Behind the tiles of core.
#include "cpu/conv/winograd/tiles_isa.h"

constexpr int kStripVectors = 4; // of tiles
constexpr int kGroupVectors = 2;
constexpr int kTileInputs = OES_ISA == 2 ? 12 : 6; // inputs whose sums fill the registers

template <typename T>
constexpr int64_t kStrip = kStripVectors * kLanes<T>;

template <typename T>
constexpr int64_t kGroupOutputs = kGroupVectors * kLanes<T>;

// Lane i of vector k to lane k of vector i: each round takes vectors of the first and of the second half by turns.
template <typename T>
OES_ISA_INLINE void transpose(typename Vector<T>::Type (&x)[kLanes<T>]) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 16
  for (int rounds = 1; rounds < lanes; rounds *= 2) {
    alignas(64) T both[lanes * lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      V::interleave(both + 2 * i * lanes, x[i], x[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      x[i] = V::load(both + i * lanes);
    }
  }
}

// Gradients of outputs to frequencies: powers of the points, the i-th for output i.
template <int kTile, typename T>
OES_ISA_INLINE void powers(const typename Vector<T>::Type (&y)[kTile], typename Vector<T>::Type (&x)[4]) {
  static_assert(kTile == 2);
  x[0] = y[0];
  x[1] = y[0] + y[1];
  x[2] = y[0] - y[1];
  x[3] = y[1];
}

template <int kTile, typename T>
OES_ISA_INLINE void powers(const typename Vector<T>::Type (&y)[kTile], typename Vector<T>::Type (&x)[6]) {
  using V = Vector<T>;
  using Type = typename V::Type;
  constexpr T near = T(kPoints6[1]), far = T(kPoints6[3]);
  Type even = y[0], odd = V::all(near) * y[1], even_far = y[0], odd_far = V::all(far) * y[1];
  if constexpr (kTile == 4) {
    even = V::fma(V::all(near * near), y[2], even);
    odd = V::fma(V::all(near * near * near), y[3], odd);
    even_far = V::fma(V::all(far * far), y[2], even_far);
    odd_far = V::fma(V::all(far * far * far), y[3], odd_far);
  }
  x[0] = y[0];
  x[1] = even + odd;
  x[2] = even - odd;
  x[3] = even_far + odd_far;
  x[4] = even_far - odd_far;
  x[5] = y[kTile - 1];
}

// Frequencies of the gradients of a vector of outputs from o on, `next` from one frequency to the next, `width` from
// one tile to the next. What a tile chunks with the one before counts there alone. `natural`: room for the rows of the
// tiles, pixel by pixel.
template <int kTile, int kPoints, typename T>
OES_ISA_INLINE void transform_grads(
    const FrequencyGrad<T>& a, const TileSpan* spans, int64_t count, int64_t tiles, int64_t o, T* natural, T* to,
    int64_t next, int64_t width) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, wide = kTile * kStrip<T> + lanes;
  const T* planes[lanes];
  for (int64_t l = 0; l < lanes; ++l) {
    planes[l] = a.grad + (o + l < a.planes ? o + l : a.planes - 1) * a.grad_plane; // sums behind the last are not used
  }
  for (const TileSpan* span = spans; span != spans + count; ++span) {
    const int64_t size = span->tiles * kTile;
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t from = (span->row + i) * a.grad_pitch + span->column;
      T* pixels = natural + (i * wide + span->lane * kTile) * lanes;
      for (int64_t k = 0; k < size; k += lanes) {
        typename V::Type x[lanes];
#pragma GCC unroll 16
        for (int64_t l = 0; l < lanes; ++l) {
          x[l] = V::load(planes[l] + from + k);
        }
        transpose<T>(x);
#pragma GCC unroll 16
        for (int64_t l = 0; l < lanes; ++l) {
          V::store(pixels + (k + l) * lanes, x[l]);
        }
      }
      const int64_t skipped = i < span->skip_rows ? size : span->skip_columns;
      for (int64_t k = 0; k < skipped; ++k) {
        V::store(pixels + k * lanes, V::all(T(0)));
      }
    }
  }
  for (int64_t t = 0; t < tiles; ++t) {
    typename V::Type rows[kPoints][kTile];
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j) {
      typename V::Type y[kTile], x[kPoints];
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
        y[i] = V::load(natural + (i * wide + t * kTile + j) * lanes);
      }
      powers<kTile, T>(y, x);
#pragma GCC unroll 16
      for (int r = 0; r < kPoints; ++r) {
        rows[r][j] = x[r];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kPoints; ++r) {
      typename V::Type x[kPoints];
      powers<kTile, T>(rows[r], x);
#pragma GCC unroll 16
      for (int c = 0; c < kPoints; ++c) {
        V::store(to + (r * kPoints + c) * next + t * width, x[c]);
      }
    }
  }
}

// sums[r][...] (+)= products of pixel r and the gradients of a group, over the tiles.
template <int kInputs, int kVectors, typename T>
OES_ISA_INLINE void products(const T* pixels, const T* grads, int64_t tiles, bool add, T* sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, width = kVectors * lanes;
  typename V::Type sum[kInputs][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kInputs; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = V::all(T(0));
    }
  }
  for (int64_t t = 0; t < tiles; ++t) {
    typename V::Type g[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      g[v] = V::load(grads + t * width + v * lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kInputs; ++r) {
      const typename V::Type x = V::all(pixels[r * kStrip<T> + t]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = V::fma(x, g[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kInputs; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      T* to = sums + r * width + v * lanes;
      V::store(to, add ? V::load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// All planes at a frequency.
template <int kVectors, typename T>
OES_ISA_INLINE void group_products(const T* pixels, const T* grads, int64_t planes, int64_t tiles, bool add, T* sums) {
  constexpr int64_t width = kVectors * kLanes<T>;
  int64_t q = 0;
  for (; q + kTileInputs <= planes; q += kTileInputs) {
    products<kTileInputs, kVectors>(pixels + q * kStrip<T>, grads, tiles, add, sums + q * width);
  }
  for (; q + 4 <= planes; q += 4) {
    products<4, kVectors>(pixels + q * kStrip<T>, grads, tiles, add, sums + q * width);
  }
  for (; q + 2 <= planes; q += 2) {
    products<2, kVectors>(pixels + q * kStrip<T>, grads, tiles, add, sums + q * width);
  }
  if (q < planes) {
    products<1, kVectors>(pixels + q * kStrip<T>, grads, tiles, add, sums + q * width);
  }
}

// Gradients of the kernels of sources begin .. end and the outputs of a group: transposed to_points * sums * to_points.
// The vectors of outputs are `next` apart.
template <int kWindow, int kPoints, typename T>
OES_ISA_INLINE void store_grads(
    const FrequencyGrad<T>& a, const T* sums, int64_t vectors, int64_t begin, int64_t end, T* to, int64_t next) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, all = kPoints * kPoints;
  const int64_t width = vectors * lanes;
  const T* from[all];
  for (int64_t k = 0; k < a.source_classes; ++k) {
    for (int64_t f = 0; f < all; ++f) {
      const int64_t order = a.class_order[f * a.source_classes + k];
      from[f] = order < 0 ? nullptr : sums + (a.taps[f] + order * a.source_planes) * width + f * kLine;
    }
    const int64_t* kernel_taps = a.kernel_taps + k * kWindow * kWindow;
    for (int64_t at = begin * width; at < end * width; at += lanes) {
      typename V::Type of_columns[kWindow][kPoints];
#pragma GCC unroll 16
      for (int c = 0; c < kPoints; ++c) {
        typename V::Type x[kPoints];
#pragma GCC unroll 16
        for (int r = 0; r < kPoints; ++r) {
          const T* of_frequency = from[r * kPoints + c];
          x[r] = of_frequency == nullptr ? V::all(T(0)) : V::load(of_frequency + at);
        }
#pragma GCC unroll 16
        for (int u = 0; u < kWindow; ++u) {
          typename V::Type sum = V::all(a.to_points[u]) * x[0];
#pragma GCC unroll 16
          for (int r = 1; r < kPoints; ++r) {
            sum = V::fma(V::all(a.to_points[r * kWindow + u]), x[r], sum);
          }
          of_columns[u][c] = sum;
        }
      }
      T* to_kernel = to + at % width / lanes * next + (at / width - begin) * a.kernel_size * lanes;
      for (int u = 0; u < kWindow; ++u) {
        for (int v = 0; v < kWindow; ++v) {
          const int64_t tap = kernel_taps[u * kWindow + v];
          if (tap == kMostKernelTaps) {
            continue;
          }
          typename V::Type sum = V::all(a.to_points[v]) * of_columns[u][0];
#pragma GCC unroll 16
          for (int c = 1; c < kPoints; ++c) {
            sum = V::fma(V::all(a.to_points[c * kWindow + v]), of_columns[u][c], sum);
          }
          V::store(to_kernel + tap * lanes, sum);
        }
      }
    }
  }
}

template <int kWindow, int kTile, int kPoints, typename T>
OES_TARGET void weight_grad_of(const FrequencyGrad<T>& all_grad, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>, strip = kStrip<T>, all = kPoints * kPoints;
  constexpr int64_t grads_next = strip * kGroupOutputs<T> + kLine; // from one frequency of a group to the next
  const int64_t total = (all_grad.rows + kTile - 1) / kTile * ((all_grad.columns + kTile - 1) / kTile);
  const int64_t vectors = (all_grad.planes + lanes - 1) / lanes,
                output_groups = (vectors + kGroupVectors - 1) / kGroupVectors;
  const int64_t frequency_planes = all_grad.pixel_first[all],
                group_sums = frequency_planes * kGroupOutputs<T> + all * kLine;
  const int64_t of_vector = all_grad.inputs * all_grad.kernel_size * lanes;
  T* pixels = workspace<T>(
      frequency_planes * strip + all * kLine + output_groups * (all * grads_next + group_sums) + all * (strip + lanes) +
      kTile * (kTile * strip + lanes) * lanes);
  T* grads = pixels + frequency_planes * strip + all * kLine; // [output_groups, points, points, strip, kGroupOutputs]
  T* sums = grads + output_groups * all * grads_next; // [output_groups, planes of all frequencies, kGroupOutputs]
  T* columns = sums + output_groups * group_sums;
  T* natural = columns + all * (strip + lanes);
  TileSpan spans[kStrip<T>];
  const auto each_output_group = [&](const auto& f) OES_TARGET OES_LAMBDA {
    for (int64_t group = 0; group < output_groups; ++group) {
      const int64_t left = vectors - group * kGroupVectors;
      f(group, left < kGroupVectors ? left : kGroupVectors);
    }
  };
  for (int64_t task = begin; task < end; ++task) {
    FrequencyGrad<T> a = all_grad;
    const int64_t chunk = task / a.groups, input_group = task % a.groups;
    // The last group is moved back; what it then has in common with the one before is not stored.
    const int64_t input = input_group * a.source_planes;
    const int64_t from = input + a.source_planes < a.inputs ? input : a.inputs - a.source_planes;
    a.source += from * a.source_classes * a.source_plane;
    const int64_t first = chunk * a.strips / a.chunks, last = (chunk + 1) * a.strips / a.chunks;
    for (int64_t at = first; at < last; ++at) {
      const int64_t end_of_strip = (at + 1) * strip < total ? (at + 1) * strip : total;
      const int64_t tiles = end_of_strip - at * strip;
      const int64_t count = find_spans(a, at * strip, end_of_strip, spans);
      transform_planes<kTile, kPoints, kStripVectors>(a, spans, count, tiles, columns, pixels);
      each_output_group([&](int64_t group, int64_t some) OES_TARGET OES_LAMBDA {
        for (int64_t v = 0; v < some; ++v) {
          transform_grads<kTile, kPoints>(
              a, spans, count, tiles, (group * kGroupVectors + v) * lanes, natural,
              grads + group * all * grads_next + v * lanes, grads_next, some * lanes);
        }
      });
      for (int64_t f = 0; f < all; ++f) {
        each_output_group([&](int64_t group, int64_t some) OES_TARGET OES_LAMBDA {
          const T* of_pixels = pixels + a.pixel_first[f] * strip + f * kLine;
          const T* of_grads = grads + (group * all + f) * grads_next;
          T* to = sums + group * group_sums + a.taps[f] * some * lanes + f * kLine;
          const int64_t planes = a.taps[f + 1] - a.taps[f];
          if (some == kGroupVectors) {
            group_products<kGroupVectors>(of_pixels, of_grads, planes, tiles, at > first, to);
          } else {
            group_products<1>(of_pixels, of_grads, planes, tiles, at > first, to);
          }
        });
      }
    }
    each_output_group([&](int64_t group, int64_t some) OES_TARGET OES_LAMBDA {
      store_grads<kWindow, kPoints>(
          a, sums + group * group_sums, some, input - from, a.source_planes,
          a.partial + (chunk * vectors + group * kGroupVectors) * of_vector + input * a.kernel_size * lanes, of_vector);
    });
  }
}

template <typename T>
OES_TARGET void weight_grad(const FrequencyGrad<T>& a, int64_t begin, int64_t end) {
  if (a.points == 4) {
    weight_grad_of<3, 2, 4>(a, begin, end);
  } else if (a.tile == 2) {
    weight_grad_of<5, 2, 6>(a, begin, end);
  } else {
    weight_grad_of<3, 4, 6>(a, begin, end);
  }
}
