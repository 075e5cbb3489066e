// Sums over taps on tensor cores: cells times outputs, summed over taps in eights.
#include "cuda/conv/sum_tile.h"
#include "cuda/core/mma.h"

namespace oes::cuda::conv {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kSlice = 8; // outputs written at a time: columns of a product

struct SharedLayout {
  size_t weights, offsets, numbers, scratch, bytes;

  __host__ __device__ SharedLayout(const TapSumArgs<float>& a, int reader_side, int group, int side) {
    const size_t tile = static_cast<size_t>(a.chunk_channels) * reader_side * reader_side * a.plane;
    weights = aligned(tile * sizeof(float));
    offsets = aligned(weights + sizeof(float) * a.most_taps * weight_pitch(group));
    numbers = aligned(offsets + sizeof(int) * a.most_taps);
    const size_t staged = aligned(numbers + sizeof(float) * kStagedNumbers * a.chunk_channels);
    const size_t sums = aligned(sizeof(float) * kSlice * side * side * a.tile_rows * a.tile_columns);
    scratch = staged > sums ? staged : sums;
    bytes = scratch + sizeof(float) * tile_scratch(kSlice, kWarps);
  }

  // So that four taps of eight outputs lie in 32 banks.
  __host__ __device__ static constexpr int weight_pitch(int group) {
    return group + 8;
  }
};

// kRows products of 16 cells one below the other a warp, kColumns of 8 outputs side by side.
template <int kRows, int kColumns, int kSide, bool kThree>
__global__ void __launch_bounds__(kThreads, kRows * kColumns * kSide * kSide > 8 ? 1 : 2)
    tap_sum_mma_kernel(const TapSumArgs<float> a) {
  constexpr int kPhases = kSide * kSide, kGroup = 8 * kColumns, kPitch = SharedLayout::weight_pitch(kGroup);
  OES_SHARED(shared);
  const SharedLayout layout(a, a.reader.unshuffle, kGroup, kSide);
  float* tile = reinterpret_cast<float*>(shared);
  float* weights = reinterpret_cast<float*>(shared + layout.weights);
  int* offsets = reinterpret_cast<int*>(shared + layout.offsets);
  float* numbers = reinterpret_cast<float*>(shared + layout.numbers);
  float* scratch = reinterpret_cast<float*>(shared + layout.scratch);

  const int tile_number = blockIdx.x, group = blockIdx.y;
  const int64_t network = blockIdx.z;
  const CellRange rows(tile_number / a.column_tiles, a.row_tiles, a.first_row, a.row_cells);
  const CellRange columns(tile_number % a.column_tiles, a.column_tiles, a.first_column, a.column_cells);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;

  int base[kRows][2]; // of the lane's two cells in each product
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int cell = (warp * kRows + m) * 16 + half * 8 + g, row = cell / a.tile_columns;
      base[m][half] = row * a.pitch + cell - row * a.tile_columns;
    }
  }
  float sums[kPhases][kRows][kColumns][4] = {};
  const int* begins = a.begins + group * a.chunks * kPhases;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int first = begins[chunk * kPhases], end = begins[(chunk + 1) * kPhases];
    if (first == end) {
      continue; // the same for all threads
    }
    __syncthreads();
    start_taps<kGroup>(a, weights, kPitch, offsets, network, first, end - first);
    stage_chunk(a, tile, numbers, chunk, rows, columns, network);
    copies_arrive();
    __syncthreads();
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      const int phase_end = begins[chunk * kPhases + phase + 1] - first;
      for (int tap = begins[chunk * kPhases + phase] - first; tap < phase_end; tap += kMmaTaps) {
        const float* one = tile + offsets[tap + t];
        const float* other = tile + offsets[tap + t + 4];
        Tf32Split<kThree> w[kColumns][2];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            w[n][half] = Tf32Split<kThree>(weights[(tap + half * 4 + t) * kPitch + n * 8 + g]);
          }
        }
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          const Tf32Split<kThree> x[4] = {
              Tf32Split<kThree>(one[base[m][0]]), Tf32Split<kThree>(one[base[m][1]]),
              Tf32Split<kThree>(other[base[m][0]]), Tf32Split<kThree>(other[base[m][1]])};
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            mma_split_16x8x8(sums[phase][m][n], x, w[n]);
          }
        }
      }
    }
  }

  float* all = tile;
  const int height = kSide * a.tile_rows, width = kSide * a.tile_columns;
// Rolled, and what is written chosen within: the code is read as it runs.
#pragma unroll 1
  for (int slice = 0; slice < kColumns; ++slice) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (n != slice) {
        continue;
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int cell = (warp * kRows + m) * 16 + half * 8 + g, row = cell / a.tile_columns,
                    column = cell - row * a.tile_columns;
#pragma unroll
          for (int phase = 0; phase < kPhases; ++phase) {
            float* to = all + (2 * t * height + kSide * row + phase / kSide) * width + kSide * column + phase % kSide;
            to[0] = sums[phase][m][n][2 * half];
            to[height * width] = sums[phase][m][n][2 * half + 1];
          }
        }
      }
    }
    __syncthreads();
    write_tile(
        a.epilogue, sum_tile(a.epilogue, all, kSide, a, rows, columns), kSlice, group * kGroup + slice * kSlice,
        tile_number, network, scratch);
  }
  const norm::Channels channels(group, gridDim.y, kGroup, a.epilogue.outputs);
  norm::finalise(a.epilogue.finalise, network, channels, gridDim.x, reinterpret_cast<unsigned*>(scratch));
}

using Kernel = void (*)(TapSumArgs<float>);

template <int kRows, int kColumns, int kSide>
Kernel kernel_of(Products products) {
  return products == Products::kTf32x3 ? tap_sum_mma_kernel<kRows, kColumns, kSide, true>
                                       : tap_sum_mma_kernel<kRows, kColumns, kSide, false>;
}

Kernel kernel_of(const TapSumShape& s) {
  if (s.side == 1 && s.cells == 4) {
    return s.group == 32 ? kernel_of<4, 4, 1>(s.products) : s.group == 16 ? kernel_of<4, 2, 1>(s.products) : nullptr;
  }
  if (s.side == 1 && s.cells == 1) {
    return s.group == 32 ? kernel_of<1, 4, 1>(s.products) : nullptr;
  }
  if (s.side == 2 && s.cells == 2) {
    return s.group == 32 ? kernel_of<2, 4, 2>(s.products) : s.group == 16 ? kernel_of<2, 2, 2>(s.products) : nullptr;
  }
  if (s.side == 2 && s.cells == 1) {
    return s.group == 32 ? kernel_of<1, 4, 2>(s.products) : nullptr;
  }
  return nullptr;
}

} // namespace

size_t tap_sum_mma_shared_bytes(const TapSumArgs<float>& a, const TapSumShape& s) {
  return SharedLayout(a, a.reader.unshuffle, s.group, s.side).bytes;
}

bool has_tap_sum_mma(const TapSumShape& s) {
  return kernel_of(s) != nullptr;
}

void tap_sum_mma(const TapSumArgs<float>& a, const TapSumShape& s, int groups, int networks, cudaStream_t stream) {
  const Launch where{dim3(a.row_tiles * a.column_tiles, groups, networks), dim3(s.threads), s.shared_bytes, stream};
  launch(kernel_of(s), "tap_sum_mma", where, a);
}

} // namespace oes::cuda::conv
