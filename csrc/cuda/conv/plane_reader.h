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
  T* numbers; // [channels, kStagedNumbers]: aligned to four numbers
  int first_channel, channels; // those beyond the image are zero
  int first_row, first_column; // in pixels of a plane
  int rows, columns, pitch, plane; // plane: elements of one
};

constexpr int kStagedNumbers = 8;

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

// What a pixel is made into.
enum class PixelKind { kPlain, kActivated, kNormalisedTwice, kGrad };

template <PixelKind kKind, Act kAct, typename T>
__device__ __forceinline__ T
staged_pixel(const PlaneReader<T>& r, const T* numbers, const T* y, const T* grad, int at) {
  const T pixel = y[at];
  if constexpr (kKind == PixelKind::kPlain) {
    return pixel;
  } else if constexpr (kKind == PixelKind::kGrad) {
    return numbers[1] * grad[at] + (numbers[2] * (pixel - numbers[0]) + numbers[3]);
  } else {
    const T x = norm::activate(kAct, r.prologue.slope, numbers[1] * (pixel - numbers[0]) + numbers[2]);
    return kKind == PixelKind::kActivated ? x : numbers[4] * (x - numbers[3]) + numbers[5];
  }
}

// A thread takes the same places of all channels, so that where they lie is worked out once.
template <PixelKind kKind, Act kAct, bool kBox, typename T>
__device__ __forceinline__ void stage_pixels(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  const int side = r.unshuffle, width = side * s.columns, places = side * s.rows * width;
  const int pixels = r.rows * r.columns, stride = side * side * s.plane;
  const int64_t first = static_cast<int64_t>(s.first_channel) * pixels;
  const T* y_first = r.y + network * r.network_stride + first;
  const T* grad_first =
      kKind == PixelKind::kGrad ? r.grad + network * r.channels * static_cast<int64_t>(pixels) + first : nullptr;
  for (int place = threadIdx.x; place < places; place += blockDim.x) {
    const int row = place / width, column = place - row * width;
    const int p = side * s.first_row + row, q = side * s.first_column + column;
    const int upper = padded_index(r.padding, p, r.top, r.bottom, r.rows);
    const int left = padded_index(r.padding, q, r.left, r.right, r.columns);
    const int lower = kBox ? padded_index(r.padding, p + 1, r.top, r.bottom, r.rows) : -1;
    const int right = kBox ? padded_index(r.padding, q + 1, r.left, r.right, r.columns) : -1;
    const int at[4] = {
        upper < 0 || left < 0 ? -1 : upper * r.columns + left, upper < 0 || right < 0 ? -1 : upper * r.columns + right,
        lower < 0 || left < 0 ? -1 : lower * r.columns + left, lower < 0 || right < 0 ? -1 : lower * r.columns + right};
    T* to = s.to + (row % side * side + column % side) * s.plane + row / side * s.pitch + column / side;
    const T *y = y_first, *grad = grad_first, *numbers = s.numbers;
#pragma unroll(kBox ? 1 : 4)
    for (int channel = 0; channel < channels; ++channel) {
      T value = T(0);
#pragma unroll
      for (int i = 0; i < (kBox ? 4 : 1); ++i) {
        if (at[i] >= 0) {
          value += staged_pixel<kKind, kAct>(r, numbers, y, grad, at[i]);
        }
      }
      *to = value;
      to += stride;
      y += pixels;
      grad += kKind == PixelKind::kGrad ? pixels : 0;
      numbers += kStagedNumbers;
    }
    for (int channel = channels; channel < s.channels; ++channel, to += stride) {
      *to = T(0);
    }
  }
}

template <PixelKind kKind, Act kAct, typename T>
__device__ __forceinline__ void stage_boxed(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  if (r.box) {
    stage_pixels<kKind, kAct, true>(r, s, network, channels);
  } else {
    stage_pixels<kKind, kAct, false>(r, s, network, channels);
  }
}

template <Act kAct, typename T>
__device__ __forceinline__ void stage_activated(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  if (r.prologue.second) { // of a block with two norms: no box is in front of an up-sampling
    stage_boxed<PixelKind::kNormalisedTwice, kAct>(r, s, network, channels);
  } else {
    stage_boxed<PixelKind::kActivated, kAct>(r, s, network, channels);
  }
}

// All threads of the block take part. The tile is complete after the next barrier.
template <typename T>
__device__ __forceinline__ void stage(const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network) {
  const int channels = min(s.channels, r.channels - s.first_channel);
  const T* numbers = r.grad != nullptr ? r.grad_numbers : r.prologue.numbers;
  if (numbers != nullptr) {
    const int each = r.grad != nullptr ? norm::kGradNumbers : norm::kPrologueNumbers;
    const int used = r.grad == nullptr && !r.prologue.second ? 3 : each; // nobody has written the others
    const T* from = numbers + (network * r.channels + s.first_channel) * each;
    for (int i = threadIdx.x; i < channels * used; i += blockDim.x) {
      s.numbers[i / used * kStagedNumbers + i % used] = from[i / used * each + i % used];
    }
    __syncthreads();
  }
  if (r.grad != nullptr) {
    if (numbers == nullptr) { // no norm is behind it: the gradient as it is
      PlaneReader<T> plain = r;
      plain.y = r.grad;
      plain.network_stride = static_cast<int64_t>(r.channels) * r.rows * r.columns;
      stage_boxed<PixelKind::kPlain, Act::kLeaky>(plain, s, network, channels);
    } else {
      stage_boxed<PixelKind::kGrad, Act::kLeaky>(r, s, network, channels);
    }
  } else if (numbers == nullptr) {
    stage_boxed<PixelKind::kPlain, Act::kLeaky>(r, s, network, channels);
  } else if (r.prologue.act == Act::kLeaky) {
    stage_activated<Act::kLeaky>(r, s, network, channels);
  } else if (r.prologue.act == Act::kElu) {
    stage_activated<Act::kElu>(r, s, network, channels);
  } else {
    stage_activated<Act::kSilu>(r, s, network, channels);
  }
}

} // namespace oes::cuda::conv
