// The gradient of a convolution's weights: one sum over cells for each tap,
//
//   grad(tap, g) = sum over the cells of fixed(g; i, j) * moving(plane; i + row, j + column),
//
// where for a direct convolution `fixed` is the gradient of the outputs and `moving` the image; for one of an image
// up-sampled by 2 `fixed` is the image and `moving` the gradient of the outputs, boxed and un-shuffled: nine products
// for each pixel of the low resolution in place of 36.
#pragma once

#include "cuda/conv/plane_reader.h"
#include "cuda/conv/products.h"

namespace oes::cuda::conv {

// Taps of one group of fixed channels that a warp takes together.
struct WeightGradItem {
  int first, count; // of the block's taps
  int channel; // first of the group, among the block's fixed channels
};

template <typename T>
struct WeightGradArgs {
  PlaneReader<T> fixed; // its pixels are the cells
  PlaneReader<T> moving;
  // Lists of taps: of each range of fixed channels, and chunk of moving ones.
  const int* begins; // [ranges, chunks] + 1
  const int* item_begins; // the same of items
  const int* offsets; // [taps]: in the staged tile
  const WeightGradItem* items;
  int ranges, range_channels, chunks, chunk_channels, most_taps;
  int tile_rows, tile_columns; // 32 * cells of a lane
  int column_tiles, tiles, slots; // slots: blocks that share the tiles
  int staged_rows, staged_columns, pitch, plane;
  T* partials; // [networks, slots, taps, group]
  int64_t slot_stride; // taps * group
};

// Taps of an item at most.
constexpr int weight_grad_batch(Products products, int group) {
  return products == Products::kFloat32 ? 32 / group : 32;
}

// As tap_sum_pitch, for a lane's cells of a tile of 16 or 32 columns.
constexpr int weight_grad_pitch(int cells) {
  return cells == 8 ? 38 : 0;
}

struct WeightGradShape {
  Products products;
  int group; // fixed channels of a block: 1 or 4; on tensor cores 16 or 32
  int cells; // of a lane: 2 or 8
  int threads;
  size_t shared_bytes;
};

template <typename T>
size_t weight_grad_shared_bytes(const WeightGradArgs<T>& a, const WeightGradShape& s);

template <typename T>
void weight_grad(const WeightGradArgs<T>& a, const WeightGradShape& s, int networks, cudaStream_t stream);

// The same on tensor cores: weight_grad_mma.cu.
size_t weight_grad_mma_shared_bytes(const WeightGradArgs<float>& a, const WeightGradShape& s);
void weight_grad_mma(const WeightGradArgs<float>& a, const WeightGradShape& s, int networks, cudaStream_t stream);

} // namespace oes::cuda::conv
