// Sums over taps: the forward pass of a convolution and the gradient of its input, direct or up-sampled.
//
// A cell (i, j) has side x side sums, its phases, for each output: sum(side * i + a, side * j + b) = sum over the taps
// of phase (a, b) of weight * plane(i + row, j + column). Side 1 is an ordinary convolution of the planes; side 2 is
// the transpose of one with a stride of 2. With the box and the borders of reader and epilogue that is all of:
//
//   direct convolution          forward: side 1                      input gradient: side = stride, box and border
//   behind convolution of an image     forward: side 2, box behind          input gradient: side 1 over the boxed
//   gradient, up-sampled by 2                                                  un-shuffled, border behind
#pragma once

#include "cuda/conv/epilogue.h"
#include "cuda/conv/products.h"

namespace oes::cuda::conv {

template <typename T>
struct TapSumArgs {
  PlaneReader<T> reader;
  Epilogue<T> epilogue;
  // Lists of taps: of each group of outputs, chunk of channels, and phase.
  const int* begins; // [groups, chunks, side * side] + 1
  const int* offsets; // [taps]: in the staged tile
  const T* weights; // [networks, taps, group]
  int64_t weights_stride; // of a network
  int chunks, chunk_channels, most_taps; // of a chunk of a group
  // Tiles of cells.
  int tile_rows, tile_columns; // capacity
  int row_tiles, column_tiles;
  int first_row, first_column, row_cells, column_cells; // cells with a result
  int staged_rows, staged_columns, pitch, plane; // of the staged tile
  int splits; // parts of the block that share the taps
};

// Elements from one row of the staged tile to the next, where the compiler is to know them: a thread's cells lie one
// below the other, so that they differ by constants. Lanes on two rows of a tile of 16 columns read all 32 banks.
// 0: any, TapSumArgs::pitch; the kernels of one output take the widest convolutions.
constexpr int tap_sum_pitch(int group, int cells) {
  return group == 1 ? 0 : cells == 4 ? 36 : cells == 2 ? 40 : 0;
}

struct TapSumShape {
  Products products;
  int group; // outputs of a block
  int cells; // of a thread; on tensor cores of a warp, in sixteens
  int side; // 1 or 2
  int threads;
  size_t shared_bytes;
};

// Bytes of shared memory for a launch.
template <typename T>
size_t tap_sum_shared_bytes(const TapSumArgs<T>& a, const TapSumShape& s);

// Whether there is a kernel of that shape.
template <typename T>
bool has_tap_sum(const TapSumShape& s);

template <typename T>
void tap_sum(const TapSumArgs<T>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream);

// The same on tensor cores: tap_sum_mma.cu.
size_t tap_sum_mma_shared_bytes(const TapSumArgs<float>& a, const TapSumShape& s);
bool has_tap_sum_mma(const TapSumShape& s);
void tap_sum_mma(const TapSumArgs<float>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream);

} // namespace oes::cuda::conv
