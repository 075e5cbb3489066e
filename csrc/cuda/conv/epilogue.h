// What a sum over taps does with its results while they are in shared memory: the adjoint of a box and of a border,
// what the norm before or behind needs, and the image that leaves the network.
#pragma once

#include "cuda/conv/plane_reader.h"
#include "cuda/norm/finalise.h"

namespace oes::cuda::conv {

enum class EpilogueKind {
  kStore,
  kMoments, // of a convolution's result, for the norm behind it
  kActivationGrad, // the gradient goes through the activation; sums for the norm before it
  kSecondNormSums, // sums for the second norm
  kImage, // the image that leaves the network, with its error to a target
};

template <typename T>
struct Epilogue {
  EpilogueKind kind = EpilogueKind::kStore;
  bool box = false; // a result is the sum of 2 x 2 of the sums over taps, the first at box_first: 0 or -1
  int box_first = 0;
  int outputs = 0, rows = 0, columns = 0; // of the image written
  // A gradient of an image continued over a border: what lies on the border is added to the pixels it is a copy of.
  Padding padding = Padding::kZeros;
  int top = 0, left = 0, bottom = 0, right = 0;
  T* out = nullptr; // [networks, outputs, rows, columns]
  // kActivationGrad, kSecondNormSums: of the block whose gradient this is.
  const T* y = nullptr;
  norm::Prologue<T> prologue = {};
  // kImage
  OutputAct act = OutputAct::kLeaky;
  T slope = 0;
  T* image = nullptr; // [networks, outputs, rows, columns]
  const T* target = nullptr; // the same, or nullptr
  const T* weight = nullptr; // of each squared error, the same, or nullptr
  norm::Finalise<T> finalise = {};
};

// A tile of the sums in shared memory, and which pixels of the padded image it gives.
template <typename T>
struct SumTile {
  const T* sums; // [outputs, rows, columns]
  int rows, columns; // in pixels
  int first_row, first_column; // of sums[.][0][0]; may be negative
  int row_begin, row_end, column_begin, column_end; // pixels given
};

// The first one at or behind `from` of a row or column of the padded image that is a copy of `i`, other than i itself;
// `end` for none.
__device__ __forceinline__ int next_copy(Padding padding, int from, int i, int before, int after, int size) {
  const int end = before + size + after;
  if (padding == Padding::kZeros || (i > before && i < size - 1 - after)) {
    return end;
  }
  for (int p = from; p < end; ++p) {
    p = p == before ? before + size : p; // only the border
    if (p < end && padded_index(padding, p, before, after, size) == i) {
      return p;
    }
  }
  return end;
}

// Which sums over taps a pixel is made of: kCopies is right for all, the others take far fewer instructions.
enum class PixelSums { kOne, kBox, kCopies };

template <bool kBox, typename T>
__device__ __forceinline__ T boxed(const Epilogue<T>& e, const SumTile<T>& s, const T* sums, int p, int q) {
  const int row = p - s.first_row, column = q - s.first_column;
  if constexpr (!kBox) {
    return sums[row * s.columns + column];
  }
  const T* at = sums + (row + e.box_first) * s.columns + column + e.box_first;
  return (at[0] + at[1]) + (at[s.columns] + at[s.columns + 1]);
}

// Pixel (i, j) of an output whose sums these are.
template <PixelSums kSums, typename T>
__device__ __forceinline__ T sum_at(const Epilogue<T>& e, const SumTile<T>& s, const T* sums, int i, int j) {
  if constexpr (kSums != PixelSums::kCopies) {
    return boxed<kSums == PixelSums::kBox>(e, s, sums, e.top + i, e.left + j);
  }
  T sum = T(0);
  const int end_row = e.top + e.rows + e.bottom, end_column = e.left + e.columns + e.right;
#pragma unroll 1
  for (int p = e.top + i; p < end_row;) {
#pragma unroll 1
    for (int q = e.left + j; q < end_column;) {
      sum += e.box ? boxed<true>(e, s, sums, p, q) : boxed<false>(e, s, sums, p, q);
      q = next_copy(e.padding, q == e.left + j ? 0 : q + 1, j, e.left, e.right, e.columns);
    }
    p = next_copy(e.padding, p == e.top + i ? 0 : p + 1, i, e.top, e.bottom, e.rows);
  }
  return sum;
}

// What a warp does with its pixels of one output.
template <EpilogueKind kKind, typename T>
struct PixelEpilogue {
  const Epilogue<T>& e;
  const int64_t channel;
  const norm::PrologueNumbers<T> numbers;
  T pivot = T(0), shift = T(0), first = T(0), second = T(0); // the last two are sums

  __device__ __forceinline__ PixelEpilogue(const Epilogue<T>& e_, int64_t channel_)
      : e(e_), channel(channel_), numbers(e_.prologue, channel_) {}

  // What is read of a pixel `at` of the output, to be read ahead.
  __device__ __forceinline__ T beside(int at) const {
    if constexpr (kKind == EpilogueKind::kStore || kKind == EpilogueKind::kMoments) {
      return T(0);
    }
    const T* from = kKind == EpilogueKind::kImage ? e.target : e.y;
    return from == nullptr ? T(0) : from[channel * e.rows * e.columns + at];
  }

  __device__ __forceinline__ void operator()(T value, T beside, int at) {
    const int64_t pixel = channel * e.rows * e.columns + at;
    if constexpr (kKind == EpilogueKind::kMoments) {
      const T d = value - pivot;
      first += d;
      second += d * d;
    } else if constexpr (kKind == EpilogueKind::kActivationGrad) {
      value *= norm::activate_grad(e.prologue.act, e.prologue.slope, numbers.normalised(beside));
      first += value;
      second += value * (beside - numbers.mean);
    } else if constexpr (kKind == EpilogueKind::kSecondNormSums) {
      first += value;
      second += value * (numbers.activated(e.prologue, beside) - numbers.mean2);
    } else if constexpr (kKind == EpilogueKind::kImage) {
      value += shift;
      const T seen = norm::output_activate(e.act, e.slope, value);
      e.image[pixel] = seen;
      if (e.target != nullptr) {
        const T error = seen - beside;
        first += e.weight == nullptr ? error * error : error * error * e.weight[pixel];
      }
    }
    e.out[pixel] = value;
  }
};

// Pixels of the image written that a tile gives: `count` of them, in rows of `width`.
struct TilePixels {
  int row, column; // of the first
  int width, count;
  bool copies; // a pixel of the border may be added to one of them

  template <typename T>
  __device__ __forceinline__ TilePixels(const Epilogue<T>& e, const SumTile<T>& s)
      : row(max(s.row_begin, e.top) - e.top), column(max(s.column_begin, e.left) - e.left) {
    const int row_end = min(s.row_end, e.top + e.rows) - e.top,
              column_end = min(s.column_end, e.left + e.columns) - e.left;
    width = max(column_end - column, 0);
    count = max(row_end - row, 0) * width;
    copies = e.padding != Padding::kZeros &&
        ((e.top > 0 && row <= e.top) || (e.bottom > 0 && row_end >= e.rows - e.bottom) ||
         (e.left > 0 && column <= e.left) || (e.right > 0 && column_end >= e.columns - e.right));
  }
};

// The pixels of one output, those of a lane from `begin` on, `step` apart. A lane reads what lies beside kAhead pixels
// before it needs the first: one after the other each would wait for memory.
template <PixelSums kSums, int kAhead, EpilogueKind kKind, typename T>
__device__ __forceinline__ void write_pixels(
    PixelEpilogue<kKind, T>& pixel, const SumTile<T>& s, const T* sums, const TilePixels& pixels, int begin, int step) {
  const Epilogue<T>& e = pixel.e;
#pragma unroll 1
  for (; begin < pixels.count; begin += kAhead * step) {
    int i[kAhead], j[kAhead];
    T beside[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) { // those behind the last are not used
      const int at = min(begin + k * step, pixels.count - 1), row = at / pixels.width;
      i[k] = pixels.row + row;
      j[k] = pixels.column + at - row * pixels.width;
      beside[k] = pixel.beside(i[k] * e.columns + j[k]);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k * step < pixels.count) {
        pixel(sum_at<kSums>(e, s, sums, i[k], j[k]), beside[k], i[k] * e.columns + j[k]);
      }
    }
  }
}

// See write_tile. A kernel runs through what it does once for each warp, and reads its instructions as it goes: on an
// H100 tens of microseconds, before there was code for each kind by itself.
template <EpilogueKind kKind, typename T>
__device__ __forceinline__ void write_kind(
    const Epilogue<T>& e, const SumTile<T>& s, const TilePixels& pixels, int outputs, int first_output, int64_t network,
    T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int parts = max(warps / outputs, 1);
#pragma unroll 1
  for (int task = warp; task < parts * outputs; task += warps) {
    const int local = task % outputs, part = task / outputs, output = first_output + local;
    if (output >= e.outputs) {
      continue;
    }
    const T* sums = s.sums + local * s.rows * s.columns;
    PixelEpilogue<kKind, T> pixel(e, network * e.outputs + output);
    if constexpr (kKind == EpilogueKind::kMoments) {
      pixel.pivot = pixels.count > 0 ? sum_at<PixelSums::kCopies>(e, s, sums, pixels.row, pixels.column) : T(0);
    } else if constexpr (kKind == EpilogueKind::kImage) {
      const norm::Finalise<T>& f = e.finalise;
      pixel.shift = norm::shift_of(f.shift, f.weights + network * f.weights_stride, network, output);
    }
    const int begin = part * 32 + lane, step = parts * 32;
    if (pixels.copies) {
      write_pixels<PixelSums::kCopies, 1>(pixel, s, sums, pixels, begin, step);
    } else if (e.box) {
      write_pixels<PixelSums::kBox, 2>(pixel, s, sums, pixels, begin, step);
    } else {
      write_pixels<PixelSums::kOne, 4>(pixel, s, sums, pixels, begin, step);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      pixel.first += __shfl_down_sync(0xffffffffu, pixel.first, distance);
      pixel.second += __shfl_down_sync(0xffffffffu, pixel.second, distance);
    }
    if (lane == 0) {
      scratch[2 * task] = pixel.first;
      scratch[2 * task + 1] = pixel.second;
    }
  }
}

// All threads of the block, `outputs` of them from first_output on, of `tile` out of the finalise's chunks. A warp
// takes one output after the other, or where there are more warps than outputs a part of one. `scratch`: two numbers
// for each warp and output. When all outputs of the block are written, norm::finalise follows.
template <typename T>
__device__ __forceinline__ void write_tile(
    const Epilogue<T>& e, const SumTile<T>& s, int outputs, int first_output, int tile, int64_t network, T* scratch) {
  const TilePixels pixels(e, s);
  switch (e.kind) {
    case EpilogueKind::kMoments:
      write_kind<EpilogueKind::kMoments>(e, s, pixels, outputs, first_output, network, scratch);
      break;
    case EpilogueKind::kActivationGrad:
      write_kind<EpilogueKind::kActivationGrad>(e, s, pixels, outputs, first_output, network, scratch);
      break;
    case EpilogueKind::kSecondNormSums:
      write_kind<EpilogueKind::kSecondNormSums>(e, s, pixels, outputs, first_output, network, scratch);
      break;
    case EpilogueKind::kImage:
      write_kind<EpilogueKind::kImage>(e, s, pixels, outputs, first_output, network, scratch);
      break;
    default:
      write_kind<EpilogueKind::kStore>(e, s, pixels, outputs, first_output, network, scratch);
  }
  if (e.finalise.kind == norm::FinaliseKind::kNone) {
    return;
  }
  __syncthreads();
  const int local = threadIdx.x, output = first_output + local,
            parts = max(static_cast<int>(blockDim.x) / 32 / outputs, 1);
  if (local < outputs && output < e.outputs) {
    T sums[2] = {};
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      sums[0] += scratch[2 * (part * outputs + local)];
      sums[1] += scratch[2 * (part * outputs + local) + 1];
    }
    double* to =
        e.finalise.partials + ((network * e.outputs + output) * e.finalise.chunks + tile) * norm::kPartialNumbers;
    const double first = static_cast<double>(sums[0]), second = static_cast<double>(sums[1]);
    if (e.kind == EpilogueKind::kMoments) {
      const double n = pixels.count;
      const T* from = s.sums + local * s.rows * s.columns;
      const double pivot =
          pixels.count > 0 ? static_cast<double>(sum_at<PixelSums::kCopies>(e, s, from, pixels.row, pixels.column)) : 0;
      to[0] = n;
      to[1] = pixels.count > 0 ? pivot + first / n : 0;
      to[2] = pixels.count > 0 ? second - first * first / n : 0;
    } else {
      to[0] = first;
      to[1] = second;
    }
  }
}

// Numbers of scratch that write_tile takes for a block of that many warps.
__host__ __device__ constexpr int tile_scratch(int outputs, int warps) {
  return 2 * (outputs > warps ? outputs : warps);
}

} // namespace oes::cuda::conv
