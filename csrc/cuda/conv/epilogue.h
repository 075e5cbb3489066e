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

template <typename T>
__device__ __forceinline__ T boxed(const Epilogue<T>& e, const SumTile<T>& s, const T* sums, int p, int q) {
  const int row = p - s.first_row, column = q - s.first_column;
  if (!e.box) {
    return sums[row * s.columns + column];
  }
  const T* at = sums + (row + e.box_first) * s.columns + column + e.box_first;
  return (at[0] + at[1]) + (at[s.columns] + at[s.columns + 1]);
}

// Pixel (i, j) of output `local` of the tile.
template <typename T>
__device__ __forceinline__ T sum_at(const Epilogue<T>& e, const SumTile<T>& s, int local, int i, int j) {
  const T* sums = s.sums + local * s.rows * s.columns;
  T sum = T(0);
  const int end_row = e.top + e.rows + e.bottom, end_column = e.left + e.columns + e.right;
  for (int p = e.top + i; p < end_row;) {
    for (int q = e.left + j; q < end_column;) {
      sum += boxed(e, s, sums, p, q);
      q = next_copy(e.padding, q == e.left + j ? 0 : q + 1, j, e.left, e.right, e.columns);
    }
    p = next_copy(e.padding, p == e.top + i ? 0 : p + 1, i, e.top, e.bottom, e.rows);
  }
  return sum;
}

// A lane reads what lies beside so many pixels before it needs the first: one after the other each would wait for
// memory.
constexpr int kPixelsAhead = 4;

// What a warp does with its pixels of one output.
template <typename T>
struct PixelEpilogue {
  const Epilogue<T>& e;
  const int64_t channel;
  const norm::PrologueNumbers<T> numbers;
  T pivot = T(0), shift = T(0), first = T(0), second = T(0); // the last two are sums

  __device__ __forceinline__ PixelEpilogue(const Epilogue<T>& e_, int64_t channel_)
      : e(e_), channel(channel_), numbers(e_.prologue, channel_) {}

  // What is read of a pixel `at` of the output, to be read ahead.
  __device__ __forceinline__ T beside(int at) const {
    const T* from = e.kind == EpilogueKind::kImage ? e.target : e.y;
    return from == nullptr ? T(0) : from[channel * e.rows * e.columns + at];
  }

  __device__ __forceinline__ void operator()(T value, T beside, int at) {
    const int64_t pixel = channel * e.rows * e.columns + at;
    if (e.kind == EpilogueKind::kMoments) {
      const T d = value - pivot;
      first += d;
      second += d * d;
    } else if (e.kind == EpilogueKind::kActivationGrad) {
      value *= norm::activate_grad(e.prologue.act, e.prologue.slope, numbers.normalised(beside));
      first += value;
      second += value * (beside - numbers.mean);
    } else if (e.kind == EpilogueKind::kSecondNormSums) {
      first += value;
      second += value * (numbers.activated(e.prologue, beside) - numbers.mean2);
    } else if (e.kind == EpilogueKind::kImage) {
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

// All threads of the block, `outputs` of them from first_output on, of `tile` out of the finalise's chunks. A warp
// takes one output after the other, or where there are more warps than outputs a part of one. `scratch`: two numbers
// for each warp and output. When all outputs of the block are written, norm::finalise follows.
template <typename T>
__device__ __forceinline__ void write_tile(
    const Epilogue<T>& e, const SumTile<T>& s, int outputs, int first_output, int tile, int64_t network, T* scratch) {
  const int row_begin = max(s.row_begin, e.top) - e.top, row_end = min(s.row_end, e.top + e.rows) - e.top;
  const int column_begin = max(s.column_begin, e.left) - e.left,
            column_end = min(s.column_end, e.left + e.columns) - e.left;
  const int width = max(column_end - column_begin, 0), count = max(row_end - row_begin, 0) * width;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int parts = max(warps / outputs, 1);
  for (int task = warp; task < parts * outputs; task += warps) {
    const int local = task % outputs, part = task / outputs, output = first_output + local;
    if (output >= e.outputs) {
      continue;
    }
    PixelEpilogue<T> pixel(e, network * e.outputs + output);
    if (e.kind == EpilogueKind::kMoments && count > 0) {
      pixel.pivot = sum_at(e, s, local, row_begin, column_begin);
    } else if (e.kind == EpilogueKind::kImage) {
      const norm::Finalise<T>& f = e.finalise;
      pixel.shift = norm::shift_of(f.shift, f.weights + network * f.weights_stride, network, output);
    }
    const int step = parts * 32;
    for (int begin = part * 32 + lane; begin < count; begin += kPixelsAhead * step) {
      int i[kPixelsAhead], j[kPixelsAhead];
      T beside[kPixelsAhead];
#pragma unroll
      for (int k = 0; k < kPixelsAhead; ++k) { // those behind the last are not used
        const int at = min(begin + k * step, count - 1), row = at / width;
        i[k] = row_begin + row;
        j[k] = column_begin + at - row * width;
        beside[k] = pixel.beside(i[k] * e.columns + j[k]);
      }
#pragma unroll
      for (int k = 0; k < kPixelsAhead; ++k) {
        if (begin + k * step < count) {
          pixel(sum_at(e, s, local, i[k], j[k]), beside[k], i[k] * e.columns + j[k]);
        }
      }
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
  if (e.finalise.kind == norm::FinaliseKind::kNone) {
    return;
  }
  __syncthreads();
  const int local = threadIdx.x, output = first_output + local;
  if (local < outputs && output < e.outputs) {
    T sums[2] = {};
    for (int part = 0; part < parts; ++part) {
      sums[0] += scratch[2 * (part * outputs + local)];
      sums[1] += scratch[2 * (part * outputs + local) + 1];
    }
    double* to =
        e.finalise.partials + ((network * e.outputs + output) * e.finalise.chunks + tile) * norm::kPartialNumbers;
    const double first = static_cast<double>(sums[0]), second = static_cast<double>(sums[1]);
    if (e.kind == EpilogueKind::kMoments) {
      const double n = count, pivot = count > 0 ? static_cast<double>(sum_at(e, s, local, row_begin, column_begin)) : 0;
      to[0] = n;
      to[1] = count > 0 ? pivot + first / n : 0;
      to[2] = count > 0 ? second - first * first / n : 0;
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
