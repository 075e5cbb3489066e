// The image a kernel reads, staged as planes in shared memory: normalised and activated or turned into a gradient,
// continued over its border, summed over 2 x 2 pixels and un-shuffled, in one pass.
#pragma once

#include "cuda/norm/prologue.h"

namespace oes::cuda::conv {

// Pixel (p, q) of a plane's image is pixel (p - top, q - left) of the image; plane (channel, a, b) has its pixels
// (unshuffle * i + a, unshuffle * j + b), or with `box` the sums of those with the ones below and to the right.
template <typename T>
struct PlaneReader {
  const T* y; // [networks, channels, rows, columns]
  const T* grad; // of the same shape, and gradient numbers: the image is a gradient; or nullptr
  norm::Prologue<T> prologue; // where it is not
  const T* grad_numbers;
  int64_t network_stride; // of y; 0: all networks read the same
  int channels, rows, columns;
  int top, left, bottom, right;
  Padding padding;
  bool box;
  int unshuffle; // 1 or 2
};

// A piece of the planes in shared memory.
template <typename T>
struct StagedTile {
  T* to; // [channels, unshuffle, unshuffle, rows, pitch]
  int first_channel, channels; // those beyond the image are zero
  int first_row, first_column; // in pixels of a plane
  int rows, columns, pitch, plane; // plane: elements of one
};

// Index of a row or column of the image, -1 outside.
__device__ __forceinline__ int padded_index(Padding padding, int padded, int before, int after, int size) {
  int i = padded - before;
  if (i >= 0 && i < size) {
    return i;
  }
  if (padding == Padding::kZeros || padded < 0 || i >= size + after) {
    return -1;
  }
  if (padding == Padding::kReplicate) {
    return i < 0 ? 0 : size - 1;
  }
  return i < 0 ? -i : 2 * (size - 1) - i;
}

// All threads of the block take part. A warp reads a row, or several where they are short; the lanes of a row lie along
// its columns, so that loads are of one piece and each sum of 2 x 2 takes one column from the next lane.
template <typename T>
__device__ __forceinline__ void stage(const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network) {
  const int side = r.unshuffle, width = side * s.columns + (r.box ? 1 : 0);
  int lanes = 32;
  while (lanes > 4 && lanes / 2 >= width) {
    lanes /= 2;
  }
  const int lane = threadIdx.x % lanes, row_rank = threadIdx.x / lanes, ranks = blockDim.x / lanes;
  const int rows = side * s.rows, tasks = s.channels * rows, step = r.box ? lanes - 1 : lanes;
  const int64_t pixels = static_cast<int64_t>(r.rows) * r.columns;
  // The same number of rounds for all: lanes hand columns on.
  const int rounds = (tasks + ranks - 1) / ranks;
#pragma unroll 2
  for (int round = 0; round < rounds; ++round) {
    const int task = round * ranks + row_rank;
    const int local = task / rows, row = task - local * rows, channel = s.first_channel + local;
    const bool there = task < tasks && channel < r.channels;
    const int p = side * s.first_row + row;
    const int upper = there ? padded_index(r.padding, p, r.top, r.bottom, r.rows) : -1;
    const int lower = there && r.box ? padded_index(r.padding, p + 1, r.top, r.bottom, r.rows) : -1;
    const int64_t of = network * r.channels + channel;
    const norm::PrologueNumbers<T> numbers(r.prologue, there && r.grad == nullptr ? of : 0);
    const norm::GradNumbers<T> grads(r.grad_numbers, there && r.grad != nullptr ? of : 0);
    const T* y = r.y + network * r.network_stride + (there ? channel * pixels : 0);
    const T* grad = r.grad == nullptr || !there ? nullptr : r.grad + of * pixels;
    T* to = s.to + local * side * side * s.plane;
    for (int first = 0; first < width - (r.box ? 1 : 0); first += step) {
      const int column = first + lane;
      const int q = padded_index(r.padding, side * s.first_column + column, r.left, r.right, r.columns);
      T value = T(0);
      if (q >= 0 && column < width) {
        if (upper >= 0) {
          const int64_t at = static_cast<int64_t>(upper) * r.columns + q;
          value = grad == nullptr ? numbers.value(r.prologue, y[at]) : grads.value(grad[at], y[at]);
        }
        if (lower >= 0) {
          const int64_t at = static_cast<int64_t>(lower) * r.columns + q;
          value += grad == nullptr ? numbers.value(r.prologue, y[at]) : grads.value(grad[at], y[at]);
        }
      }
      if (r.box) {
        const T next = __shfl_down_sync(0xffffffffu, value, 1, lanes);
        value += next;
      }
      if (task < tasks && lane < step && column < side * s.columns) {
        const int phase = row % side * side + column % side;
        to[phase * s.plane + row / side * s.pitch + column / side] = value;
      }
    }
  }
}

} // namespace oes::cuda::conv
