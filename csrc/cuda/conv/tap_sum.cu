#include "cuda/conv/tap_sum.h"

namespace oes::cuda::conv {
namespace {

constexpr int kMostThreads = 256, kMostWarps = kMostThreads / 32;

// What a block keeps in shared memory: the staged tile with the weights and offsets of its taps, then in their place
// the sums; last some numbers for sums over the block.
template <typename T>
struct SharedLayout {
  size_t weights, offsets, scratch, bytes;

  __host__ __device__ SharedLayout(const TapSumArgs<T>& a, int reader_side, int group, int side) {
    const size_t tile = static_cast<size_t>(a.chunk_channels) * reader_side * reader_side * a.plane;
    weights = align(tile * sizeof(T));
    offsets = align(weights + sizeof(T) * a.most_taps * group);
    const size_t staged = align(offsets + sizeof(int) * a.most_taps);
    const size_t sums = align(sizeof(T) * group * side * side * a.tile_rows * a.tile_columns);
    scratch = staged > sums ? staged : sums;
    bytes = scratch + sizeof(T) * 2 * group * kMostWarps;
  }

  __host__ __device__ static size_t align(size_t bytes) {
    return (bytes + 15) / 16 * 16;
  }
};

// Range of cells of a tile: tiles are as equal as can be.
struct CellRange {
  int begin, end;

  __device__ __forceinline__ CellRange(int tile, int tiles, int first, int cells)
      : begin(first + static_cast<int>(static_cast<int64_t>(tile) * cells / tiles)),
        end(first + static_cast<int>(static_cast<int64_t>(tile + 1) * cells / tiles)) {}
};

template <typename T, int kGroup, int kCells, int kSide>
__global__ void __launch_bounds__(kMostThreads) tap_sum_kernel(const TapSumArgs<T> a) {
  constexpr int kPhases = kSide * kSide;
  OES_SHARED(shared);
  const SharedLayout<T> layout(a, a.reader.unshuffle, kGroup, kSide);
  T* tile = reinterpret_cast<T*>(shared);
  T* weights = reinterpret_cast<T*>(shared + layout.weights);
  int* offsets = reinterpret_cast<int*>(shared + layout.offsets);
  T* scratch = reinterpret_cast<T*>(shared + layout.scratch);

  const int tile_number = blockIdx.x, group = blockIdx.y, first_output = group * kGroup;
  const int64_t network = blockIdx.z;
  const CellRange rows(tile_number / a.column_tiles, a.row_tiles, a.first_row, a.row_cells);
  const CellRange columns(tile_number % a.column_tiles, a.column_tiles, a.first_column, a.column_cells);

  // Threads of a part stand side by side on the cells, kCells times.
  const int part_threads = blockDim.x / a.splits, part = threadIdx.x / part_threads,
            place = threadIdx.x - part * part_threads;
  int base[kCells];
#pragma unroll
  for (int k = 0; k < kCells; ++k) {
    const int cell = place + k * part_threads, row = cell / a.tile_columns;
    base[k] = row * a.pitch + cell - row * a.tile_columns;
  }
  T sums[kPhases][kGroup][kCells] = {};
  const T* weights_from = a.weights + network * a.weights_stride;
  const int* begins = a.begins + group * a.chunks * kPhases;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int first = begins[chunk * kPhases], end = begins[(chunk + 1) * kPhases];
    if (first == end) {
      continue; // the same for all threads
    }
    __syncthreads();
    const int first_channel = chunk * a.chunk_channels;
    stage(
        a.reader,
        StagedTile<T>{
            tile, first_channel, min(a.chunk_channels, a.reader.channels - first_channel), rows.begin, columns.begin,
            a.staged_rows, a.staged_columns, a.pitch, a.plane},
        network);
    for (int i = threadIdx.x; i < (end - first) * kGroup; i += blockDim.x) {
      weights[i] = weights_from[static_cast<int64_t>(first) * kGroup + i];
    }
    for (int i = threadIdx.x; i < end - first; i += blockDim.x) {
      offsets[i] = a.offsets[first + i];
    }
    __syncthreads();
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      const int phase_end = begins[chunk * kPhases + phase + 1] - first;
#pragma unroll 4
      for (int t = begins[chunk * kPhases + phase] - first + part; t < phase_end; t += a.splits) {
        const T* pixels = tile + offsets[t];
        T w[kGroup];
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
          w[g] = weights[t * kGroup + g];
        }
#pragma unroll
        for (int k = 0; k < kCells; ++k) {
          const T x = pixels[base[k]];
#pragma unroll
          for (int g = 0; g < kGroup; ++g) {
            sums[phase][g][k] += w[g] * x;
          }
        }
      }
    }
  }

  // The sums of all parts, one part after the other.
  T* all = tile;
  const int height = kSide * a.tile_rows, width = kSide * a.tile_columns;
  for (int turn = 0; turn < a.splits; ++turn) {
    __syncthreads();
    if (part == turn) {
#pragma unroll
      for (int k = 0; k < kCells; ++k) {
        const int cell = place + k * part_threads, row = cell / a.tile_columns, column = cell - row * a.tile_columns;
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
#pragma unroll
          for (int phase = 0; phase < kPhases; ++phase) {
            T& to = all[(g * height + kSide * row + phase / kSide) * width + kSide * column + phase % kSide];
            to = turn == 0 ? sums[phase][g][k] : to + sums[phase][g][k];
          }
        }
      }
    }
  }
  __syncthreads();
  const Epilogue<T>& e = a.epilogue;
  const SumTile<T> of_tile{
      all,
      height,
      width,
      kSide * rows.begin,
      kSide * columns.begin,
      max(kSide * rows.begin - e.box_first, 0),
      min(kSide * rows.end - e.box_first, e.top + e.rows + e.bottom),
      max(kSide * columns.begin - e.box_first, 0),
      min(kSide * columns.end - e.box_first, e.left + e.columns + e.right)};
  write_tile<kGroup>(e, of_tile, first_output, tile_number, network, scratch);
}

template <typename T>
using Kernel = void (*)(TapSumArgs<T>);

template <typename T>
Kernel<T> kernel_of(int group, int cells, int side) {
  if (side == 1) {
    switch (group * 16 + cells) {
      case 1 * 16 + 4:
        return tap_sum_kernel<T, 1, 4, 1>;
      case 4 * 16 + 4:
        return tap_sum_kernel<T, 4, 4, 1>;
      case 8 * 16 + 4:
        return tap_sum_kernel<T, 8, 4, 1>;
      case 1 * 16 + 1:
        return tap_sum_kernel<T, 1, 1, 1>;
      case 4 * 16 + 1:
        return tap_sum_kernel<T, 4, 1, 1>;
      default:
        return nullptr;
    }
  }
  switch (group * 16 + cells) {
    case 1 * 16 + 1:
      return tap_sum_kernel<T, 1, 1, 2>;
    case 1 * 16 + 4:
      return tap_sum_kernel<T, 1, 4, 2>;
    case 4 * 16 + 1:
      return tap_sum_kernel<T, 4, 1, 2>;
    case 4 * 16 + 2:
      return tap_sum_kernel<T, 4, 2, 2>;
    case 8 * 16 + 2:
      return tap_sum_kernel<T, 8, 2, 2>;
    default:
      return nullptr;
  }
}

} // namespace

template <typename T>
size_t tap_sum_shared_bytes(const TapSumArgs<T>& a, const TapSumShape& s) {
  return SharedLayout<T>(a, a.reader.unshuffle, s.group, s.side).bytes;
}

template <typename T>
bool has_tap_sum(int group, int cells, int side) {
  return kernel_of<T>(group, cells, side) != nullptr;
}

template <typename T>
void tap_sum(const TapSumArgs<T>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream) {
  const Launch where{dim3(a.row_tiles * a.column_tiles, groups, networks), dim3(s.threads), s.shared_bytes, stream};
  launch(kernel_of<T>(s.group, s.cells, s.side), "tap_sum", where, a);
}

template size_t tap_sum_shared_bytes(const TapSumArgs<float>&, const TapSumShape&);
template size_t tap_sum_shared_bytes(const TapSumArgs<double>&, const TapSumShape&);
template bool has_tap_sum<float>(int, int, int);
template bool has_tap_sum<double>(int, int, int);
template void tap_sum(const TapSumArgs<float>&, const TapSumShape&, int, int, cudaStream_t);
template void tap_sum(const TapSumArgs<double>&, const TapSumShape&, int, int, cudaStream_t);

} // namespace oes::cuda::conv
