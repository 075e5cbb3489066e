// Which cells a block of a sum over taps has, and which pixels they give.
#pragma once

#include "cuda/conv/tap_sum.h"

namespace oes::cuda::conv {

// Range of cells of a tile: tiles are as equal as can be.
struct CellRange {
  int begin, end;

  __device__ __forceinline__ CellRange(int tile, int tiles, int first, int cells)
      : begin(first + static_cast<int>(static_cast<int64_t>(tile) * cells / tiles)),
        end(first + static_cast<int>(static_cast<int64_t>(tile + 1) * cells / tiles)) {}
};

// The tile of sums that the cells give, for write_tile.
template <typename T>
__device__ __forceinline__ SumTile<T> sum_tile(
    const Epilogue<T>& e, const T* sums, int side, const TapSumArgs<T>& a, const CellRange& rows,
    const CellRange& columns) {
  return {
      sums,
      side * a.tile_rows,
      side * a.tile_columns,
      side * rows.begin,
      side * columns.begin,
      max(side * rows.begin - e.box_first, 0),
      min(side * rows.end - e.box_first, e.top + e.rows + e.bottom),
      max(side * columns.begin - e.box_first, 0),
      min(side * columns.end - e.box_first, e.left + e.columns + e.right)};
}

// Stages the channels of a chunk.
template <typename T>
__device__ __forceinline__ void stage_chunk(
    const TapSumArgs<T>& a, T* to, T* numbers, int chunk, const CellRange& rows, const CellRange& columns,
    int64_t network) {
  const int first = chunk * a.chunk_channels;
  stage(
      a.reader,
      StagedTile<T>{
          to, numbers, first, min(a.chunk_channels, a.reader.channels - first), rows.begin, columns.begin,
          a.staged_rows, a.staged_columns, a.pitch, a.plane},
      network);
}

// Starts copies of weights and offsets of `count` taps, the first of them `first`, in rows of `pitch` weights. The
// pixels are staged meanwhile.
template <int kGroup, typename T>
__device__ __forceinline__ void start_taps(
    const TapSumArgs<T>& a, T* weights, int pitch, int* offsets, int64_t network, int first, int count) {
  constexpr int kAtOnce = kGroup % 4 == 0 ? 16 / static_cast<int>(sizeof(T)) : 1; // kGroup: of a tap
  const T* from = a.weights + network * a.weights_stride + static_cast<int64_t>(first) * kGroup;
  for (int i = kAtOnce * threadIdx.x; i < count * kGroup; i += kAtOnce * blockDim.x) {
    start_copy<kAtOnce>(weights + i / kGroup * pitch + i % kGroup, from + i);
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    start_copy<1>(offsets + i, a.offsets + first + i);
  }
}

} // namespace oes::cuda::conv
