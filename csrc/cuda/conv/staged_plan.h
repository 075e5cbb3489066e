// What plans of all kernels that stage tiles have in common.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/conv/conv_plan.h"

namespace oes::cuda::conv {

constexpr int kThreads = 256; // of a block
constexpr size_t kSharedBytes = 46 * 1024; // of a block: four of them fit a processor of compute capability 9.0
constexpr size_t kSharedBytesAlone = 92 * 1024; // where a processor has no more than two blocks: less is staged twice

inline Reach reach_of(const std::vector<Tap>& taps) {
  Reach reach;
  for (const Tap& t : taps) {
    reach.rows = std::max(reach.rows, t.row);
    reach.columns = std::max(reach.columns, t.column);
  }
  return reach;
}

// Elements from one row of a staged tile to the next: the lanes of a warp, in rows of tile_columns that are so many
// `cells` apart, read 32 banks.
inline int pitch_for(int staged_columns, int tile_columns, int cells = 1) {
  int pitch = staged_columns;
  while (tile_columns < 32 && cells * pitch % 32 != tile_columns && cells * pitch % 32 != 32 - tile_columns) {
    ++pitch;
  }
  return pitch;
}

// How the image is read; where it lies is not known yet, see point.
template <typename T>
PlaneReader<T> reader_of(const Reading& reading, int channels, int rows, int columns) {
  return {
      nullptr,
      nullptr,
      {},
      nullptr,
      0,
      channels,
      rows,
      columns,
      reading.border.top,
      reading.border.left,
      reading.border.bottom,
      reading.border.right,
      reading.border.padding,
      reading.box,
      reading.unshuffle};
}

template <typename T>
void point(PlaneReader<T>& r, const Image<T>& image) {
  r.y = image.y;
  r.grad = image.grad;
  r.prologue = image.prologue;
  r.grad_numbers = image.grad_numbers;
  r.network_stride = image.shared ? 0 : static_cast<int64_t>(r.channels) * r.rows * r.columns;
}

} // namespace oes::cuda::conv
