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

// All threads of the block, outputs first_output .. + kOutputs, of `tile` out of the finalise's chunks.
template <int kOutputs, typename T>
__device__ __forceinline__ void write_tile(
    const Epilogue<T>& e, const SumTile<T>& s, int first_output, int tile, int64_t network, T* scratch) {
  const int row_begin = max(s.row_begin, e.top) - e.top, row_end = min(s.row_end, e.top + e.rows) - e.top;
  const int column_begin = max(s.column_begin, e.left) - e.left,
            column_end = min(s.column_end, e.left + e.columns) - e.left;
  const int width = max(column_end - column_begin, 0), count = max(row_end - row_begin, 0) * width;
  const int64_t pixels = static_cast<int64_t>(e.rows) * e.columns;
  T sums[2 * kOutputs], pivots[kOutputs];
#pragma unroll
  for (int g = 0; g < kOutputs; ++g) {
    sums[2 * g] = sums[2 * g + 1] = T(0);
    pivots[g] = e.kind == EpilogueKind::kMoments && count > 0 ? sum_at(e, s, g, row_begin, column_begin) : T(0);
  }
  for (int at = threadIdx.x; at < count; at += blockDim.x) {
    const int row = at / width, i = row_begin + row, j = column_begin + at - row * width;
#pragma unroll
    for (int g = 0; g < kOutputs; ++g) {
      const int output = first_output + g;
      if (output >= e.outputs) {
        break;
      }
      const int64_t channel = network * e.outputs + output;
      const int64_t pixel = channel * pixels + static_cast<int64_t>(i) * e.columns + j;
      T value = sum_at(e, s, g, i, j);
      if (e.kind == EpilogueKind::kMoments) {
        const T d = value - pivots[g];
        sums[2 * g] += d;
        sums[2 * g + 1] += d * d;
      } else if (e.kind == EpilogueKind::kActivationGrad) {
        const norm::PrologueNumbers<T> numbers(e.prologue, channel);
        const T y = e.y[pixel];
        value *= norm::activate_grad(e.prologue.act, e.prologue.slope, numbers.normalised(y));
        sums[2 * g] += value;
        sums[2 * g + 1] += value * (y - numbers.mean);
      } else if (e.kind == EpilogueKind::kSecondNormSums) {
        const norm::PrologueNumbers<T> numbers(e.prologue, channel);
        sums[2 * g] += value;
        sums[2 * g + 1] += value * (numbers.activated(e.prologue, e.y[pixel]) - numbers.mean2);
      } else if (e.kind == EpilogueKind::kImage) {
        const norm::Finalise<T>& f = e.finalise;
        const T x = value + norm::shift_of(f.shift, f.weights + network * f.weights_stride, network, output);
        const T seen = norm::output_activate(e.act, e.slope, x);
        e.image[pixel] = seen;
        value = x;
        if (e.target != nullptr) {
          const T error = seen - e.target[pixel];
          sums[2 * g] += error * error;
        }
      }
      e.out[pixel] = value;
    }
  }
  if (e.finalise.kind == norm::FinaliseKind::kNone) {
    return;
  }
  norm::block_sums(sums, scratch);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int g = 0; g < kOutputs; ++g) {
      if (first_output + g < e.outputs) {
        double* to = e.finalise.partials +
            ((network * e.outputs + first_output + g) * e.finalise.chunks + tile) * norm::kPartialNumbers;
        const double first = static_cast<double>(sums[2 * g]), second = static_cast<double>(sums[2 * g + 1]);
        if (e.kind == EpilogueKind::kMoments) {
          const double n = count;
          to[0] = n;
          to[1] = count > 0 ? static_cast<double>(pivots[g]) + first / n : 0;
          to[2] = count > 0 ? second - first * first / n : 0;
        } else {
          to[0] = first;
          to[1] = second;
        }
      }
    }
  }
  norm::finalise(e.finalise, network, gridDim.x * gridDim.y, reinterpret_cast<unsigned*>(scratch));
}

} // namespace oes::cuda::conv
