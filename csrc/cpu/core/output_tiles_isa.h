// Products of several outputs at once, where all of them read the same taps: each vector that is loaded serves every
// output of a tile. Included once for each instruction set, behind fma_tiles_isa.h.

// Outputs and vectors of a tile: as many sums as the registers hold. Its weights lie together, [taps][outputs].
constexpr int kTileOutputs = tile_outputs(kCapability);
constexpr int kTileVectors = OES_ISA == 0 ? 2 : 3;
constexpr int kTileTaps = 3; // of a tile of weight gradients

// out[r * plane + p] (+)= sum over the taps of weights[t][r] * source[offsets[t] + p].
template <int kOutputs, int kVectors, bool kAdd, typename T, typename Offset>
OES_ISA_INLINE void output_tile(
    const T* source, const T* weights, const Offset* offsets, int64_t taps, T* out, int64_t plane) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  typename V::Type sum[kOutputs][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kOutputs; ++r) {
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
    for (int r = 0; r < kOutputs; ++r) {
      const typename V::Type weight = V::all(weights[t * kOutputs + r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = V::fma(weight, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kOutputs; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      V::store(out + r * plane + v * lanes, sum[r][v]);
    }
  }
}

// sums[t][r] (+)= products of grad[r * plane + p] and source[offsets[t] + p] over rows of pixels. The last, partial
// vector of a row is read from the row's end backwards, the pixels already counted multiplied by zero.
template <int kOutputs, int kTaps, bool kAdd, typename T, typename Offset>
OES_ISA_INLINE void weight_grad_tile(
    const T* source, const Offset* offsets, int64_t pitch, const T* grad, int64_t plane, int64_t grad_pitch,
    int64_t rows, int64_t length, const T* zeros_then_ones, T* sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  typename V::Type sum[kTaps][kOutputs];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
    for (int r = 0; r < kOutputs; ++r) {
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
      for (int r = 0; r < kOutputs; ++r) {
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
    alignas(64) T result[kOutputs];
    if constexpr (kOutputs % 4 == 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kOutputs; r += 4) {
        const typename V::Type four[4] = {sum[k][r], sum[k][r + 1], sum[k][r + 2], sum[k][r + 3]};
        V::sums(four, result + r);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kOutputs; ++r) {
        result[r] = sum_of_lanes<T>(sum[k][r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kOutputs; ++r) {
      sums[k * kOutputs + r] = kAdd ? sums[k * kOutputs + r] + result[r] : result[r];
    }
  }
}

// All taps of a tile.
template <int kOutputs, bool kAdd, typename T, typename Offset>
OES_ISA_INLINE void weight_grad_tiles(
    const T* source, const Offset* offsets, int64_t taps, int64_t pitch, const T* grad, int64_t plane,
    int64_t grad_pitch, int64_t rows, int64_t length, const T* zeros_then_ones, T* sums) {
  int64_t t = 0;
  for (; t + kTileTaps <= taps; t += kTileTaps) {
    weight_grad_tile<kOutputs, kTileTaps, kAdd>(
        source, offsets + t, pitch, grad, plane, grad_pitch, rows, length, zeros_then_ones, sums + t * kOutputs);
  }
  for (; t < taps; ++t) {
    weight_grad_tile<kOutputs, 1, kAdd>(
        source, offsets + t, pitch, grad, plane, grad_pitch, rows, length, zeros_then_ones, sums + t * kOutputs);
  }
}

// A number of vectors of each output of a tile.
template <int kOutputs, bool kAdd, typename T, typename Offset>
OES_ISA_INLINE void output_tiles(
    const T* source, const T* weights, const Offset* offsets, int64_t taps, int64_t vectors, T* out, int64_t plane) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t v = 0;
  for (; v + kTileVectors <= vectors; v += kTileVectors) {
    output_tile<kOutputs, kTileVectors, kAdd>(source + v * lanes, weights, offsets, taps, out + v * lanes, plane);
  }
  for (; v < vectors; ++v) {
    output_tile<kOutputs, 1, kAdd>(source + v * lanes, weights, offsets, taps, out + v * lanes, plane);
  }
}

// Calls f(number of outputs as a constant of its own type, first output) for every tile of from .. to.
template <int kOutputs>
struct OutputsOfTile {
  static constexpr int value = kOutputs;
};

template <typename F>
OES_ISA_INLINE void for_output_tiles(int64_t from, int64_t to, const F& f) {
  while (from < to) {
    const int rows = outputs_of_tile(to - from, kTileOutputs);
    switch (rows) {
      case 1:
        f(OutputsOfTile<1>(), from);
        break;
      case 2:
        f(OutputsOfTile<2>(), from);
        break;
      case 4:
        f(OutputsOfTile<4>(), from);
        break;
      default:
        f(OutputsOfTile<kTileOutputs>(), from);
    }
    from += rows;
  }
}
