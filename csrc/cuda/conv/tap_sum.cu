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
    weights = aligned(tile * sizeof(T));
    offsets = aligned(weights + sizeof(T) * a.most_taps * group);
    numbers = aligned(offsets + sizeof(int) * a.most_taps);
    const size_t staged = aligned(numbers + sizeof(T) * kStagedNumbers * a.chunk_channels);
    const size_t sums = aligned(sizeof(T) * group * side * side * a.tile_rows * a.tile_columns);
    scratch = staged > sums ? staged : sums;
    bytes = scratch + sizeof(T) * tile_scratch(group, kMostWarps);
  }
};

template <typename T, int kGroup, int kCells, int kSide>
__global__ void __launch_bounds__(kMostThreads, sizeof(T) == 4 && kSide * kSide * kGroup * kCells < 64 ? 2 : 1)
    tap_sum_kernel(const TapSumArgs<T> a) {
  constexpr int kPhases = kSide * kSide, kPitch = tap_sum_pitch(kGroup, kCells);
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

  // Threads of a part stand side by side, each on kCells cells one below the other.
  const int part_threads = blockDim.x / a.splits, part = threadIdx.x / part_threads,
            place = threadIdx.x - part * part_threads;
  const int place_row = place / a.tile_columns, first_row = kCells * place_row,
            column = place - place_row * a.tile_columns;
  const int pitch = kPitch == 0 ? a.pitch : kPitch;
  const T* first_cell = tile + first_row * pitch + column;
  T sums[kPhases][kGroup][kCells] = {};
  const int* begins = a.begins + group * a.chunks * kPhases;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int first = begins[chunk * kPhases], end = begins[(chunk + 1) * kPhases];
    if (first == end) {
      continue; // the same for all threads
    }
    __syncthreads();
    start_taps<kGroup>(a, weights, kGroup, offsets, network, first, end - first);
    stage_chunk(a, tile, numbers, chunk, rows, columns, network);
    copies_arrive();
    __syncthreads();
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      // Each part takes a run of taps, so that unrolled loads differ by constants.
      const int phase_begin = begins[chunk * kPhases + phase] - first,
                taps = begins[chunk * kPhases + phase + 1] - first - phase_begin;
      const int run_end = phase_begin + taps * (part + 1) / a.splits;
#pragma unroll 4
      for (int t = phase_begin + taps * part / a.splits; t < run_end; ++t) {
        const T* pixels = first_cell + offsets[t];
        T w[kGroup];
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
          w[g] = weights[t * kGroup + g];
        }
#pragma unroll
        for (int k = 0; k < kCells; ++k) {
          const T x = pixels[k * pitch];
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
        const int row = first_row + k;
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
  const norm::Channels channels(group, gridDim.y, kGroup, a.epilogue.outputs);
  norm::finalise(a.epilogue.finalise, network, channels, gridDim.x, reinterpret_cast<unsigned*>(scratch));
}

template <typename T>
using Kernel = void (*)(TapSumArgs<T>);

template <typename T>
struct Row {
  int group, cells, side;
  Kernel<T> kernel;
};

template <typename T, int kGroup, int kCells, int kSide>
constexpr Row<T> row() {
  return {kGroup, kCells, kSide, tap_sum_kernel<T, kGroup, kCells, kSide>};
}

template <typename T>
constexpr Row<T> kKernels[] = {row<T, 1, 1, 1>(), row<T, 1, 4, 1>(), row<T, 4, 1, 1>(), row<T, 4, 4, 1>(),
                               row<T, 1, 1, 2>(), row<T, 1, 4, 2>(), row<T, 4, 1, 2>()};

// In double precision more outputs would not fit the registers.
constexpr Row<float> kLargeKernels[] = {
    row<float, 8, 4, 1>(), row<float, 16, 4, 1>(), row<float, 20, 4, 1>(), row<float, 4, 2, 2>(),
    row<float, 8, 2, 2>()};

template <typename T>
Kernel<T> kernel_of(const TapSumShape& s) {
  const auto fits = [&](const Row<T>& r) { return r.group == s.group && r.cells == s.cells && r.side == s.side; };
  for (const Row<T>& r : kKernels<T>) {
    if (fits(r)) {
      return r.kernel;
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    for (const Row<T>& r : kLargeKernels) {
      if (fits(r)) {
        return r.kernel;
      }
    }
  }
  return nullptr;
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
  return kernel_of<T>(s) != nullptr;
}

template <typename T>
void tap_sum(const TapSumArgs<T>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.products != Products::kFloat32) {
      return tap_sum_mma(a, s, groups, networks, stream);
    }
  }
  const Launch where{dim3(a.row_tiles * a.column_tiles, groups, networks), dim3(s.threads), s.shared_bytes, stream};
  launch(kernel_of<T>(s), "tap_sum", where, a);
}

template size_t tap_sum_shared_bytes(const TapSumArgs<float>&, const TapSumShape&);
template size_t tap_sum_shared_bytes(const TapSumArgs<double>&, const TapSumShape&);
template bool has_tap_sum<float>(const TapSumShape&);
template bool has_tap_sum<double>(const TapSumShape&);
template void tap_sum(const TapSumArgs<float>&, const TapSumShape&, int, int, cudaStream_t);
template void tap_sum(const TapSumArgs<double>&, const TapSumShape&, int, int, cudaStream_t);

} // namespace oes::cuda::conv
