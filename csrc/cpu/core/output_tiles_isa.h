// Products of several outputs at once, where all of them read the same taps: each vector that is loaded serves every
// row of a block. Included once per capability, behind fma_tiles_isa.h.

// Rows and vectors of a block: as many sums as the registers hold. The weights of a block lie together, [taps][rows].
constexpr int kBlockRows = block_rows(kCapability);
constexpr int kBlockVectors = OES_LEVEL == 0 ? 2 : 3;
constexpr int kBlockTaps = 3; // of a block of weight gradients

// out[r * plane + p] (+)= sum over the taps of weights[t][r] * source[offsets[t] + p].
template <int kRows, int kVectors, bool kAdd, typename T, typename Offset>
OES_HERE void block(
    const T* source, const T* weights, const Offset* offsets, int64_t taps, T* out, int64_t plane) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  typename V::Type sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = kAdd ? V::load(out + r * plane + v * lanes) : V::all(T(0));
    }
  }
  for (int64_t t = 0; t < taps; ++t) {
    const T* row = source + offsets[t];
    typename V::Type x[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      x[v] = V::load(row + v * lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename V::Type weight = V::all(weights[t * kRows + r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = V::fma(weight, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      V::store(out + r * plane + v * lanes, sum[r][v]);
    }
  }
}

// sums[t][r] (+)= products of grad[r * plane + p] and source[offsets[t] + p] over rows of pixels. The last, partial
// vector of a row is read from the row's end backwards, the pixels already counted multiplied by zero.
template <int kRows, int kTaps, bool kAdd, typename T, typename Offset>
OES_HERE void dot_block(
    const T* source,
    const Offset* offsets,
    int64_t pitch,
    const T* grad,
    int64_t plane,
    int64_t grad_pitch,
    int64_t rows,
    int64_t length,
    const T* zeros_then_ones,
    T* sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  typename V::Type sum[kTaps][kRows];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sum[k][r] = V::all(T(0));
    }
  }
  const int64_t tail = length % lanes;
  for (int64_t i = 0; i < rows; ++i) {
    const T* from[kTaps];
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) {
      from[k] = source + offsets[k] + i * pitch;
    }
    const T* g = grad + i * grad_pitch;
    for (int64_t j = 0; j < length; j += lanes) {
      const bool last = j + lanes > length;
      const int64_t at = last ? length - lanes : j;
      typename V::Type x[kTaps];
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) {
        x[k] = V::load(from[k] + at);
      }
      if (last) {
        const typename V::Type counted = V::load(zeros_then_ones + tail);
#pragma GCC unroll 16
        for (int k = 0; k < kTaps; ++k) {
          x[k] = x[k] * counted;
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename V::Type factor = V::load(g + r * plane + at);
#pragma GCC unroll 16
        for (int k = 0; k < kTaps; ++k) {
          sum[k][r] = V::fma(factor, x[k], sum[k][r]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
    alignas(64) T result[kRows];
    if constexpr (kRows % 4 == 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r += 4) {
        const typename V::Type four[4] = {sum[k][r], sum[k][r + 1], sum[k][r + 2], sum[k][r + 3]};
        V::sums(four, result + r);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        result[r] = sum_of_lanes<T>(sum[k][r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sums[k * kRows + r] = kAdd ? sums[k * kRows + r] + result[r] : result[r];
    }
  }
}

// All taps of a block.
template <int kRows, bool kAdd, typename T, typename Offset>
OES_HERE void dot_blocks(
    const T* source,
    const Offset* offsets,
    int64_t taps,
    int64_t pitch,
    const T* grad,
    int64_t plane,
    int64_t grad_pitch,
    int64_t rows,
    int64_t length,
    const T* zeros_then_ones,
    T* sums) {
  int64_t t = 0;
  for (; t + kBlockTaps <= taps; t += kBlockTaps) {
    dot_block<kRows, kBlockTaps, kAdd>(
        source, offsets + t, pitch, grad, plane, grad_pitch, rows, length, zeros_then_ones, sums + t * kRows);
  }
  for (; t < taps; ++t) {
    dot_block<kRows, 1, kAdd>(
        source, offsets + t, pitch, grad, plane, grad_pitch, rows, length, zeros_then_ones, sums + t * kRows);
  }
}

// A number of vectors of a block.
template <int kRows, bool kAdd, typename T, typename Offset>
OES_HERE void blocks(
    const T* source, const T* weights, const Offset* offsets, int64_t taps, int64_t vectors, T* out, int64_t plane) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t v = 0;
  for (; v + kBlockVectors <= vectors; v += kBlockVectors) {
    block<kRows, kBlockVectors, kAdd>(source + v * lanes, weights, offsets, taps, out + v * lanes, plane);
  }
  for (; v < vectors; ++v) {
    block<kRows, 1, kAdd>(source + v * lanes, weights, offsets, taps, out + v * lanes, plane);
  }
}

// Calls f(number of rows as a constant of its own type, first row) for every block of rows from .. to.
template <int kRows>
struct RowsOfBlock {
  static constexpr int value = kRows;
};

template <typename F>
OES_HERE void for_blocks(int64_t from, int64_t to, const F& f) {
  while (from < to) {
    const int rows = rows_of_block(to - from, kBlockRows);
    switch (rows) {
      case 1:
        f(RowsOfBlock<1>(), from);
        break;
      case 2:
        f(RowsOfBlock<2>(), from);
        break;
      case 4:
        f(RowsOfBlock<4>(), from);
        break;
      default:
        f(RowsOfBlock<kBlockRows>(), from);
    }
    from += rows;
  }
}
