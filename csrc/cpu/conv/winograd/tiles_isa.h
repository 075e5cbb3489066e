// The tiles of tiles.h and their transformed pixels. Included once for each instruction set, behind fma_tiles_isa.h.

constexpr int64_t kLine = 16; // elements between frequencies: rows of pixels would else fall on the same lines

// The even and the odd ones.
template <typename T>
OES_ISA_INLINE void deinterleave(
    typename Vector<T>::Type x, typename Vector<T>::Type y, typename Vector<T>::Type* both) {
  alignas(64) T even[kLanes<T>], odd[kLanes<T>];
  Vector<T>::deinterleave(x, y, even, odd);
  both[0] = Vector<T>::load(even);
  both[1] = Vector<T>::load(odd);
}

// columns[q][lane] = from[lane * kTile + q].
template <int kTile, typename T>
OES_ISA_INLINE void load_columns(const T* from, typename Vector<T>::Type (&columns)[kTile]) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kTile == 2) {
    deinterleave<T>(V::load(from), V::load(from + lanes), columns);
  } else {
    typename V::Type low[2], high[2], pair[2];
    deinterleave<T>(V::load(from), V::load(from + lanes), low);
    deinterleave<T>(V::load(from + 2 * lanes), V::load(from + 3 * lanes), high);
    deinterleave<T>(low[0], high[0], pair);
    columns[0] = pair[0];
    columns[2] = pair[1];
    deinterleave<T>(low[1], high[1], pair);
    columns[1] = pair[0];
    columns[3] = pair[1];
  }
}

// Pixels to frequencies: the products of all (x - point) but the frequency's own, as coefficients. In place.
template <typename T>
OES_ISA_INLINE void transform(typename Vector<T>::Type (&d)[4]) {
  const typename Vector<T>::Type zero = d[2] - d[0], plus = d[2] + d[1], minus = d[2] - d[1], end = d[3] - d[1];
  d[0] = zero;
  d[1] = plus;
  d[2] = minus;
  d[3] = end;
}

template <typename T>
OES_ISA_INLINE void transform(typename Vector<T>::Type (&d)[6]) {
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

// Tiles that lie side by side. The last of a row or column that is no multiple of a tile is moved back, and its first
// columns or rows, which the one before has, are not stored.
struct TileSpan {
  int64_t lane, tiles, row, column, skip_rows, skip_columns;
};

// Tiles begin .. end as spans; returns their number.
template <typename T>
OES_ISA_INLINE int64_t find_spans(const Tiles<T>& a, int64_t begin, int64_t end, TileSpan* spans) {
  const int64_t of_row = (a.columns + a.tile - 1) / a.tile, whole = a.columns / a.tile;
  int64_t count = 0;
  for (int64_t t = begin; t < end;) {
    const int64_t i = t / of_row, j = t - i * of_row;
    const int64_t row = i * a.tile + a.tile <= a.rows ? i * a.tile : a.rows - a.tile;
    const int64_t column = j < whole ? j * a.tile : a.columns - a.tile;
    const int64_t left = j < whole ? whole - j : 1, tiles = left < end - t ? left : end - t;
    spans[count++] = {t - begin, tiles, row, column, i * a.tile - row, j * a.tile - column};
    t += tiles;
  }
  return count;
}

// Frequencies of all planes of the source, kVectors vectors of tiles at most. `columns`: room for the pixels of one
// plane, whose columns are transformed first; a span may write behind its tiles, where the next one then does.
template <int kTile, int kPoints, int kVectors, typename T>
OES_ISA_INLINE void transform_planes(
    const Tiles<T>& a, const TileSpan* spans, int64_t count, int64_t tiles, T* columns, T* pixels) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>, strip = kVectors * lanes, wide = strip + lanes;
  for (int64_t q = 0; q < a.source_planes * a.source_classes; ++q) {
    const T* plane = a.source + q * a.source_plane;
    for (const TileSpan* span = spans; span != spans + count; ++span) {
      const T* from = plane + span->row * a.pitch + span->column;
      T* to = columns + span->lane;
      for (int64_t k = 0; k < span->tiles; k += lanes) {
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
        const int64_t f = r * kPoints + c, order = a.class_order[f * a.source_classes + of_class];
        to[c] = order < 0 ? nullptr : pixels + (a.pixel_first[f] + order * a.source_planes + index) * strip + f * kLine;
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
