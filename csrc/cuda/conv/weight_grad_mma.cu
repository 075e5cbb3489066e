// The gradient of a convolution's weights on tensor cores: fixed channels times taps, summed over cells in eights.
#include "cuda/conv/weight_grad.h"
#include "cuda/core/mma.h"

namespace oes::cuda::conv {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kColumns = 4; // products of eight taps side by side, of a warp

struct SharedLayout {
  size_t fixed, offsets, numbers, sums, bytes;
  int fixed_pitch; // so that eight channels of four cells lie in 32 banks

  __host__ __device__ SharedLayout(const WeightGradArgs<float>& a, int side, int group) {
    const size_t moving = static_cast<size_t>(a.chunk_channels) * side * side * a.plane;
    fixed_pitch = a.tile_rows * a.tile_columns + 4;
    fixed = aligned(moving * sizeof(float));
    offsets = aligned(fixed + sizeof(float) * a.range_channels * fixed_pitch);
    numbers = aligned(offsets + sizeof(int) * a.most_taps);
    const int channels = a.chunk_channels > a.range_channels ? a.chunk_channels : a.range_channels;
    sums = aligned(numbers + sizeof(float) * kStagedNumbers * channels);
    bytes = sums + sizeof(float) * a.most_taps * group;
  }
};

// kRows products of 16 fixed channels, one below the other.
template <int kRows, bool kThree>
__global__ void __launch_bounds__(kThreads, 2) weight_grad_mma_kernel(const WeightGradArgs<float> a) {
  constexpr int kGroup = 16 * kRows;
  OES_SHARED(shared);
  const SharedLayout layout(a, a.moving.unshuffle, kGroup);
  float* moving = reinterpret_cast<float*>(shared);
  float* fixed = reinterpret_cast<float*>(shared + layout.fixed);
  int* offsets = reinterpret_cast<int*>(shared + layout.offsets);
  float* numbers = reinterpret_cast<float*>(shared + layout.numbers);
  float* sums = reinterpret_cast<float*>(shared + layout.sums); // [taps, group]

  const int slot = blockIdx.x, work = blockIdx.y, range = work / a.chunks, chunk = work % a.chunks;
  const int64_t network = blockIdx.z;
  const int first = a.begins[work], taps = a.begins[work + 1] - first;
  if (taps == 0) {
    return;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x; i < taps; i += kThreads) {
    offsets[i] = a.offsets[first + i];
  }
  for (int i = threadIdx.x; i < taps * kGroup; i += kThreads) {
    sums[i] = 0.0f;
  }
  const int cells = a.tile_rows * a.tile_columns;
  const int begin = static_cast<int>(static_cast<int64_t>(slot) * a.tiles / a.slots),
            end = static_cast<int>(static_cast<int64_t>(slot + 1) * a.tiles / a.slots);
  for (int tile = begin; tile < end; ++tile) {
    const int row = tile / a.column_tiles * a.tile_rows, column = tile % a.column_tiles * a.tile_columns;
    __syncthreads();
    const int first_channel = chunk * a.chunk_channels;
    stage(
        a.moving,
        StagedTile<float>{
            moving, numbers, first_channel, min(a.chunk_channels, a.moving.channels - first_channel), row, column,
            a.staged_rows, a.staged_columns, a.pitch, a.plane},
        network);
    __syncthreads(); // the numbers have been read
    stage(
        a.fixed,
        StagedTile<float>{
            fixed, numbers, range * a.range_channels, a.range_channels, row, column, a.tile_rows, a.tile_columns,
            a.tile_columns, layout.fixed_pitch},
        network);
    __syncthreads();
    for (int i = a.item_begins[work] + warp; i < a.item_begins[work + 1]; i += kWarps) {
      const WeightGradItem item = a.items[i];
      const float* pixels[kColumns];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const int of_lane = n * 8 + g; // what stands behind the last is not used
        pixels[n] = moving + offsets[item.first + (of_lane < item.count ? of_lane : 0)];
      }
      float products[kRows][kColumns][4] = {};
      for (int cell = 0; cell < cells; cell += 8) {
        const int in_row = cell / a.tile_columns, at = in_row * a.pitch + cell - in_row * a.tile_columns + t;
        Tf32Split<kThree> x[kColumns][2];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) { // a row of a tile has eight cells or more
            x[n][half] = Tf32Split<kThree>(pixels[n][at + 4 * half]);
          }
        }
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          const float* f = fixed + (item.channel + m * 16 + g) * layout.fixed_pitch + cell + t;
          const Tf32Split<kThree> fixed_numbers[4] = {
              Tf32Split<kThree>(f[0]), Tf32Split<kThree>(f[8 * layout.fixed_pitch]), Tf32Split<kThree>(f[4]),
              Tf32Split<kThree>(f[8 * layout.fixed_pitch + 4])};
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            mma_split_16x8x8(products[m][n], fixed_numbers, x[n]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int of = n * 8 + 2 * t + i % 2;
            if (of < item.count) {
              sums[(item.first + of) * kGroup + m * 16 + i / 2 * 8 + g] += products[m][n][i]; // of this lane alone
            }
          }
        }
      }
    }
  }
  __syncthreads();
  float* to = a.partials + (network * a.slots + slot) * a.slot_stride + static_cast<int64_t>(first) * kGroup;
  for (int i = threadIdx.x; i < taps * kGroup; i += kThreads) {
    to[i] = sums[i];
  }
}

using Kernel = void (*)(WeightGradArgs<float>);

Kernel kernel_of(const WeightGradShape& s) {
  const bool three = s.products == Products::kTf32x3;
  if (s.group == 16) {
    return three ? weight_grad_mma_kernel<1, true> : weight_grad_mma_kernel<1, false>;
  }
  return three ? weight_grad_mma_kernel<2, true> : weight_grad_mma_kernel<2, false>;
}

} // namespace

size_t weight_grad_mma_shared_bytes(const WeightGradArgs<float>& a, const WeightGradShape& s) {
  return SharedLayout(a, a.moving.unshuffle, s.group).bytes;
}

void weight_grad_mma(const WeightGradArgs<float>& a, const WeightGradShape& s, int networks, cudaStream_t stream) {
  const Launch where{dim3(a.slots, a.ranges * a.chunks, networks), dim3(kThreads), s.shared_bytes, stream};
  launch(kernel_of(s), "weight_grad_mma", where, a);
}

} // namespace oes::cuda::conv
