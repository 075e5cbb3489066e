#include "cuda/conv/weight_grad.h"

#include <type_traits>

namespace oes::cuda::conv {
namespace {

constexpr int kMostThreads = 256;

template <typename T>
struct SharedLayout {
  size_t fixed, offsets, numbers, sums, bytes;

  __host__ __device__ SharedLayout(const WeightGradArgs<T>& a, int side, int group, int cells) {
    const size_t moving = static_cast<size_t>(a.chunk_channels) * side * side * a.plane;
    fixed = aligned(moving * sizeof(T));
    offsets = aligned(fixed + sizeof(T) * a.range_channels * 32 * cells);
    numbers = aligned(offsets + sizeof(int) * a.most_taps);
    const int channels = a.chunk_channels > a.range_channels ? a.chunk_channels : a.range_channels;
    sums = aligned(numbers + sizeof(T) * kStagedNumbers * channels);
    bytes = sums + sizeof(T) * a.most_taps * group;
  }
};

// Half of the values of a lane are given to the lane that is kHalf away, for half of its values.
template <int kHalf, typename T>
__device__ __forceinline__ void exchange_halves(T (&values)[32]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T kept = upper ? values[i + kHalf] : values[i], given = upper ? values[i] : values[i + kHalf];
    values[i] = kept + __shfl_xor_sync(0xffffffffu, given, kHalf);
  }
}

// Sums 32 values over the 32 lanes, with 31 exchanges in place of 160; lane l has that of values[l].
template <typename T>
__device__ __forceinline__ T sums_over_lanes(T (&values)[32]) {
  exchange_halves<16>(values);
  exchange_halves<8>(values);
  exchange_halves<4>(values);
  exchange_halves<2>(values);
  exchange_halves<1>(values);
  return values[0];
}

// Every warp takes all cells of a tile, its lanes side by side, and some of the taps.
template <typename T, int kGroup, int kCells>
__global__ void __launch_bounds__(kMostThreads, sizeof(T) == 4 ? 2 : 1) weight_grad_kernel(const WeightGradArgs<T> a) {
  constexpr int kPitch = weight_grad_pitch(kCells);
  constexpr int kBatch = 32 / kGroup; // taps whose sums are taken over the lanes together
  OES_SHARED(shared);
  const SharedLayout<T> layout(a, a.moving.unshuffle, kGroup, kCells);
  T* moving = reinterpret_cast<T*>(shared);
  T* fixed = reinterpret_cast<T*>(shared + layout.fixed);
  int* offsets = reinterpret_cast<int*>(shared + layout.offsets);
  T* numbers = reinterpret_cast<T*>(shared + layout.numbers);
  T* sums = reinterpret_cast<T*>(shared + layout.sums);

  const int slot = blockIdx.x, work = blockIdx.y, range = work / a.chunks, chunk = work % a.chunks;
  const int64_t network = blockIdx.z;
  const int first = a.begins[work], taps = a.begins[work + 1] - first;
  if (taps == 0) {
    return;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int i = threadIdx.x; i < taps; i += blockDim.x) {
    offsets[i] = a.offsets[first + i];
  }
  for (int i = threadIdx.x; i < taps * kGroup; i += blockDim.x) {
    sums[i] = T(0);
  }
  // A lane's cells lie one below the other.
  const int pitch = kPitch == 0 ? a.pitch : kPitch;
  const int lane_row = lane / a.tile_columns, lane_column = lane - lane_row * a.tile_columns;
  const T* moving_cell = moving + kCells * lane_row * pitch + lane_column;
  const T* fixed_cell = fixed + kCells * lane_row * a.tile_columns + lane_column;
  const int begin = static_cast<int>(static_cast<int64_t>(slot) * a.tiles / a.slots),
            end = static_cast<int>(static_cast<int64_t>(slot + 1) * a.tiles / a.slots);
  for (int tile = begin; tile < end; ++tile) {
    const int row = tile / a.column_tiles * a.tile_rows, column = tile % a.column_tiles * a.tile_columns;
    __syncthreads();
    const int first_channel = chunk * a.chunk_channels;
    stage(
        a.moving,
        StagedTile<T>{
            moving, numbers, first_channel, min(a.chunk_channels, a.moving.channels - first_channel), row, column,
            a.staged_rows, a.staged_columns, a.pitch, a.plane},
        network);
    __syncthreads(); // the numbers have been read
    stage(
        a.fixed,
        StagedTile<T>{
            fixed, numbers, range * a.range_channels, a.range_channels, row, column, a.tile_rows, a.tile_columns,
            a.tile_columns, a.tile_rows * a.tile_columns},
        network);
    __syncthreads();
    // A warp takes a run of items, so that it loads the cells of a group once.
    const int item_begin = a.item_begins[work], items = a.item_begins[work + 1] - item_begin;
    const int item_end = item_begin + items * (warp + 1) / warps;
    for (int i = item_begin + items * warp / warps; i < item_end;) {
      const int channel = a.items[i].channel;
      T f[kGroup][kCells];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
#pragma unroll
        for (int k = 0; k < kCells; ++k) {
          f[g][k] = fixed_cell[(channel + g) * 32 * kCells + k * a.tile_columns];
        }
      }
      for (; i < item_end && a.items[i].channel == channel; ++i) { // the same for all lanes
        const WeightGradItem item = a.items[i];
        T values[32];
#pragma unroll
        for (int e = 0; e < kBatch; ++e) {
          const T* pixels =
              moving_cell + offsets[item.first + (e < item.count ? e : 0)]; // those behind the last are not used
#pragma unroll
          for (int g = 0; g < kGroup; ++g) {
            values[e * kGroup + g] = T(0);
          }
#pragma unroll
          for (int k = 0; k < kCells; ++k) {
            const T x = pixels[k * pitch];
#pragma unroll
            for (int g = 0; g < kGroup; ++g) {
              values[e * kGroup + g] += f[g][k] * x;
            }
          }
        }
        const T sum = sums_over_lanes(values);
        if (lane < item.count * kGroup) {
          sums[item.first * kGroup + lane] += sum; // of this lane alone
        }
      }
    }
  }
  __syncthreads();
  T* to = a.partials + (network * a.slots + slot) * a.slot_stride + static_cast<int64_t>(first) * kGroup;
  for (int i = threadIdx.x; i < taps * kGroup; i += blockDim.x) {
    to[i] = sums[i];
  }
}

template <typename T>
using Kernel = void (*)(WeightGradArgs<T>);

template <typename T>
Kernel<T> kernel_of(int group, int cells) {
  switch (group * 16 + cells) {
    case 1 * 16 + 2:
      return weight_grad_kernel<T, 1, 2>;
    case 1 * 16 + 8:
      return weight_grad_kernel<T, 1, 8>;
    case 4 * 16 + 2:
      return weight_grad_kernel<T, 4, 2>;
    case 4 * 16 + 8:
      return weight_grad_kernel<T, 4, 8>;
    default:
      return nullptr;
  }
}

} // namespace

template <typename T>
size_t weight_grad_shared_bytes(const WeightGradArgs<T>& a, const WeightGradShape& s) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.products != Products::kFloat32) {
      return weight_grad_mma_shared_bytes(a, s);
    }
  }
  return SharedLayout<T>(a, a.moving.unshuffle, s.group, s.cells).bytes;
}

template <typename T>
void weight_grad(const WeightGradArgs<T>& a, const WeightGradShape& s, int networks, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.products != Products::kFloat32) {
      return weight_grad_mma(a, s, networks, stream);
    }
  }
  const Launch where{dim3(a.slots, a.ranges * a.chunks, networks), dim3(s.threads), s.shared_bytes, stream};
  launch(kernel_of<T>(s.group, s.cells), "weight_grad", where, a);
}

template size_t weight_grad_shared_bytes(const WeightGradArgs<float>&, const WeightGradShape&);
template size_t weight_grad_shared_bytes(const WeightGradArgs<double>&, const WeightGradShape&);
template void weight_grad(const WeightGradArgs<float>&, const WeightGradShape&, int, cudaStream_t);
template void weight_grad(const WeightGradArgs<double>&, const WeightGradShape&, int, cudaStream_t);

} // namespace oes::cuda::conv
