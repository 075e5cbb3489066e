// The inner loops of winograd_conv2d, included once per capability: see products_kernels.h.

#include "products_kernels.h"
#include "block_kernels.h"

// Tiles of a strip.
template <typename T>
constexpr int64_t kStrip = kBlockVectors * kLanes<T>;

constexpr int64_t kPart = kBlocksOfPart * kBlockRows; // planes of the result that are summed together
constexpr int64_t kLine = 16; // elements between frequencies: rows of pixels would else fall on the same lines

// The even and the odd ones.
template <typename T>
OES_HERE void part(typename Vector<T>::Type x, typename Vector<T>::Type y, typename Vector<T>::Type* parts) {
  alignas(64) T even[kLanes<T>], odd[kLanes<T>];
  Vector<T>::part(x, y, even, odd);
  parts[0] = Vector<T>::load(even);
  parts[1] = Vector<T>::load(odd);
}

// columns[q][lane] = from[lane * kTile + q].
template <int kTile, typename T>
OES_HERE void load_columns(const T* from, typename Vector<T>::Type (&columns)[kTile]) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kTile == 2) {
    part<T>(V::load(from), V::load(from + lanes), columns);
  } else {
    typename V::Type low[2], high[2], pair[2];
    part<T>(V::load(from), V::load(from + lanes), low);
    part<T>(V::load(from + 2 * lanes), V::load(from + 3 * lanes), high);
    part<T>(low[0], high[0], pair);
    columns[0] = pair[0];
    columns[2] = pair[1];
    part<T>(low[1], high[1], pair);
    columns[1] = pair[0];
    columns[3] = pair[1];
  }
}

// The inverse.
template <int kTile, typename T>
OES_HERE void store_columns(T* to, const typename Vector<T>::Type (&columns)[kTile]) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kTile == 2) {
    V::store_both(to, columns[0], columns[1]);
  } else {
    alignas(64) T even[2 * lanes], odd[2 * lanes];
    V::store_both(even, columns[0], columns[2]);
    V::store_both(odd, columns[1], columns[3]);
    V::store_both(to, V::load(even), V::load(odd));
    V::store_both(to + 2 * lanes, V::load(even + lanes), V::load(odd + lanes));
  }
}

// Pixels to frequencies: the products of all (x - point) but the frequency's own, as coefficients. In place.
template <typename T>
OES_HERE void transform(typename Vector<T>::Type (&d)[4]) {
  const typename Vector<T>::Type zero = d[2] - d[0], plus = d[2] + d[1], minus = d[2] - d[1], end = d[3] - d[1];
  d[0] = zero;
  d[1] = plus;
  d[2] = minus;
  d[3] = end;
}

template <typename T>
OES_HERE void transform(typename Vector<T>::Type (&d)[6]) {
  using V = Vector<T>;
  using Type = typename V::Type;
  constexpr T near = T(kPoints6[1] * kPoints6[1]), far = T(kPoints6[3] * kPoints6[3]);
  const Type minus_near = V::all(-near), minus_far = V::all(-far);
  const Type both = V::all(-near - far), product = V::all(near * far);
  const Type zero = V::fma(product, d[0], V::fma(both, d[2], d[4]));
  const Type end = V::fma(product, d[1], V::fma(both, d[3], d[5]));
  const Type even = V::fma(minus_far, d[2], d[4]), odd = V::fma(minus_far, d[1], d[3]);
  const Type even_far = V::fma(minus_near, d[2], d[4]), odd_far = V::fma(minus_near, d[1], d[3]);
  d[0] = zero;
  d[1] = V::fma(V::all(T(kPoints6[1])), odd, even);
  d[2] = V::fma(V::all(T(kPoints6[2])), odd, even);
  d[3] = V::fma(V::all(T(kPoints6[3])), odd_far, even_far);
  d[4] = V::fma(V::all(T(kPoints6[4])), odd_far, even_far);
  d[5] = end;
}

// Frequencies to outputs: powers of the points, the i-th for output i.
template <int kTile, typename T>
OES_HERE void inverse(const typename Vector<T>::Type (&x)[4], typename Vector<T>::Type (&y)[kTile]) {
  static_assert(kTile == 2);
  y[0] = x[0] + (x[1] + x[2]);
  y[1] = (x[1] - x[2]) + x[3];
}

template <int kTile, typename T>
OES_HERE void inverse(const typename Vector<T>::Type (&x)[6], typename Vector<T>::Type (&y)[kTile]) {
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

// Tiles that lie side by side. The last of a row or column that is no multiple of a tile is moved back, and its first
// columns or rows, which the one before has, are not stored.
struct Piece {
  int64_t lane, tiles, row, column, skip_rows, skip_columns;
};

// Tiles begin .. end as pieces; returns their number.
template <typename T>
OES_HERE int64_t cut_pieces(const Sum<T>& a, int64_t begin, int64_t end, Piece* pieces) {
  const int64_t of_row = (a.columns + a.tile - 1) / a.tile, whole = a.columns / a.tile;
  int64_t count = 0;
  for (int64_t t = begin; t < end;) {
    const int64_t i = t / of_row, j = t - i * of_row;
    const int64_t row = i * a.tile + a.tile <= a.rows ? i * a.tile : a.rows - a.tile;
    const int64_t column = j < whole ? j * a.tile : a.columns - a.tile;
    const int64_t left = j < whole ? whole - j : 1, tiles = left < end - t ? left : end - t;
    pieces[count++] = {t - begin, tiles, row, column, i * a.tile - row, j * a.tile - column};
    t += tiles;
  }
  return count;
}

// Frequencies of all planes of the source. `columns`: room for the pixels of one plane, whose columns are transformed
// first; a piece may write behind its tiles, where the next one then does.
template <int kTile, int kPoints, typename T>
OES_HERE void transform_planes(
    const Sum<T>& a, const Piece* pieces, int64_t count, int64_t tiles, T* columns, T* pixels) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, strip = kStrip<T>, wide = strip + lanes;
  for (int64_t q = 0; q < a.source_planes * a.source_classes; ++q) {
    const T* plane = a.source + q * a.source_plane;
    for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
      const T* from = plane + piece->row * a.pitch + piece->column;
      T* to = columns + piece->lane;
      for (int64_t k = 0; k < piece->tiles; k += lanes) {
        // The next plane's pixels: no prefetcher of the hardware finds them in time.
#pragma GCC unroll 16
        for (int r = 0; r < kPoints; ++r) {
#pragma GCC unroll 16
          for (int64_t line = 0; line < kTile * lanes; line += 64 / static_cast<int64_t>(sizeof(T))) {
            __builtin_prefetch(from + a.source_plane + k * kTile + r * a.pitch + line);
          }
        }
#pragma GCC unroll 16
        for (int c = 0; c < kPoints; c += kTile) {
          typename V::Type x[kTile][kPoints];
#pragma GCC unroll 16
          for (int r = 0; r < kPoints; ++r) {
            typename V::Type of_row[kTile];
            load_columns<kTile>(from + k * kTile + r * a.pitch + c, of_row);
#pragma GCC unroll 16
            for (int i = 0; i < kTile; ++i) {
              x[i][r] = of_row[i];
            }
          }
#pragma GCC unroll 16
          for (int i = 0; i < (kTile < kPoints - c ? kTile : kPoints - c); ++i) {
            transform<T>(x[i]);
#pragma GCC unroll 16
            for (int r = 0; r < kPoints; ++r) {
              V::store(to + (r * kPoints + c + i) * wide + k, x[i][r]);
            }
          }
        }
      }
    }
    const int64_t of_class = q % a.source_classes, index = q / a.source_classes;
    for (int r = 0; r < kPoints; ++r) {
      T* to[kPoints];
#pragma GCC unroll 16
      for (int c = 0; c < kPoints; ++c) {
        const int64_t f = r * kPoints + c, slot = a.slots[f * a.source_classes + of_class];
        to[c] = slot < 0 ? nullptr : pixels + (a.places[f] + slot * a.source_planes + index) * strip + f * kLine;
      }
      for (int64_t v = 0; v < tiles; v += lanes) {
        typename V::Type x[kPoints];
#pragma GCC unroll 16
        for (int c = 0; c < kPoints; ++c) {
          x[c] = V::load(columns + (r * kPoints + c) * wide + v);
        }
        transform<T>(x);
#pragma GCC unroll 16
        for (int c = 0; c < kPoints; ++c) {
          if (to[c] != nullptr) {
            V::store(to[c] + v, x[c]);
          }
        }
      }
    }
  }
}

// The outputs of one plane of the result from its frequencies, `next` from one frequency to the next.
template <int kTile, int kPoints, typename T>
OES_HERE void store_outputs(
    const T* frequencies, int64_t next, const Piece* pieces, int64_t count, int64_t tiles, T* buffer, T* out,
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
  for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
    const int64_t size = piece->tiles * kTile;
    for (int64_t i = piece->skip_rows; i < kTile; ++i) {
      const T* from = buffer + i * wide + piece->lane * kTile;
      T* to = out + (piece->row + i) * columns + piece->column;
      int64_t k = piece->skip_columns;
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
OES_TARGET void sum_of(const Sum<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>, strip = kStrip<T>, all = kPoints * kPoints;
  const int64_t total = (a.rows + kTile - 1) / kTile * ((a.columns + kTile - 1) / kTile);
  const int64_t parts = (a.planes + kPart - 1) / kPart;
  T* pixels = scratch<T>(
      a.places[all] * strip + all * (kLine + kPart * strip + strip + lanes) + kTile * kTile * strip);
  T* products = pixels + a.places[all] * strip + all * kLine; // [points, points, planes of a part, strip]
  T* columns = products + all * kPart * strip;
  T* buffer = columns + all * (strip + lanes);
  Piece pieces[kStrip<T>];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t at = unit / a.groups * strip, group = unit % a.groups;
    const int64_t until = at + strip < total ? at + strip : total, tiles = until - at;
    const int64_t vectors = (tiles + lanes - 1) / lanes;
    const int64_t count = cut_pieces(a, at, until, pieces);
    transform_planes<kTile, kPoints>(a, pieces, count, tiles, columns, pixels);
    const int64_t first = group * a.classes * parts / a.groups, last = (group + 1) * a.classes * parts / a.groups;
    for (int64_t part = first; part < last; ++part) {
      const int64_t k = part / parts, from = part % parts * kPart;
      const int64_t to = from + kPart < a.planes ? from + kPart : a.planes;
      const int64_t* taps = a.taps + k * all;
      const T* weights = a.weights + a.planes * taps[0] + from * (taps[all] - taps[0]);
      for (int64_t f = 0; f < all; ++f) {
        T* sums = products + f * kPart * strip;
        const int64_t sources = taps[f + 1] - taps[f];
        if (sources == 0) {
          for (int64_t i = 0; i < (to - from) * strip; ++i) {
            sums[i] = T(0);
          }
          continue;
        }
        const T* of_frequency = weights + (taps[f] - taps[0]) * (to - from);
        for_blocks(from, to, [&](auto rows, int64_t p) OES_TARGET OES_LAMBDA {
          blocks<rows.value, false>(
              pixels + a.places[f] * strip + f * kLine, of_frequency + (p - from) * sources, a.offsets, sources,
              vectors, sums + (p - from) * strip, strip);
        });
      }
      for (int64_t p = from; p < to; ++p) {
        store_outputs<kTile, kPoints>(
            products + (p - from) * strip, kPart * strip, pieces, count, tiles, buffer,
            a.out + (p * a.classes + k) * a.rows * a.columns, a.columns);
      }
    }
  }
}

template <typename T>
OES_TARGET void sum(const Sum<T>& a, int64_t begin, int64_t end) {
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
OES_HERE void transform_windows(
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
