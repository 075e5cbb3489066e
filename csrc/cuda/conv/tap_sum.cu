#include "cuda/conv/tap_sum.h"

#include <type_traits>

#include "cuda/conv/sum_tile.h"

namespace oes::cuda::conv {
namespace {

constexpr int kMostThreads = 256, kMostWarps = kMostThreads / 32;

// What a block keeps in shared memory: the staged tile with the weights and offsets of its taps, then in their place
// the sums; last some numbers for sums over the block.
template <typename T>
struct SharedLayout {
  size_t weights, offsets, numbers, scratch, bytes;

  __host__ __device__ SharedLayout(const TapSumArgs<T>& a, int reader_side, int group, int side) {
    const size_t tile = static_cast<size_t>(a.chunk_channels) * reader_side * reader_side * a.plane;
    weights = align(tile * sizeof(T));
    offsets = align(weights + sizeof(T) * a.most_taps * group);
    numbers = align(offsets + sizeof(int) * a.most_taps);
    const size_t staged = align(numbers + sizeof(T) * kStagedNumbers * a.chunk_channels);
    const size_t sums = align(sizeof(T) * group * side * side * a.tile_rows * a.tile_columns);
    scratch = staged > sums ? staged : sums;
    bytes = scratch + sizeof(T) * tile_scratch(group, kMostWarps);
  }

  __host__ __device__ static size_t align(size_t bytes) {
    return (bytes + 15) / 16 * 16;
  }
};

template <typename T, int kGroup, int kCells, int kSide>
__global__ void __launch_bounds__(kMostThreads, sizeof(T) == 4 && kSide * kSide * kGroup * kCells < 64 ? 2 : 1)
    tap_sum_kernel(const TapSumArgs<T> a) {
  constexpr int kPhases = kSide * kSide;
  OES_SHARED(shared);
  const SharedLayout<T> layout(a, a.reader.unshuffle, kGroup, kSide);
  T* tile = reinterpret_cast<T*>(shared);
  T* weights = reinterpret_cast<T*>(shared + layout.weights);
  int* offsets = reinterpret_cast<int*>(shared + layout.offsets);
  T* numbers = reinterpret_cast<T*>(shared + layout.numbers);
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
    stage_chunk(a, tile, numbers, chunk, rows, columns, network);
    for (int i = threadIdx.x; i < (end - first) * kGroup; i += blockDim.x) {
      weights[i] = weights_from[static_cast<int64_t>(first) * kGroup + i];
    }
    for (int i = threadIdx.x; i < end - first; i += blockDim.x) {
      offsets[i] = a.offsets[first + i];
    }
    __syncthreads();
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      // Each part takes a run of taps, so that unrolled loads differ by constants.
      const int phase_begin = begins[chunk * kPhases + phase] - first,
                taps = begins[chunk * kPhases + phase + 1] - first - phase_begin;
      const int run_end = phase_begin + taps * (part + 1) / a.splits;
#pragma unroll 4
      for (int t = phase_begin + taps * part / a.splits; t < run_end; ++t) {
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
  write_tile(
      a.epilogue, sum_tile(a.epilogue, all, kSide, a, rows, columns), kGroup, first_output, tile_number, network,
      scratch);
  norm::finalise(a.epilogue.finalise, network, gridDim.x * gridDim.y, reinterpret_cast<unsigned*>(scratch));
}

template <typename T>
using Kernel = void (*)(TapSumArgs<T>);

template <typename T>
Kernel<T> kernel_of(int group, int cells, int side) {
  constexpr bool kFloat = std::is_same_v<T, float>; // in double precision eight outputs would not fit the registers
  switch (side * 1024 + group * 16 + cells) {
    case 1 * 1024 + 1 * 16 + 1:
      return tap_sum_kernel<T, 1, 1, 1>;
    case 1 * 1024 + 1 * 16 + 4:
      return tap_sum_kernel<T, 1, 4, 1>;
    case 1 * 1024 + 4 * 16 + 1:
      return tap_sum_kernel<T, 4, 1, 1>;
    case 1 * 1024 + 4 * 16 + 4:
      return tap_sum_kernel<T, 4, 4, 1>;
    case 1 * 1024 + 8 * 16 + 4:
      if constexpr (kFloat) {
        return tap_sum_kernel<T, 8, 4, 1>;
      }
      return nullptr;
    case 1 * 1024 + 16 * 16 + 4:
      if constexpr (kFloat) {
        return tap_sum_kernel<T, 16, 4, 1>;
      }
      return nullptr;
    case 1 * 1024 + 20 * 16 + 4:
      if constexpr (kFloat) {
        return tap_sum_kernel<T, 20, 4, 1>;
      }
      return nullptr;
    case 2 * 1024 + 1 * 16 + 1:
      return tap_sum_kernel<T, 1, 1, 2>;
    case 2 * 1024 + 1 * 16 + 4:
      return tap_sum_kernel<T, 1, 4, 2>;
    case 2 * 1024 + 4 * 16 + 1:
      return tap_sum_kernel<T, 4, 1, 2>;
    case 2 * 1024 + 4 * 16 + 2:
      if constexpr (kFloat) {
        return tap_sum_kernel<T, 4, 2, 2>;
      }
      return nullptr;
    case 2 * 1024 + 8 * 16 + 2:
      if constexpr (kFloat) {
        return tap_sum_kernel<T, 8, 2, 2>;
      }
      return nullptr;
    default:
      return nullptr;
  }
}

} // namespace

template <typename T>
size_t tap_sum_shared_bytes(const TapSumArgs<T>& a, const TapSumShape& s) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.products != Products::kFloat32) {
      return tap_sum_mma_shared_bytes(a, s);
    }
  }
  return SharedLayout<T>(a, a.reader.unshuffle, s.group, s.side).bytes;
}

template <typename T>
bool has_tap_sum(const TapSumShape& s) {
  if (s.products != Products::kFloat32) {
    return std::is_same_v<T, float> && has_tap_sum_mma(s);
  }
  return kernel_of<T>(s.group, s.cells, s.side) != nullptr;
}

template <typename T>
void tap_sum(const TapSumArgs<T>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.products != Products::kFloat32) {
      return tap_sum_mma(a, s, groups, networks, stream);
    }
  }
  const Launch where{dim3(a.row_tiles * a.column_tiles, groups, networks), dim3(s.threads), s.shared_bytes, stream};
  launch(kernel_of<T>(s.group, s.cells, s.side), "tap_sum", where, a);
}

template size_t tap_sum_shared_bytes(const TapSumArgs<float>&, const TapSumShape&);
template size_t tap_sum_shared_bytes(const TapSumArgs<double>&, const TapSumShape&);
template bool has_tap_sum<float>(const TapSumShape&);
template bool has_tap_sum<double>(const TapSumShape&);
template void tap_sum(const TapSumArgs<float>&, const TapSumShape&, int, int, cudaStream_t);
template void tap_sum(const TapSumArgs<double>&, const TapSumShape&, int, int, cudaStream_t);

} // namespace oes::cuda::conv
