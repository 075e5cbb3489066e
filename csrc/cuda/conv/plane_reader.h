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
__device__ __forceinline__ T staged_pixel(const PlaneReader<T>& r, const T* numbers, T pixel, T grad) {
  if constexpr (kKind == PixelKind::kPlain) {
    return pixel;
  } else if constexpr (kKind == PixelKind::kGrad) {
    return numbers[1] * grad + (numbers[2] * (pixel - numbers[0]) + numbers[3]);
  } else {
    const Act act = kKind == PixelKind::kAny ? r.prologue.act : Act::kLeaky;
    const bool second = kKind == PixelKind::kAny ? r.prologue.second : kKind == PixelKind::kLeakyTwice;
    const T x = norm::activate(act, r.prologue.slope, numbers[1] * (pixel - numbers[0]) + numbers[2]);
    return second ? numbers[4] * (x - numbers[3]) + numbers[5] : x;
  }
}

// The chunk's pixels, and the gradient's.
template <PixelKind kKind, typename T>
struct ChunkPixels {
  const T *y, *grad;
  int64_t pixels; // of a channel

  __device__ __forceinline__ ChunkPixels(const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network)
      : pixels(static_cast<int64_t>(r.rows) * r.columns) {
    y = r.y + network * r.network_stride + s.first_channel * pixels;
    grad = kKind == PixelKind::kGrad ? r.grad + (network * r.channels + s.first_channel) * pixels : nullptr;
  }

  __device__ __forceinline__ T y_at(int channel, int at) const {
    return y[channel * pixels + at];
  }
  __device__ __forceinline__ T grad_at(int channel, int at) const {
    if constexpr (kKind == PixelKind::kGrad) {
      return grad[channel * pixels + at];
    } else {
      return T(0);
    }
  }
};

// Which places of a tile a thread takes, and of which channels: where there are more threads than places, parts of the
// block share the channels.
struct ThreadPlaces {
  int first, step; // places
  int part, parts; // channels part, part + parts, ..; part == parts: none

  __device__ __forceinline__ explicit ThreadPlaces(int places) : parts(max(static_cast<int>(blockDim.x) / places, 1)) {
    part = parts == 1 ? 0 : min(static_cast<int>(threadIdx.x) / places, parts);
    first = threadIdx.x - part * places;
    step = parts == 1 ? blockDim.x : places;
    first = part == parts ? places : first;
  }
};

// Channels whose pixels a thread reads before it needs the first: one after the other each would wait for memory.
template <PixelKind kKind, typename T>
constexpr int channels_ahead() {
  return kKind == PixelKind::kAny ? 1 : kKind == PixelKind::kGrad || sizeof(T) == 8 ? 4 : 8;
}

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

// A thread takes the same places of all its channels, so that where they lie is worked out once.
template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_pixels(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  constexpr int kAhead = channels_ahead<kKind, T>();
  const int side = r.unshuffle, width = side * s.columns, places = side * s.rows * width;
  const int stride = side * side * s.plane;
  const ChunkPixels<kKind, T> from(r, s, network);
  const ThreadPlaces mine(places);
  for (int place = mine.first; place < places; place += mine.step) {
    const int row = place / width, column = place - row * width;
    const Line<T> i(r, side * s.first_row + row, true), j(r, side * s.first_column + column, false);
    const int at = i.index * r.columns + j.index;
    const T there = i.there * j.there;
    T* to = s.to + staged_place(s, side, row, column);
#pragma unroll 1
    for (int first = mine.part; first < channels; first += kAhead * mine.parts) {
      T y[kAhead], grad[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) { // those behind the last are not used
        const int channel = min(first + k * mine.parts, channels - 1);
        y[k] = from.y_at(channel, at);
        grad[k] = from.grad_at(channel, at);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int channel = first + k * mine.parts;
        if (channel < channels) {
          to[channel * stride] = there * staged_pixel<kKind>(r, s.numbers + channel * kStagedNumbers, y[k], grad[k]);
        }
      }
    }
    for (int channel = channels + mine.part; channel < s.channels; channel += mine.parts) {
      to[channel * stride] = T(0);
    }
  }
}

// Sums of 2 x 2 pixels. A thread takes two columns of two rows: nine pixels for four sums, where each by itself would
// take 16. More rows would take more registers than a second block of the processor leaves.
template <PixelKind kKind, typename T>
__device__ __forceinline__ void stage_sums(
    const PlaneReader<T>& r, const StagedTile<T>& s, int64_t network, int channels) {
  constexpr int kSums = 2, kPixels = kSums + 1;
  const int side = r.unshuffle, height = side * s.rows, width = side * s.columns;
  const int across = (width + kSums - 1) / kSums, places = (height + kSums - 1) / kSums * across;
  const int stride = side * side * s.plane;
  const ChunkPixels<kKind, T> from(r, s, network);
  const ThreadPlaces mine(places);
  for (int place = mine.first; place < places; place += mine.step) {
    const int first_row = place / across * kSums, first_column = place % across * kSums;
    Line<T> rows[kPixels], columns[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      rows[i] = Line<T>(r, side * s.first_row + first_row + i, true);
      rows[i].index *= r.columns;
      columns[i] = Line<T>(r, side * s.first_column + first_column + i, false);
    }
#pragma unroll 1
    for (int channel = mine.part; channel < s.channels; channel += mine.parts) {
      T* to = s.to + channel * stride;
      T pixel[kPixels][kPixels] = {}, grad[kPixels][kPixels] = {};
      if (channel < channels) { // all are read before the first is needed
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
#pragma unroll
          for (int j = 0; j < kPixels; ++j) {
            pixel[i][j] = from.y_at(channel, rows[i].index + columns[j].index);
            grad[i][j] = from.grad_at(channel, rows[i].index + columns[j].index);
          }
        }
        const T* numbers = s.numbers + channel * kStagedNumbers;
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
#pragma unroll
          for (int j = 0; j < kPixels; ++j) {
            pixel[i][j] = columns[j].there * staged_pixel<kKind>(r, numbers, pixel[i][j], grad[i][j]);
          }
        }
      }
      T above[kSums] = {};
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          const T sum = rows[i].there * (pixel[i][j] + pixel[i][j + 1]);
          const int row = first_row + i - 1, column = first_column + j;
          if (i > 0 && row < height && column < width) {
            to[staged_place(s, side, row, column)] = above[j] + sum;
          }
          above[j] = sum;
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
  const int stride = side * side * s.plane;
  const ChunkPixels<kKind, T> from(r, s, network);
  for (int place = threadIdx.x; place < places; place += blockDim.x) {
    const int row = place / width, column = place - row * width;
    T* to = s.to + staged_place(s, side, row, column);
#pragma unroll 1
    for (int channel = 0; channel < s.channels; ++channel, to += stride) {
      T sum = T(0);
#pragma unroll 1
      for (int k = 0; channel < channels && k < 4; ++k) {
        const Line<T> i(r, side * s.first_row + row + k / 2, true), j(r, side * s.first_column + column + k % 2, false);
        const int at = i.index * r.columns + j.index;
        const T pixel = staged_pixel<kKind>(
            r, s.numbers + channel * kStagedNumbers, from.y_at(channel, at), from.grad_at(channel, at));
        sum += i.there * j.there * pixel;
      }
      *to = sum;
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
