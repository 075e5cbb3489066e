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

// What a pixel is made into. The usual activation has kinds of its own; all others share one, or the kernels would be
// several times as long.
enum class PixelKind { kPlain, kGrad, kLeaky, kLeakyTwice, kAny };

template <PixelKind kKind, typename T>
__device__ __forceinline__ T
staged_pixel(const PlaneReader<T>& r, const T* numbers, const T* y, const T* grad, int at) {
  const T pixel = y[at];
  if constexpr (kKind == PixelKind::kPlain) {
    return pixel;
  } else if constexpr (kKind == PixelKind::kGrad) {
    return numbers[1] * grad[at] + (numbers[2] * (pixel - numbers[0]) + numbers[3]);
  } else {
    const Act act = kKind == PixelKind::kAny ? r.prologue.act : Act::kLeaky;
    const bool second = kKind == PixelKind::kAny ? r.prologue.second : kKind == PixelKind::kLeakyTwice;
    const T x = norm::activate(act, r.prologue.slope, numbers[1] * (pixel - numbers[0]) + numbers[2]);
    return second ? numbers[4] * (x - numbers[3]) + numbers[5] : x;
  }
}

// The chunk's first pixel, and the gradient's.
template <PixelKind kKind, typename T>
struct ChannelPixels {
  const T *y, *grad;

  __device__ __forceinline__ ChannelPixels(const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network) {
    const int64_t pixels = static_cast<int64_t>(r.rows) * r.columns, first = s.first_channel * pixels;
    y = r.y + network * r.network_stride + first;
    grad = kKind == PixelKind::kGrad ? r.grad + network * r.channels * pixels + first : nullptr;
  }

  __device__ __forceinline__ void next(int pixels) {
    y += pixels;
    grad += kKind == PixelKind::kGrad ? pixels : 0;
  }
};

// A row or column of the image, and 0 in place of 1 where there is none: a pixel that is read and not used costs less
// than a branch.
template <typename T>
struct Line {
  int index;
  T there;

  __device__ __forceinline__ Line(const PlaneReader<T>& r, int padded, bool row)
      : index(
            row ? padded_index(r.padding, padded, r.top, r.bottom, r.rows)
                : padded_index(r.padding, padded, r.left, r.right, r.columns)),
        there(index < 0 ? T(0) : T(1)) {
    index = index < 0 ? 0 : index;
  }
  Line() = default;
};

// Where pixel (row, column) of the tile lies in its channel's planes.
template <typename T>
__device__ __forceinline__ int staged_place(const StagedTile<T>& s, int side, int row, int column) {
  const int half = side - 1; // a shift, and the bit of the phase
  return ((row & half) * side + (column & half)) * s.plane + (row >> half) * s.pitch + (column >> half);
}

// A thread takes the same places of all channels, so that where they lie is worked out once.
template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_pixels(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  const int side = r.unshuffle, width = side * s.columns, places = side * s.rows * width;
  const int pixels = r.rows * r.columns, stride = side * side * s.plane;
  for (int place = threadIdx.x; place < places; place += blockDim.x) {
    const int row = place / width, column = place - row * width;
    const Line<T> i(r, side * s.first_row + row, true), j(r, side * s.first_column + column, false);
    const int at = i.index * r.columns + j.index;
    const T there = i.there * j.there;
    ChannelPixels<kKind, T> from(r, s, network);
    T* to = s.to + staged_place(s, side, row, column);
    const T* numbers = s.numbers;
#pragma unroll(kKind == PixelKind::kAny ? 1 : 4)
    for (int channel = 0; channel < channels; ++channel) {
      *to = there * staged_pixel<kKind>(r, numbers, from.y, from.grad, at);
      to += stride;
      from.next(pixels);
      numbers += kStagedNumbers;
    }
    for (int channel = channels; channel < s.channels; ++channel, to += stride) {
      *to = T(0);
    }
  }
}

// Sums of 2 x 2 pixels. A thread takes two columns of two rows: nine pixels for four sums, where each by itself would
// take 16. More rows would take more registers than a second block of the processor leaves.
template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_sums(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  constexpr int kRows = 2, kColumns = 2;
  const int side = r.unshuffle, height = side * s.rows, width = side * s.columns;
  const int across = (width + kColumns - 1) / kColumns, places = (height + kRows - 1) / kRows * across;
  const int pixels = r.rows * r.columns, stride = side * side * s.plane;
  for (int place = threadIdx.x; place < places; place += blockDim.x) {
    const int first_row = place / across * kRows, first_column = place % across * kColumns;
    Line<T> rows[kRows + 1], columns[kColumns + 1];
#pragma unroll
    for (int i = 0; i <= kRows; ++i) {
      rows[i] = Line<T>(r, side * s.first_row + first_row + i, true);
      rows[i].index *= r.columns;
    }
#pragma unroll
    for (int j = 0; j <= kColumns; ++j) {
      columns[j] = Line<T>(r, side * s.first_column + first_column + j, false);
    }
    ChannelPixels<kKind, T> from(r, s, network);
    T* to = s.to;
    const T* numbers = s.numbers;
#pragma unroll 1
    for (int channel = 0; channel < channels; ++channel) {
      T above[kColumns] = {};
#pragma unroll
      for (int i = 0; i <= kRows; ++i) {
        T pixel[kColumns + 1];
#pragma unroll
        for (int j = 0; j <= kColumns; ++j) {
          pixel[j] =
              columns[j].there * staged_pixel<kKind>(r, numbers, from.y, from.grad, rows[i].index + columns[j].index);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const T sum = rows[i].there * (pixel[j] + pixel[j + 1]);
          const int row = first_row + i - 1, column = first_column + j;
          if (i > 0 && row < height && column < width) {
            to[staged_place(s, side, row, column)] = above[j] + sum;
          }
          above[j] = sum;
        }
      }
      to += stride;
      from.next(pixels);
      numbers += kStagedNumbers;
    }
    for (int channel = channels; channel < s.channels; ++channel, to += stride) {
      for (int i = 0; i < kRows * kColumns; ++i) {
        const int row = first_row + i / kColumns, column = first_column + i % kColumns;
        if (row < height && column < width) {
          to[staged_place(s, side, row, column)] = T(0);
        }
      }
    }
  }
}

// The same, each by itself: for what is rare, since the kernels are long.
template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_single_sums(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  const int side = r.unshuffle, width = side * s.columns, places = side * s.rows * width;
  const int pixels = r.rows * r.columns, stride = side * side * s.plane;
  for (int place = threadIdx.x; place < places; place += blockDim.x) {
    const int row = place / width, column = place - row * width;
    ChannelPixels<kKind, T> from(r, s, network);
    T* to = s.to + staged_place(s, side, row, column);
#pragma unroll 1
    for (int channel = 0; channel < s.channels; ++channel, to += stride) {
      T sum = T(0);
#pragma unroll 1
      for (int k = 0; channel < channels && k < 4; ++k) {
        const Line<T> i(r, side * s.first_row + row + k / 2, true), j(r, side * s.first_column + column + k % 2, false);
        const T pixel = staged_pixel<kKind>(
            r, s.numbers + channel * kStagedNumbers, from.y, from.grad, i.index * r.columns + j.index);
        sum += i.there * j.there * pixel;
      }
      *to = sum;
      from.next(pixels);
    }
  }
}

template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_kind(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  if (r.box && kKind == PixelKind::kAny) {
    stage_single_sums<PixelKind::kAny>(r, s, network, channels);
  } else if (r.box) {
    stage_sums<kKind == PixelKind::kAny ? PixelKind::kPlain : kKind>(r, s, network, channels);
  } else {
    stage_pixels<kKind>(r, s, network, channels);
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
  if (numbers == nullptr) {
    PlaneReader<T> plain = r;
    if (r.grad != nullptr) { // no norm is behind it: the gradient as it is
      plain.y = r.grad;
      plain.network_stride = static_cast<int64_t>(r.channels) * r.rows * r.columns;
    }
    stage_kind<PixelKind::kPlain>(plain, s, network, channels);
  } else if (r.grad != nullptr) {
    stage_kind<PixelKind::kGrad>(r, s, network, channels);
  } else if (r.prologue.act != Act::kLeaky || (r.prologue.second && r.box)) {
    stage_kind<PixelKind::kAny>(r, s, network, channels);
  } else if (r.prologue.second) {
    stage_pixels<PixelKind::kLeakyTwice>(r, s, network, channels);
  } else {
    stage_kind<PixelKind::kLeaky>(r, s, network, channels);
  }
}

} // namespace oes::cuda::conv
